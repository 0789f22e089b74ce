//! Every SDK, unmodified, in a pod of its own: its first request while STS is slow, and its refresh.

mod client;
mod connections;
mod first_calls;
mod program;
mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join};
use rolecall_e2e::sdk::Answer;
use rolecall_sandbox::sts::{self, Behavior};

use crate::pods::Pods;
use crate::report::{Figure, Report};
use crate::world::{NAMESPACE, World};
use client::{Client, Task};
pub(crate) use client::{Start, machine_image};
use connections::Connections;
pub(crate) use first_calls::{FirstCall, FirstCalls};
use program::Uri;

/// How long STS takes while the first requests are on their way.
const SLOW: Duration = Duration::from_secs(10);

/// How long sessions are, so that SDKs and daemon have to renew them while somebody waits: the daemon says a minute
/// less.
const SESSION_SECONDS: u64 = 150;

/// How long a client goes on: its first credentials, which it got within this time, have expired then.
const BEYOND: Duration = Duration::from_secs(SESSION_SECONDS + 30);

/// How long a client may wait for other credentials than its first.
const PATIENCE: Duration = Duration::from_secs(BEYOND.as_secs() + 120);

/// Between two starts: a virtual machine for Java keeps the processors for some seconds before it can ask, and STS does
/// not wait for it.
const STAGGER: Duration = Duration::from_secs(5);

/// What became of one client.
#[derive(Debug)]
pub(crate) struct Outcome {
    client: &'static Client,
    version: String,
    /// What the API server says that its container is told where to ask.
    injected: Option<Uri>,
    /// Its first call, and one that was signed with other credentials: by the same process, or of a command line by the
    /// next one.
    answers: Vec<Answer>,
    /// How many keys STS has seen it sign with.
    keys: usize,
    /// Connections that it had begun by the time that STS handed out its first credentials.
    connections: u64,
    failure: Option<String>,
}

/// Fails unless every client is to be had on this machine.
pub(crate) fn ensure_complete() -> Result<()> {
    let missing: Vec<&str> = client::missing().into_iter().map(|client| client.title).collect();
    ensure!(missing.is_empty(), "these are not installed on this machine: {}", missing.join("; "));
    Ok(())
}

/// Runs all clients side by side, one begun after the other, and returns the table for the documentation.
pub(crate) async fn run(world: &World, report: &mut Report) -> Result<String> {
    let clients = client::available();
    for client in &clients {
        let role = world.service_account(NAMESPACE, client.name).await?;
        // Slow to hand out credentials, and not to say whose they are.
        world.sts.set_role_behavior(&role, Some(Behavior::slow(SLOW)));
        world.sts.set_role_session_seconds(&role, Some(SESSION_SECONDS));
    }
    let connections = Connections::count(world)?;
    let outcomes = join_all(clients.iter().zip(0..).map(async |(client, turn)| {
        tokio::time::sleep(STAGGER * turn).await;
        one(world, client, &connections).await
    }))
    .await;
    drop(connections);
    world.sts.behave();
    world.pods(NAMESPACE).clear().await?;

    for outcome in &outcomes {
        report
            .add(Figure::new(&format!("{} {}", outcome.client.title, outcome.version), outcome.to_string()));
    }
    for client in client::missing() {
        report.add(Figure::new(client.title, "left out: it is not installed on this machine"));
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|outcome| !outcome.is_success()).map(|outcome| outcome.client.name).collect();
    ensure!(failed.is_empty(), "these did not get their credentials: {}", failed.join(", "));
    Ok(table::render(&outcomes))
}

async fn one(world: &World, client: &'static Client, connections: &Connections<'_>) -> Outcome {
    let outcome = Outcome {
        client,
        version: String::new(),
        injected: None,
        answers: Vec::new(),
        keys: 0,
        connections: 0,
        failure: None,
    };
    let outcome = match client.version() {
        Ok(version) => Outcome { version, ..outcome },
        Err(error) => return Outcome { failure: Some(format!("{error:#}")), ..outcome },
    };
    let connections = async {
        let begun = before_credentials(world, client.name, connections).await?;
        ensure!(begun != 0, "it had not asked yet when STS handed out its credentials: this shows nothing");
        Ok(begun)
    };
    match try_join(answers(world, client), connections).await {
        Ok(((injected, answers), connections)) => {
            let keys = keys(world, client);
            Outcome { injected: Some(injected), answers, keys, connections, ..outcome }
        }
        Err(error) => Outcome { failure: Some(format!("{error:#}")), ..outcome },
    }
}

/// How many keys of the client STS has seen in `GetCallerIdentity`, or in what stands in its place.
fn keys(world: &World, client: &Client) -> usize {
    let own = format!("{NAMESPACE}.{}", client.name);
    let calls = world.sts.calls().into_iter().filter(|call| call.action != "AssumeRoleWithWebIdentity");
    let keys = calls.filter_map(|call| match call.outcome {
        sts::Outcome::Granted { access_key_id } => Some(access_key_id),
        _ => None,
    });
    let is_own = |key: &String| world.sts.session(key).is_some_and(|session| session.session_name == own);
    keys.filter(is_own).collect::<BTreeSet<_>>().len()
}

/// How many connections a pod has begun when STS hands out its first credentials.
async fn before_credentials(world: &World, pod: &str, connections: &Connections<'_>) -> Result<u64> {
    let session = format!("{NAMESPACE}.{pod}");
    let granted = world.sts.wait_until(|calls| {
        calls.iter().any(|call| call.outcome.is_granted() && call.session_name.as_deref() == Some(&session))
    });
    tokio::time::timeout(PATIENCE, granted).await.context("STS hands out no credentials")?;
    connections.of(&world.pods(NAMESPACE), pod).await
}

async fn answers(world: &World, client: &'static Client) -> Result<(Uri, Vec<Answer>)> {
    let pods = world.pods(NAMESPACE);
    let task = Task::Renew { patience: PATIENCE, beyond: BEYOND };
    let pod = pods.create(&client.pod(client.name, client.name, &world.sts.url(), task)?).await?;
    let injected = Uri::of(&pod).context("the shim has injected nothing")?;
    ensure!(injected == client.uri, "it was told the {injected} in the place of the {}", client.uri);
    Ok((injected, own_answers(&pods, client, client.name, client.name).await?))
}

/// What a client has said in its pod, which has to be the role's that its ServiceAccount has.
async fn own_answers(pods: &Pods, client: &Client, pod: &str, service_account: &str) -> Result<Vec<Answer>> {
    let ended = pods.ended(pod).await?;
    let text = ended.message.unwrap_or_default();
    ensure!(ended.exit_code == 0, "it ended with {}: {text}", ended.exit_code);
    let answers = client.read(&text).with_context(|| format!("read what it says: {text}"))?;
    let expect = format!("arn:aws:sts::111122223333:assumed-role/{service_account}/{NAMESPACE}.{pod}");
    for answer in &answers {
        ensure!(answer.arn.as_deref() == Some(&expect), "it is not who its pod is: {answer:?}");
    }
    Ok(answers)
}

impl Outcome {
    /// How often it began another connection while its credentials were on their way: it had given the one before up.
    fn timeouts(&self) -> u64 {
        self.connections.saturating_sub(1)
    }

    /// Whether its first request succeeded, and it was seen to renew its credentials.
    fn is_success(&self) -> bool {
        self.failure.is_none() && self.answers.len() == 2 && self.is_renewed()
    }

    /// Whether it made calls with more than its first credentials.
    fn is_renewed(&self) -> bool {
        2 <= self.keys
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(failure) = &self.failure {
            return write!(f, "failed: {failure}");
        }
        let Some(first) = self.answers.first() else { return write!(f, "said nothing") };
        // A command line does not say how long it took.
        match first.elapsed_seconds {
            0.0 => write!(f, "first call succeeds")?,
            seconds => write!(f, "first call after {seconds:.1} s")?,
        }
        match self.timeouts() {
            0 => {}
            1 => write!(f, ", a timeout")?,
            timeouts => write!(f, ", {timeouts} timeouts")?,
        }
        if self.is_renewed() { write!(f, ", renewed") } else { write!(f, ", not renewed") }
    }
}
