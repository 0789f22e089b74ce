//! What requests cost that wait for a slow STS: memory, and time on a processor.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rolecall_sandbox::Behavior;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client, heap,
    memory::{MIB, Memory},
    node::{self, LIMIT, Node, Token},
    report::{self, Goal, Report, Subject, Verdict, table},
    smaps::Part,
    spread::Spread,
};

const TITLE: &str = "waiting: what requests cost that wait for a slow STS";

/// Requests that wait together, and of how many pods: as many as get their exchanges within four seconds.
const WAITING: usize = 1000;
const WAITING_PODS: usize = 50;
const GOAL_WAITING: f64 = 10.0;

/// STS's time, which no more than the requests' wait fits into.
const STS_TIME: Duration = Duration::from_secs(15);

/// How often the processor time of waiting requests is measured, and for how long: each gets as many bytes meanwhile
/// as every other.
const WATCHES: usize = 3;
const WATCHED: Duration = Duration::from_millis(1200);

/// Of a core, in percent.
const GOAL_ON_CPU: f64 = 5.0;

/// What was measured.
struct Figures {
    before: Memory,
    during: Memory,
    /// Of a core, in percent.
    on_cpu: Spread,
}

/// What so many waiting requests add in memory, and which share of a core they take.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let figures = measure().await?;
    for goal in goals(&figures) {
        report.goal(goal);
    }
    report.profile(
        Subject::WaitingRequests,
        format!(
            "Where the memory is, is in {}, and who asked for it in {}.\n",
            report::link(TITLE),
            report::link(heap::TITLE)
        ),
    );
    report.section(TITLE, section(&figures));
    Ok(())
}

async fn measure() -> Result<Figures> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(STS_TIME));
    for index in 0..WAITING_PODS {
        node.pods.push(node.world.pod(node::pod(index))?);
    }
    // Every exchange is out, and the second attempts that there are places for: what they cost is not the requests'
    // cost.
    node.world.sts.wait_for_requests(WAITING_PODS).await;
    sleep(Duration::from_secs(4)).await;
    let process = &node.daemon.process;
    let before = Memory::of(process)?;
    let mut asked = JoinSet::new();
    for request in 0..WAITING {
        let (server, asker) = (node.daemon.address, node.asker(request % WAITING_PODS, Token::Sent)?);
        asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
    }
    sleep(Duration::from_secs(2)).await;
    let mut percents = Vec::new();
    for _ in 0..WATCHES {
        let (began, earlier) = (Instant::now(), process.threads()?);
        sleep(WATCHED).await;
        let spent = process.threads()?.on_cpu_since(&earlier);
        percents.push(spent.as_secs_f64() * 100.0 / began.elapsed().as_secs_f64());
    }
    let during = Memory::of(process)?;
    while let Some(answer) = asked.join_next().await {
        answer?.context("a request that waited")?;
    }
    Ok(Figures { before, during, on_cpu: Spread::of(percents.into_iter()) })
}

fn goals(Figures { before, during, on_cpu }: &Figures) -> [Goal; 2] {
    let grown = (during.own as f64 - before.own as f64) / MIB;
    [
        Goal {
            subject: Subject::WaitingRequests,
            what: format!("memory of {WAITING} requests that wait"),
            goal: format!("{GOAL_WAITING:.0} MiB"),
            figure: format!("{grown:.1} MiB"),
            spread: String::new(),
            verdict: Verdict::of(grown <= GOAL_WAITING),
        },
        Goal {
            subject: Subject::WaitingRequests,
            what: format!("processor time of {WAITING} requests that wait"),
            goal: format!("{:.0} % of one core", GOAL_ON_CPU),
            figure: format!("{:.2} %", on_cpu.median),
            spread: on_cpu.all(2),
            verdict: Verdict::of(on_cpu.median <= GOAL_ON_CPU),
        },
    ]
}

fn section(Figures { before, during, on_cpu }: &Figures) -> String {
    let rows: Vec<Vec<String>> = Part::ALL
        .map(|part| {
            let (before, during) = (before.part(part) as f64 / MIB, during.part(part) as f64 / MIB);
            let each = (during - before) * 1024.0 / WAITING as f64;
            vec![part.name().to_owned(), format!("{before:.1}"), format!("{during:.1}"), format!("{each:.1}")]
        })
        .into();
    format!(
        "{WAITING} requests of {WAITING_PODS} pods, each on a connection of its own, wait for an STS that takes {} s; \
         all were answered in the end. Each gets a byte every 0.4 s, and {:.2} % of a core was spent on that ({}), \
         the median of {WATCHES} times {:.1} s by the kernel's account in nanoseconds.\n\n{}",
        STS_TIME.as_secs(),
        on_cpu.median,
        on_cpu.all(2),
        WATCHED.as_secs_f64(),
        table(&["MiB", "before", "while they wait", "KiB each"], &rows)
    )
}
