//! What the daemon's memory is, what a pod and a waiting request cost, and whether it grows with time.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use rolecall_sandbox::Behavior;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client,
    node::{self, LIMIT, Node, Token},
    plot::{Plot, Series},
    report::{Report, table},
};

const MIB: f64 = 1024.0 * 1024.0;

/// Pods on the node when its memory is read.
const STEPS: [usize; 4] = [0, 250, 500, 1000];

const GOAL_WARM: f64 = 20.0;
const GOAL_POD_KIB: f64 = 16.0;

/// Requests that wait together, and of how many pods: as many as get their exchanges within four seconds.
const WAITING: usize = 1000;
const WAITING_PODS: usize = 50;
const GOAL_WAITING: f64 = 10.0;

/// How long the processor time of waiting requests is measured.
const WATCHED: Duration = Duration::from_secs(3);

/// Pods that come, are served and go, at a time and in all.
const BATCH: usize = 200;
const LIVES: usize = 100_000;
const GOAL_GROWTH: f64 = 1.0;

/// Memory with more and more warm pods, and of requests that wait.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    let (mut rows, mut points) = (Vec::new(), Vec::new());
    for pods in STEPS {
        node.add_pods(pods).await?;
        settle().await;
        let (resident, own) = memory(&node)?;
        rows.push(vec![pods.to_string(), format!("{resident:.1}"), format!("{own:.1}")]);
        points.push((pods as f64, resident, own));
    }
    let [_, (_, warm, _), _, (_, _, own_at_end)] = points[..] else { unreachable!("four steps") };
    let each = (own_at_end - points[1].2) * 1024.0 / (STEPS[3] - STEPS[1]) as f64;
    report.goal(
        "memory with 250 warm pods",
        format!("{GOAL_WARM:.0} MiB"),
        format!("{warm:.1} MiB"),
        warm <= GOAL_WARM,
    );
    report.goal(
        "memory of one more pod",
        format!("{GOAL_POD_KIB:.0} KiB"),
        format!("{each:.1} KiB"),
        each <= GOAL_POD_KIB,
    );
    drop(node);
    let (grown, processor) = waiting().await?;
    report.goal(
        format!("memory of {WAITING} requests that wait"),
        format!("{GOAL_WAITING:.0} MiB"),
        format!("{grown:.1} MiB"),
        grown <= GOAL_WAITING,
    );
    report.goal(
        format!("processor time of {WAITING} requests that wait"),
        "5 % of one core".to_owned(),
        format!("{:.1} %", processor * 100.0),
        processor <= 0.05,
    );
    report.section(
        "memory: what pods and waiting requests cost",
        format!(
            "{}\nResident memory has the pages of the program itself in it, own memory (`RssAnon`) has not.\n\
             Every pod has been answered once.\n",
            table(&["warm pods", "resident, MiB", "own, MiB"], &rows)
        ),
    );
    Ok(())
}

/// Own memory that so many waiting requests add, in MiB, and the share of a core that they take.
async fn waiting() -> Result<(f64, f64)> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(Duration::from_secs(15)));
    for index in 0..WAITING_PODS {
        node.pods.push(node.world.pod(node::pod(index))?);
    }
    // Every exchange is out, and the second attempts that there are places for: what they cost is not the requests'
    // cost.
    node.world.sts.wait_for_requests(WAITING_PODS).await;
    sleep(Duration::from_secs(4)).await;
    let (_, before) = memory(&node)?;
    let mut asked = JoinSet::new();
    for request in 0..WAITING {
        let (server, asker) = (node.daemon.address, node.asker(request % WAITING_PODS, Token::Sent)?);
        asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
    }
    sleep(Duration::from_secs(2)).await;
    let processor = node.daemon.process.cpu_time()?;
    sleep(WATCHED).await;
    let processor = node.daemon.process.cpu_time()? - processor;
    let (_, during) = memory(&node)?;
    while let Some(answer) = asked.join_next().await {
        answer?.context("a request that waited")?;
    }
    Ok((during - before, processor.as_secs_f64() / WATCHED.as_secs_f64()))
}

/// Memory while pods come, are served and go; `ROLECALL_BENCH_LIVES` says how many.
pub(crate) async fn lifetimes(report: &mut Report) -> Result<()> {
    let lives = env::var("ROLECALL_BENCH_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(LIVES);
    let mut node = Node::start(&["--log-level=warn"], &Vec::new()).await?;
    let mut points = Vec::new();
    for batch in 0..lives / BATCH {
        for index in 0..BATCH {
            node.pods.push(node.world.pod(node::pod(index))?);
        }
        node.ask_all(0).await?;
        for pod in node.pods.drain(..) {
            pod.remove()?;
        }
        let done = (batch + 1) * BATCH;
        if done.is_multiple_of(lives / 50) {
            points.push((done as f64, memory(&node)?.1));
        }
    }
    // What is asked for in the first tenth stays for reuse.
    let of_tenth = |tenth: usize| {
        let from = points.len() * tenth / 10;
        let part = &points[from..points.len() * (tenth + 1) / 10];
        part.iter().map(|point| point.1).sum::<f64>() / part.len() as f64
    };
    let growth = of_tenth(9) - of_tenth(2);
    report.goal(
        format!("growth of memory over {lives} pod lifetimes"),
        format!("at most {GOAL_GROWTH:.0} MiB"),
        format!("{growth:+.2} MiB"),
        growth <= GOAL_GROWTH,
    );
    report.section(
        "lifetimes: memory over time",
        format!(
            "{BATCH} pods at a time come, are served and go, {lives} in all: more than a node sees in months.\n\
             Own memory was {:.1} MiB after the first fifth and {:.1} MiB at the end.\n\n![own memory over pod lifetimes](lifetimes.svg)\n",
            of_tenth(2),
            of_tenth(9)
        ),
    );
    let series = vec![Series { name: "own memory", points }];
    report.plot(
        "lifetimes.svg",
        Plot { title: "memory of the daemon", x: "pods that have come and gone", y: "MiB", series },
    );
    Ok(())
}

/// Resident and own memory, in MiB.
fn memory(node: &Node) -> Result<(f64, f64)> {
    let process = &node.daemon.process;
    Ok((process.resident_memory()? as f64 / MIB, process.anonymous_memory()? as f64 / MIB))
}

/// Lets connections end and idle memory be given back.
async fn settle() {
    sleep(Duration::from_secs(1)).await;
}
