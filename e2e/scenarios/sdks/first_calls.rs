//! SDKs in a race: each calls once, in a process of its own, while STS has yet to hand out its credentials.

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use rolecall_e2e::sdk::Answer;

use super::client::{self, Client, Start, Task};
use super::own_answers;
use crate::report::Figure;
use crate::world::{NAMESPACE, World};

/// Those that race: the ones that most pods use, each with a patience of its own.
const RACERS: [&str; 4] = ["boto3", "java-v2", "go-v2", "js-v3"];

/// With credentials at hand no first call takes so long, not even in a virtual machine that loads its classes meanwhile.
/// A call that is shorter has not met STS's slowness, and shows nothing.
const WAITED_SECONDS: f64 = 2.0;

/// Pods on their way to their first calls.
pub(crate) struct FirstCalls<'a> {
    world: &'a World,
    service_account: &'a str,
    /// The clients with the names of their pods.
    pods: Vec<(&'static Client, String)>,
}

/// What became of one.
#[derive(Debug)]
pub(crate) struct FirstCall {
    client: &'static Client,
    /// How long the client says that the call took.
    seconds: Result<f64>,
}

impl<'a> FirstCalls<'a> {
    /// Makes a pod of each client, named after the race.
    pub(crate) async fn begin(
        world: &'a World,
        race: &str,
        service_account: &'a str,
        start: Start,
    ) -> Result<Self> {
        let clients = client::available().into_iter().filter(|client| RACERS.contains(&client.name));
        let pods: Vec<_> = clients.map(|client| (client, format!("{race}-{}", client.name))).collect();
        ensure!(pods.len() == RACERS.len(), "an SDK is missing, of {RACERS:?}: only {pods:?} are there");
        for (client, pod) in &pods {
            let manifest = client.pod(pod, service_account, &world.sts.url(), Task::Call(start))?;
            world.pods(NAMESPACE).create(&manifest).await?;
        }
        Ok(Self { world, service_account, pods })
    }

    /// Waits until all of them run.
    pub(crate) async fn running(&self) -> Result<()> {
        let api = self.world.pods(NAMESPACE);
        try_join_all(self.pods.iter().map(|(_, pod)| api.running(pod))).await.map(drop)
    }

    /// Waits until all of them have ended.
    pub(crate) async fn outcomes(self) -> Vec<FirstCall> {
        let api = self.world.pods(NAMESPACE);
        let outcomes = self.pods.iter().map(async |(client, pod)| {
            let answers = own_answers(&api, client, pod, self.service_account).await;
            FirstCall { client, seconds: answers.and_then(|answers| waited(&answers)).context(pod.clone()) }
        });
        join_all(outcomes).await
    }
}

/// How long the only call has taken.
fn waited(answers: &[Answer]) -> Result<f64> {
    let [Answer { elapsed_seconds, .. }] = answers else { bail!("it has not called once: {answers:?}") };
    ensure!(
        WAITED_SECONDS <= *elapsed_seconds,
        "its credentials were there when it asked, {elapsed_seconds:.1} s long: this shows nothing"
    );
    Ok(*elapsed_seconds)
}

impl FirstCall {
    /// How many first calls of each SDK succeeded, and how long the longest took.
    pub(crate) fn figure(claim: &str, calls: &[Self]) -> Figure {
        let of_client = RACERS.map(|name| {
            let calls = calls.iter().filter(|call| call.client.name == name);
            let (all, seconds): (Vec<&str>, Vec<Option<f64>>) =
                calls.map(|call| (call.client.title, call.seconds.as_ref().ok().copied())).unzip();
            let seconds: Vec<f64> = seconds.into_iter().flatten().collect();
            let longest = seconds.iter().copied().fold(0.0, f64::max);
            format!(
                "{}: {} of {}, longest {longest:.1} s",
                all.first().unwrap_or(&name),
                seconds.len(),
                all.len()
            )
        });
        Figure::new(claim, of_client.join("; "))
    }

    /// Why there was no answer.
    pub(crate) fn failure(&self) -> Option<String> {
        self.seconds.as_ref().err().map(|error| format!("{error:#}"))
    }
}
