//! Pods come and go while STS is slow: does each pod's first request succeed?

use std::time::{Duration, Instant};

use anyhow::Result;
use rolecall_sandbox::{Behavior, WorldPod};
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    client,
    network::pod_address,
    node::{self, Node},
    plot::{Plot, Series},
    report::{Goal, Report, Subject, Verdict, table},
    spread::sorted,
};

/// STS's times, in seconds.
const LATENCIES: [f64; 6] = [0.05, 0.5, 1.0, 3.0, 10.0, 15.0];

/// Pods of each round, and the time between two of them: ten a second.
const PODS: usize = 150;
const EVERY: Duration = Duration::from_millis(100);

/// The shortest silence after which a measured SDK gives up. The first begins before it connects.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a pod lives after its first request.
const LIFE: Duration = Duration::from_secs(5);

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    let (mut medians, mut longest) = (Vec::new(), Vec::new());
    let mut failures = 0;
    for latency in LATENCIES {
        let waits = round(Duration::from_secs_f64(latency)).await?;
        let failed: Vec<&anyhow::Error> = waits.iter().filter_map(|wait| wait.as_ref().err()).collect();
        let took = sorted(waits.iter().filter_map(|wait| wait.as_ref().ok()).map(Duration::as_secs_f64));
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        let worst = took.last().copied().unwrap_or(f64::NAN);
        rows.push(vec![
            format!("{latency}"),
            PODS.to_string(),
            failed.len().to_string(),
            format!("{:.3}", at(0.5)),
            format!("{:.3}", at(0.95)),
            format!("{worst:.3}"),
            failed.first().map(|error| format!("{error:#}")).unwrap_or_default(),
        ]);
        failures += failed.len();
        medians.push((latency, at(0.5)));
        longest.push((latency, worst));
    }
    report.goal(Goal {
        subject: Subject::Churn,
        what: "first requests that fail, 10 pods/s, STS up to 15 s".to_owned(),
        goal: "none".to_owned(),
        figure: format!("{failures} of {}", PODS * LATENCIES.len()),
        spread: String::new(),
        verdict: Verdict::of(failures == 0),
    });
    let head = ["STS, s", "pods", "failed", "median wait, s", "95 %, s", "longest, s", "first failure"];
    report.section(
        "churn: the first request of each pod",
        format!(
            "{}\nTen pods a second are bound; each one's token is on disk 100 to 700 ms later, its container asks 250 ms after that, \
             and its address reaches the API 11 ms to 3 s later still.\n\
             The client gives up after 1 s without a byte, the first one counted from before it connects, and never tries twice.\n\n\
             ![the first request's wait over STS's time](churn.svg)\n",
            table(&head, &rows)
        ),
    );
    let plot = Plot {
        title: "wait of a pod's first request",
        x: "time that STS takes, s",
        y: "seconds",
        // The first is drawn beneath the others, which run close to it.
        series: vec![
            Series { name: "STS itself", points: LATENCIES.map(|latency| (latency, latency)).into() },
            Series { name: "longest", points: longest },
            Series { name: "median", points: medians },
        ],
    };
    report.plot("churn.svg", plot);
    Ok(())
}

/// What the first request of each pod waited, or why it failed.
async fn round(latency: Duration) -> Result<Vec<Result<Duration>>> {
    let node = Node::start(&[], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(latency));
    let server = node.daemon.address;
    let began = tokio::time::Instant::now();
    let mut lives = JoinSet::new();
    for index in 0..PODS {
        sleep_until(began + EVERY * index as u32).await;
        let pod = node.world.prepare(node::pod_without_address(index));
        lives.spawn(async move {
            pod.trust();
            pod.register();
            // Spread evenly, the same in each run.
            sleep(Duration::from_millis(100 + (index as u64 * 389) % 600)).await;
            pod.write_token()?;
            sleep(Duration::from_millis(250)).await;
            let asker = client::Asker::new(pod_address(index), Some(&pod.token()?));
            let first_request = async {
                let asked = Instant::now();
                client::answer(server, &asker, READ_TIMEOUT).await.map(|_| asked.elapsed())
            };
            let (waited, ()) = tokio::join!(first_request, tell_address(&pod, index));
            sleep(LIFE).await;
            pod.remove()?;
            anyhow::Ok(waited)
        });
    }
    let mut waits = Vec::new();
    while let Some(waited) = lives.join_next().await {
        waits.push(waited??);
    }
    Ok(waits)
}

/// The kubelet reports the address 11 ms to 15 s after the container's first request (measured). Here 3 s is the most, so
/// that a round does not last longer for it.
async fn tell_address(pod: &WorldPod, index: usize) {
    sleep(Duration::from_millis(11 + (index as u64 * 677) % 3000)).await;
    pod.run_at(&[&node::address(index)]);
}
