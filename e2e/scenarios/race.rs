//! The race: each pod asks in its first instruction, once, and gives up after a second without a connection, or after one
//! without a byte on it.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};
use rolecall_sandbox::sts::Behavior;

use crate::pods::{Answer, probe};
use crate::report::{Figure, Report};
use crate::world::{NAMESPACE, ROLECALL, World};

/// How long STS takes to answer.
const LATENCIES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3), Duration::from_secs(10)];

const BURST: usize = 20;

/// Shows that the first request of every pod succeeds, however slow STS is.
pub(crate) async fn run(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    world.service_account(NAMESPACE, "racer").await?;
    for latency in LATENCIES {
        world.sts.set_behavior(Behavior::slow(latency));
        let name = format!("race-{}ms", latency.as_millis());
        let answers = race(world, &name, |answered| answered < pods).await?;
        world.sts.behave();
        let name = format!("first requests with STS at {}", said(latency));
        report.add(Figure::first_requests(&name, &answers));
        ensure!(answers.iter().all(Answer::is_success), "a first request failed: {:?}", failures(&answers));
    }
    Ok(())
}

/// Pods that run before there is a daemon on their node: the first request is made when it begins to listen. A part of
/// the `pods` for each latency.
pub(crate) async fn late_daemon(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    world.service_account(NAMESPACE, "racer").await?;
    for latency in LATENCIES {
        let answers = race_without_daemon(world, latency, pods.div_ceil(LATENCIES.len())).await?;
        let name =
            format!("first requests of pods that were there before the daemon, STS at {}", said(latency));
        report.add(Figure::first_requests(&name, &answers));
        ensure!(answers.iter().all(Answer::is_success), "a first request failed: {:?}", failures(&answers));
    }
    Ok(())
}

async fn race_without_daemon(world: &World, latency: Duration, count: usize) -> Result<Vec<Answer>> {
    let names: Vec<String> =
        (0..count).map(|index| format!("early-{}ms-{index}", latency.as_millis())).collect();
    let started = start_without_daemon(world, &names).await;
    world.sts.set_behavior(Behavior::slow(latency));
    // Whatever went wrong: the scenarios that follow need it.
    world.install().await?;
    started?;
    let pods = world.pods(NAMESPACE);
    let answers: Vec<Answer> = pods.outcomes(&names).await?;
    world.sts.behave();
    ensure_own(world, names.iter().zip(&answers))?;
    pods.clear().await?;
    Ok(answers)
}

async fn start_without_daemon(world: &World, names: &[String]) -> Result<()> {
    world.kubectl(&["delete", "--wait=true", "-n", ROLECALL, "daemonset", "rolecall-daemon"])?;
    world.kubectl(&[
        "wait",
        "-n",
        ROLECALL,
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=rolecall-daemon",
        "--timeout=120s",
    ])?;
    let pods = world.pods(NAMESPACE);
    for name in names {
        pods.create(&probe(name, "racer", &["once", "--once-it-listens"])).await?;
    }
    for name in names {
        pods.running(name).await?;
    }
    Ok(())
}

/// Pods come while every daemon is replaced, again and again until all pods have come: a part of the `pods` for each
/// latency.
pub(crate) async fn update(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    world.service_account(NAMESPACE, "racer").await?;
    for latency in LATENCIES {
        let (answers, updates) = race_with_updates(world, latency, pods.div_ceil(LATENCIES.len())).await?;
        let name = format!(
            "first requests while the DaemonSet is updated {updates} times, STS at {}",
            said(latency)
        );
        report.add(Figure::first_requests(&name, &answers));
        ensure!(answers.iter().all(Answer::is_success), "a first request failed: {:?}", failures(&answers));
    }
    Ok(())
}

async fn race_with_updates(world: &World, latency: Duration, count: usize) -> Result<(Vec<Answer>, usize)> {
    world.sts.set_behavior(Behavior::slow(latency));
    let goes_on = Cell::new(true);
    let racing = async {
        let name = format!("update-{}ms", latency.as_millis());
        let answers = race(world, &name, |answered| answered < count).await;
        goes_on.set(false);
        answers
    };
    let updating = async {
        let mut updates = 0;
        while goes_on.get() {
            world.kubectl(&["rollout", "restart", "-n", ROLECALL, "daemonset/rolecall-daemon"])?;
            world.wait_for_rollout().await?;
            updates += 1;
        }
        anyhow::Ok(updates)
    };
    let (answers, updates) = tokio::join!(racing, updating);
    world.sts.behave();
    Ok((answers?, updates?))
}

/// Bursts of pods, each of which ends with its answer; another one begins as long as it `goes_on` with so many answers.
async fn race(world: &World, name: &str, goes_on: impl Fn(usize) -> bool) -> Result<Vec<Answer>> {
    let api = world.pods(NAMESPACE);
    let mut answers = Vec::new();
    while goes_on(answers.len()) {
        let names: Vec<String> =
            (0..BURST).map(|index| format!("{name}-{}", answers.len() + index)).collect();
        for name in &names {
            api.create(&probe(name, "racer", &["once"])).await?;
        }
        let burst: Vec<Answer> = api.outcomes(&names).await?;
        ensure_own(world, names.iter().zip(&burst))?;
        answers.extend(burst);
        api.clear().await?;
    }
    Ok(answers)
}

/// Fails if one of these pods got the credentials of another.
fn ensure_own<'a>(world: &World, answers: impl IntoIterator<Item = (&'a String, &'a Answer)>) -> Result<()> {
    for (name, answer) in answers.into_iter().filter(|(_, answer)| answer.is_success()) {
        let session = world.sts.session(&answer.access_key_id).map(|session| session.session_name);
        let expect = format!("{NAMESPACE}.{name}");
        ensure!(session.as_deref() == Some(&expect), "{name} got the credentials of {session:?}");
    }
    Ok(())
}

fn failures(answers: &[Answer]) -> Vec<&Answer> {
    answers.iter().filter(|answer| !answer.is_success()).take(5).collect()
}

fn said(latency: Duration) -> String {
    if latency < Duration::from_secs(1) {
        format!("{} ms", latency.as_millis())
    } else {
        format!("{} s", latency.as_secs())
    }
}
