//! SDKs in a race: each calls once, in a process of its own, while STS has yet to hand out its credentials.

use anyhow::{Context, Result, bail};
use futures_util::future::{join_all, try_join, try_join_all};
use rolecall_e2e::sdk::Answer;

use super::client::{self, Client, Start, Task};
use super::connections::Connections;
use super::{before_credentials, own_answers};
use crate::report::Figure;
use crate::world::{NAMESPACE, World};

/// Those that race.
const RACERS: [&str; 4] = ["boto3", "java-v2", "go-v2", "js-v3"];

/// Pods on their way to their first calls.
pub(crate) struct FirstCalls<'a> {
    world: &'a World,
    service_account: &'a str,
    /// The clients with the names of their pods.
    pods: Vec<(&'static Client, String)>,
    connections: Connections<'a>,
}

/// What became of one.
#[derive(Debug)]
pub(crate) struct FirstCall {
    client: &'static Client,
    outcome: Result<Success>,
}

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
struct Success {
    /// How long the client says that it took.
    seconds: f64,
    /// Whether the client had asked for its credentials by the time that STS handed them out. One that asks later,
    /// for it takes long to start, finds them there, and shows nothing.
    had_asked: bool,
}

impl<'a> FirstCalls<'a> {
    /// Makes a pod of each client, named after the race.
    pub(crate) async fn begin(
        world: &'a World,
        race: &str,
        service_account: &'a str,
        start: Start,
    ) -> Result<Self> {
        let connections = Connections::count(world)?;
        let pods: Vec<_> = racers().map(|client| (client, format!("{race}-{}", client.name))).collect();
        for (client, pod) in &pods {
            let manifest = client.pod(pod, service_account, &world.sts.url(), Task::Call(start))?;
            world.pods(NAMESPACE).create(&manifest).await?;
        }
        Ok(Self { world, service_account, pods, connections })
    }

    /// Waits until all of them run.
    pub(crate) async fn running(&self) -> Result<()> {
        let api = self.world.pods(NAMESPACE);
        try_join_all(self.pods.iter().map(|(_, pod)| api.running(pod))).await.map(drop)
    }

    /// Waits until all of them have ended. To be begun before STS hands out credentials: connections are counted then.
    pub(crate) async fn outcomes(self) -> Vec<FirstCall> {
        let outcomes = self.pods.iter().map(async |(client, pod)| FirstCall {
            client,
            outcome: self.outcome(client, pod).await.with_context(|| pod.clone()),
        });
        join_all(outcomes).await
    }

    async fn outcome(&self, client: &'static Client, pod: &str) -> Result<Success> {
        let api = self.world.pods(NAMESPACE);
        let answers = own_answers(&api, client, pod, self.service_account);
        let begun = before_credentials(self.world, pod, &self.connections);
        let (answers, begun) = try_join(answers, begun).await?;
        let [Answer { elapsed_seconds, .. }] = answers[..] else {
            bail!("it has not called once: {answers:?}");
        };
        Ok(Success { seconds: elapsed_seconds, had_asked: begun != 0 })
    }
}

impl FirstCall {
    /// How many first calls of each SDK succeeded, how long they took and how many had to wait for STS.
    pub(crate) fn figure(claim: &str, calls: &[Self]) -> Figure {
        let of_racer = |racer: &Client| {
            let calls = of(racer, calls);
            let successes: Vec<Success> =
                calls.iter().filter_map(|call| call.outcome.as_ref().ok().copied()).collect();
            let succeeded = format!("{}: {} of {}", racer.title, successes.len(), calls.len());
            let seconds = || successes.iter().map(|success| success.seconds);
            let (Some(shortest), Some(longest)) = (seconds().reduce(f64::min), seconds().reduce(f64::max))
            else {
                return succeeded;
            };
            let seconds = match successes.len() {
                1 => format!("{shortest:.1}"),
                _ => format!("{shortest:.1} to {longest:.1}"),
            };
            let had_asked = successes.iter().filter(|success| success.had_asked).count();
            format!("{succeeded} after {seconds} s, {had_asked} had asked before STS answered")
        };
        Figure::new(claim, racers().map(of_racer).collect::<Vec<_>>().join("; "))
    }

    /// What is wrong with these: calls that failed, and SDKs that asked too late each time.
    pub(crate) fn faults(calls: &[Self]) -> Vec<String> {
        let failures = calls.iter().filter_map(|call| call.outcome.as_ref().err());
        let failures = failures.map(|error| format!("an SDK's first call failed: {error:#}"));
        let silent = racers().filter(|racer| {
            let calls = of(racer, calls);
            !calls.is_empty() && calls.iter().all(|call| call.is_too_late())
        });
        let silent = silent
            .map(|racer| format!("{} asked only after STS had answered: this shows nothing", racer.title));
        failures.chain(silent).collect()
    }

    fn is_too_late(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|success| !success.had_asked)
    }
}

fn racers() -> impl Iterator<Item = &'static Client> {
    RACERS.iter().map(|name| client::named(name).expect("the racers are named as clients are"))
}

fn of<'a>(racer: &Client, calls: &'a [FirstCall]) -> Vec<&'a FirstCall> {
    calls.iter().filter(|call| call.client.name == racer.name).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn call(racer: &str, outcome: Result<Success>) -> FirstCall {
        FirstCall { client: client::named(racer).expect("there is such a client"), outcome }
    }

    fn early(seconds: f64) -> Result<Success> {
        Ok(Success { seconds, had_asked: true })
    }

    fn late(seconds: f64) -> Result<Success> {
        Ok(Success { seconds, had_asked: false })
    }

    #[track_caller]
    fn check_faults(calls: &[FirstCall], expect: &[&str]) {
        assert_eq!(FirstCall::faults(calls), expect);
    }

    #[test]
    fn a_figure_tells_calls_that_failed_from_those_that_asked_too_late() {
        let calls = [
            call("java-v2", early(9.96)),
            call("java-v2", late(4.1)),
            call("java-v2", Err(anyhow!("no"))),
            call("go-v2", Err(anyhow!("no"))),
        ];
        assert_eq!(
            FirstCall::figure("first calls", &calls).figure,
            "Python, boto3: 0 of 0; \
             Java v2: 2 of 3 after 4.1 to 10.0 s, 1 had asked before STS answered; \
             Go v2: 0 of 1; \
             JavaScript v3: 0 of 0"
        );
    }

    #[test]
    fn a_call_that_asks_too_late_is_no_fault_beside_one_that_does_not() {
        check_faults(&[], &[]);
        check_faults(&[call("go-v2", early(9.0)), call("go-v2", late(0.1))], &[]);
    }

    #[test]
    fn an_sdk_that_always_asks_too_late_shows_nothing() {
        check_faults(
            &[call("go-v2", early(9.0)), call("java-v2", late(3.0)), call("java-v2", late(4.0))],
            &["Java v2 asked only after STS had answered: this shows nothing"],
        );
    }

    #[test]
    fn a_call_that_fails_is_a_fault_among_many_that_do_not() {
        check_faults(
            &[call("boto3", early(9.0)), call("boto3", Err(anyhow!("timed out").context("race-boto3")))],
            &["an SDK's first call failed: race-boto3: timed out"],
        );
    }
}
