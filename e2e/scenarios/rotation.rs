//! Tokens of the shortest lifetime are renewed by the kubelet while pods go on asking.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::Instant;

use crate::pods::{Summary, probe};
use crate::report::{Figure, Report};
use crate::world::World;

/// A namespace of its own, for its pods live through the other scenarios.
const NAMESPACE: &str = "rotation";

/// The least that Kubernetes allows.
const LIFETIME: Duration = Duration::from_secs(600);

/// The sessions' length. They are renewed between its half and seven twelfths, when the first tokens have expired.
const SESSION: Duration = Duration::from_secs(1200);

/// For how long the pods go on after that, so that a renewal falls within.
const BEYOND: Duration = Duration::from_secs(130);

/// Reads the token for each request, as SDKs do; and once, as the AWS CLI v2 does.
const PODS: [(&str, &[&str]); 2] = [("reader", &["loop"]), ("hoarder", &["loop", "--keep-token"])];

/// Pods that have begun to ask.
pub(crate) struct Rotation {
    since: Instant,
    first_tokens: Vec<String>,
}

impl Rotation {
    /// Starts the pods, on the node that nothing else happens to.
    pub(crate) async fn begin(world: &World) -> Result<Self> {
        world.make_namespace(NAMESPACE).await?;
        let pods = world.pods(NAMESPACE);
        let mut first_tokens = Vec::new();
        for (name, arguments) in PODS {
            world.service_account(NAMESPACE, name).await?;
            let mut pod = probe(name, name, arguments);
            pod["metadata"]["annotations"] = json!({
                "rolecall.dev/token-expiration": LIFETIME.as_secs().to_string(),
                "rolecall.dev/session-duration": SESSION.as_secs().to_string(),
            });
            pod["spec"]["nodeName"] = json!("node-2");
            pods.create(&pod).await?;
            pods.running(name).await?;
            first_tokens.push(token(world, name).await?);
        }
        Ok(Self { since: Instant::now(), first_tokens })
    }

    /// Waits until the first tokens have expired and the sessions are renewed, looks at what the pods have seen, and removes them.
    pub(crate) async fn end(self, world: &World, report: &mut Report) -> Result<()> {
        tokio::time::sleep_until(self.since + LIFETIME + BEYOND).await;
        let seen = self.look(world, report).await;
        world.pods(NAMESPACE).clear().await?;
        seen
    }

    async fn look(&self, world: &World, report: &mut Report) -> Result<()> {
        let pods = world.pods(NAMESPACE);
        for ((name, _), first) in PODS.iter().zip(&self.first_tokens) {
            ensure!(*first != token(world, name).await?, "the kubelet has not renewed the token of {name}");
            world.kubectl(&["exec", "-n", NAMESPACE, name, "--", "/probe", "end"])?;
            let seen: Summary = pods.outcome(name).await?;
            seen.ensure_own(&world.sts, NAMESPACE, name)?;
            ensure_renewed_by_another_token(world, name)?;
            let claim = match *name {
                "hoarder" => "a token kept beyond its expiry, as the AWS CLI v2 does",
                _ => "a token that lives 10 minutes, renewed by the kubelet",
            };
            report.add(Figure::new(claim, seen.all_answered()?));
        }
        Ok(())
    }
}

/// Fails unless STS has issued a session again, for a token that is younger than the first one.
fn ensure_renewed_by_another_token(world: &World, name: &str) -> Result<()> {
    let session = format!("{NAMESPACE}.{name}");
    let calls = world.sts.calls();
    let tokens: Vec<Option<u64>> = calls
        .iter()
        .filter(|call| call.session_name.as_ref() == Some(&session) && call.outcome.is_granted())
        .map(|call| call.token_issued_at)
        .collect();
    ensure!(tokens.first() < tokens.last(), "{name} was not renewed by another token: issued at {tokens:?}");
    Ok(())
}

/// The token on the node's disk.
async fn token(world: &World, name: &str) -> Result<String> {
    let pod = world.pods(NAMESPACE).api().get(name).await?;
    let uid = pod.metadata.uid.context("the pod has a uid")?;
    let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/rolecall-token/token");
    world.cluster.nodes()[1].run(["cat", &file])
}
