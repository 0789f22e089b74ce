//! Pods come and go while STS is slow: does each pod's first request succeed?

mod failure;
mod watch;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use rolecall_sandbox::{Behavior, WorldPod};
use tokio::{
    task::{JoinSet, block_in_place},
    time::{sleep, sleep_until},
};

use self::{
    failure::{Failure, Why},
    watch::{Disturbance, Seen, Watch},
};
use crate::{
    client,
    network::pod_address,
    node::{self, Node},
    plot::{Plot, Series},
    report::{Goal, Report, Subject, Verdict, table},
    spread::sorted,
};

const TITLE: &str = "churn: the first request of each pod";

/// STS's times, in seconds.
const LATENCIES: [f64; 6] = [0.05, 0.5, 1.0, 3.0, 10.0, 15.0];

/// Pods of each round, and the time between two of them: ten a second.
const PODS: usize = 150;
const EVERY: Duration = Duration::from_millis(100);

/// The shortest silence after which a measured SDK gives up. The first begins before it connects.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a pod lives after its first request.
const LIFE: Duration = Duration::from_secs(5);

/// What came of all pods of one round.
struct Round {
    began: Instant,
    requests: Vec<FirstRequest>,
    seen: Seen,
}

/// A pod's first request.
struct FirstRequest {
    pod: usize,
    asked: Instant,
    ended: Instant,
    outcome: Result<()>,
}

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    let (mut medians, mut longest) = (Vec::new(), Vec::new());
    let mut failures = Vec::new();
    let mut are_sure = true;
    for latency in LATENCIES {
        let round = round(Duration::from_secs_f64(latency)).await?;
        let failed = round.failures(latency);
        let took = round.took();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        let worst = took.last().copied().unwrap_or(f64::NAN);
        let mut row = vec![
            format!("{latency}"),
            PODS.to_string(),
            failed.len().to_string(),
            format!("{:.3}", at(0.5)),
            format!("{:.3}", at(0.95)),
            format!("{worst:.3}"),
            failed.first().map(|failure| failure.why.told().to_owned()).unwrap_or_default(),
        ];
        row.extend(round.seen.in_all().cells());
        rows.push(row);
        are_sure &= round.seen.stops.are_sure;
        failures.extend(failed);
        medians.push((latency, at(0.5)));
        longest.push((latency, worst));
    }
    if let Some(explanation) = failure::explanation(&failures) {
        report.profile(Subject::Churn, explanation);
    }
    report.goal(Goal {
        subject: Subject::Churn,
        what: "first requests that fail, 10 pods/s, STS up to 15 s".to_owned(),
        goal: "none".to_owned(),
        figure: format!("{} of {}", failures.len(), PODS * LATENCIES.len()),
        spread: String::new(),
        verdict: Verdict::of(failures.is_empty()),
    });
    let mut head =
        vec!["STS, s", "pods", "failed", "median wait, s", "95 %, s", "longest, s", "first failure"];
    head.extend(Disturbance::HEAD);
    let watchers = if are_sure {
        "by threads that run before all others"
    } else {
        "by threads that may themselves have waited for others, so at the most"
    };
    report.section(
        TITLE,
        format!(
            "{}\nTen pods a second are bound; each one's token is on disk 100 to 700 ms later, its container asks 250 ms after that, \
             and its address reaches the API 11 ms to 3 s later still.\n\
             The client gives up after 1 s without a byte, the first one counted from before it connects, and never tries twice.\n\n\
             What else happened during each round: the longest time for which a processor stood still (*machine*, {watchers}), and for which the event loop did that the clients share with STS and the API server (*event loop*); \
             how long the daemon's threads could have run and had no processor, all together (*daemon waited*), and the longest time for which *one thread* did, to 0.1 s; \
             and what the host kept of the processors for others (*steal*).\n\n\
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

async fn round(latency: Duration) -> Result<Round> {
    let node = Node::start(&[], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(latency));
    let watch = Watch::begin(node.daemon.process.id())?;
    let server = node.daemon.address;
    let began = Instant::now();
    let mut lives = JoinSet::new();
    for index in 0..PODS {
        sleep_until((began + EVERY * index as u32).into()).await;
        lives.spawn(live(node.world.prepare(node::pod_without_address(index)), index, server));
    }
    let mut requests = Vec::new();
    while let Some(request) = lives.join_next().await {
        requests.push(request??);
    }
    Ok(Round { began, requests, seen: watch.end().await? })
}

/// A pod's life, from when it is bound to when it is gone.
async fn live(pod: WorldPod, index: usize, server: SocketAddr) -> Result<FirstRequest> {
    pod.trust();
    pod.register();
    // Spread evenly, the same in each run.
    sleep(Duration::from_millis(100 + (index as u64 * 389) % 600)).await;
    // On this thread other pods wait, and STS and the API server: none of them is to stand still for a disk.
    block_in_place(|| pod.write_token())?;
    sleep(Duration::from_millis(250)).await;
    let asker = client::Asker::new(pod_address(index), Some(&pod.token()?));
    let first_request = async {
        let asked = Instant::now();
        let outcome = client::answer(server, &asker, READ_TIMEOUT).await.map(drop);
        FirstRequest { pod: index, asked, ended: Instant::now(), outcome }
    };
    let (request, ()) = tokio::join!(first_request, tell_address(&pod, index));
    sleep(LIFE).await;
    block_in_place(|| pod.remove())?;
    Ok(request)
}

/// The kubelet reports the address 11 ms to 15 s after the container's first request (measured). Here 3 s is the most, so
/// that a round does not last longer for it.
async fn tell_address(pod: &WorldPod, index: usize) {
    sleep(Duration::from_millis(11 + (index as u64 * 677) % 3000)).await;
    pod.run_at(&[&node::address(index)]);
}

impl Round {
    /// How long those waited that succeeded, in seconds.
    fn took(&self) -> Vec<f64> {
        let succeeded = self.requests.iter().filter(|request| request.outcome.is_ok());
        sorted(succeeded.map(|request| request.took().as_secs_f64()))
    }

    fn failures(&self, latency: f64) -> Vec<Failure> {
        let failure = |request: &FirstRequest| {
            let why = Why::of(request.outcome.as_ref().err()?);
            let since = match why {
                Why::Silence(_) => request.ended.checked_sub(READ_TIMEOUT).unwrap_or(request.asked),
                Why::Error(_) => request.asked,
            };
            Some(Failure {
                latency,
                pod: request.pod,
                asked_at: request.asked.duration_since(self.began),
                after: request.took(),
                why,
                disturbed: self.seen.within(since, request.ended),
            })
        };
        self.requests.iter().filter_map(failure).collect()
    }
}

impl FirstRequest {
    fn took(&self) -> Duration {
        self.ended.duration_since(self.asked)
    }
}
