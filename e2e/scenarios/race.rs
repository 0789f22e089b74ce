//! The race: each pod asks in its first instruction, once, and gives up after a second without a connection, or after one
//! without a byte on it.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::OptionFuture;
use rolecall_sandbox::sts::Behavior;

use crate::pods::{Answer, probe};
use crate::report::{Figure, Report};
use crate::sdks::{FirstCall, FirstCalls, Start};
use crate::world::{NAMESPACE, ROLECALL, World};

/// How long STS takes to answer.
const LATENCIES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3), SLOWEST];

/// The latency at which SDKs race as well.
const SLOWEST: Duration = Duration::from_secs(10);

const BURST: usize = 20;

/// How often STS is asked for the credentials of one pod, whichever daemons come and go: once, and while it is silent a
/// second time beside that.
const ATTEMPTS: usize = 2;

/// The ServiceAccount of all pods.
const RACER: &str = "racer";

/// What became of the pods of one latency.
#[derive(Default)]
struct Raced {
    probes: Vec<Answer>,
    sdks: Vec<FirstCall>,
}

/// Shows that the first request of every pod succeeds, however slow STS is.
pub(crate) async fn run(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    let role = world.service_account(NAMESPACE, RACER).await?;
    for latency in LATENCIES {
        slow_down(world, &role, latency);
        let raced = race(world, "race", latency, pods).await?;
        world.sts.behave();
        raced.report(report, "", latency)?;
    }
    Ok(())
}

/// Pods that run before there is a daemon on their node: the first request is made when it begins to listen. A part of
/// the `pods` for each latency.
pub(crate) async fn late_daemon(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    let role = world.service_account(NAMESPACE, RACER).await?;
    for latency in LATENCIES {
        let raced = race_without_daemon(world, &role, latency, pods.div_ceil(LATENCIES.len())).await?;
        raced.report(report, " in pods that were there before the daemon", latency)?;
    }
    Ok(())
}

async fn race_without_daemon(world: &World, role: &str, latency: Duration, count: usize) -> Result<Raced> {
    let race = format!("early-{}ms", latency.as_millis());
    let names: Vec<String> = (0..count).map(|index| format!("{race}-{index}")).collect();
    let started = start_without_daemon(world, &names, &race, latency).await;
    slow_down(world, role, latency);
    let calling = async {
        match started? {
            Some(calls) => Ok(calls.outcomes().await),
            None => anyhow::Ok(Vec::new()),
        }
    };
    // Whatever went wrong: the scenarios that follow need it.
    let (installed, sdks) = tokio::join!(world.install(), calling);
    installed?;
    let sdks = sdks?;
    let pods = world.pods(NAMESPACE);
    let probes: Vec<Answer> = pods.outcomes(&names).await?;
    world.sts.behave();
    ensure_own(world, names.iter().zip(&probes))?;
    ensure_no_exchange_again(world, &names)?;
    pods.clear().await?;
    Ok(Raced { probes, sdks })
}

async fn start_without_daemon<'a>(
    world: &'a World,
    names: &[String],
    race: &str,
    latency: Duration,
) -> Result<Option<FirstCalls<'a>>> {
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
        pods.create(&probe(name, RACER, &["once", "--once-it-listens"])).await?;
    }
    let calls = begin_calls(world, race, latency, Start::OnceItListens).await?;
    for name in names {
        pods.running(name).await?;
    }
    if let Some(calls) = &calls {
        calls.running().await?;
    }
    Ok(calls)
}

/// Pods come while every daemon is replaced, again and again until all pods have come: a part of the `pods` for each
/// latency.
pub(crate) async fn update(world: &World, report: &mut Report, pods: usize) -> Result<()> {
    let role = world.service_account(NAMESPACE, RACER).await?;
    for latency in LATENCIES {
        let (raced, updates) =
            race_with_updates(world, &role, latency, pods.div_ceil(LATENCIES.len())).await?;
        raced.report(report, &format!(" while the DaemonSet is updated {updates} times"), latency)?;
    }
    Ok(())
}

async fn race_with_updates(
    world: &World,
    role: &str,
    latency: Duration,
    count: usize,
) -> Result<(Raced, usize)> {
    slow_down(world, role, latency);
    let goes_on = Cell::new(true);
    let racing = async {
        let raced = race(world, "update", latency, count).await;
        goes_on.set(false);
        raced
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
    let (raced, updates) = tokio::join!(racing, updating);
    world.sts.behave();
    Ok((raced?, updates?))
}

/// STS takes so long to hand out the racers' credentials, but not to say whose they are.
fn slow_down(world: &World, role: &str, latency: Duration) {
    world.sts.set_role_behavior(role, Some(Behavior::slow(latency)));
}

/// Bursts of pods, each of which ends with its answer, until so many probes have answered.
async fn race(world: &World, name: &str, latency: Duration, probes: usize) -> Result<Raced> {
    let api = world.pods(NAMESPACE);
    let mut raced = Raced::default();
    while raced.probes.len() < probes {
        let race = format!("{name}-{}ms", latency.as_millis());
        let begun = raced.probes.len();
        let names: Vec<String> = (begun..begun + BURST).map(|index| format!("{race}-{index}")).collect();
        let calls = begin_calls(world, &format!("{race}-{begun}"), latency, Start::AtOnce).await?;
        let asking = async {
            for name in &names {
                api.create(&probe(name, RACER, &["once"])).await?;
            }
            api.outcomes(&names).await
        };
        let calling = OptionFuture::from(calls.map(FirstCalls::outcomes));
        let (burst, sdks): (Result<Vec<Answer>>, _) = tokio::join!(asking, calling);
        let burst = burst?;
        ensure_own(world, names.iter().zip(&burst))?;
        ensure_no_exchange_again(world, &names)?;
        raced.probes.extend(burst);
        raced.sdks.extend(sdks.into_iter().flatten());
        api.clear().await?;
    }
    Ok(raced)
}

/// The SDKs' calls of a race, if there are any at this latency.
async fn begin_calls<'a>(
    world: &'a World,
    race: &str,
    latency: Duration,
    start: Start,
) -> Result<Option<FirstCalls<'a>>> {
    if latency != SLOWEST {
        return Ok(None);
    }
    FirstCalls::begin(world, race, RACER, start).await.map(Some)
}

impl Raced {
    /// Adds the figures of these pods, `whose` is said of them; fails unless all first requests succeeded.
    fn report(&self, report: &mut Report, whose: &str, latency: Duration) -> Result<()> {
        let latency = said(latency);
        report.add(Figure::first_requests(&format!("first requests{whose}, STS at {latency}"), &self.probes));
        if !self.sdks.is_empty() {
            report
                .add(FirstCall::figure(&format!("first calls of SDKs{whose}, STS at {latency}"), &self.sdks));
        }
        let failures = self.probes.iter().filter(|answer| !answer.is_success());
        let mut faults: Vec<String> =
            failures.take(5).map(|answer| format!("a first request failed: {answer:?}")).collect();
        faults.extend(FirstCall::faults(&self.sdks));
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }
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

/// Fails if a daemon has asked STS for what another one, or it itself, had asked for.
fn ensure_no_exchange_again(world: &World, names: &[String]) -> Result<()> {
    let calls = world.sts.calls();
    for name in names {
        let session = format!("{NAMESPACE}.{name}");
        let exchanges = calls.iter().filter(|call| call.session_name.as_deref() == Some(&session)).count();
        ensure!(exchanges <= ATTEMPTS, "STS was asked {exchanges} times for the credentials of {name}");
    }
    Ok(())
}

fn said(latency: Duration) -> String {
    if latency < Duration::from_secs(1) {
        format!("{} ms", latency.as_millis())
    } else {
        format!("{} s", latency.as_secs())
    }
}
