//! Takes the startup taint off the node once the daemon is ready, and whenever the node has it again.
//!
//! A fresh node is registered with the taint, so that no pod comes before the daemon can serve it.

use std::{fmt, str::FromStr, time::Duration};

use kube::{
    Api, Client,
    api::{GetParams, Patch, PatchParams},
    core::{ApiResource, Object},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use rolecall_process::readiness::Readiness;

/// How often the node is looked at, half of it jitter. It is registered anew when its object was deleted and the kubelet
/// started, which is rare; to be told of it would take the right to watch all nodes.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Shortest pause after a failure; it doubles up to [`LOOK_AGAIN`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest time that one request to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The key of a taint, such as `rolecall.dev/agent-not-ready`.
///
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaintKey(String);

/// A text that cannot be the key of a taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write the key of the taint alone, such as rolecall.dev/agent-not-ready")]
pub struct TaintKeyError;

/// What the task shows of itself.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    present: Gauge,
    removals: Counter,
}

/// Keeps the taint off the node.
pub struct StartupTaint {
    nodes: Api<NodeObject>,
    node_name: String,
    key: TaintKey,
    readiness: Readiness,
    metrics: Metrics,
    /// Why it failed last, and how often in a row.
    fails: Option<(Failure, u32)>,
}

/// The one field of a node that is read.
type NodeObject = Object<NodeSpec, NodeStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    /// As they are, for a patch has to name all of a taint.
    #[serde(default)]
    taints: Vec<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeStatus {}

/// Why the taint is not off, as far as it makes a difference to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Somebody else has changed the node's taints meanwhile.
    Conflict,
    Forbidden,
    NoSuchNode,
    Unreachable,
}

impl FromStr for TaintKey {
    type Err = TaintKeyError;

    fn from_str(text: &str) -> Result<Self, TaintKeyError> {
        let (prefix, name) = text.split_once('/').unwrap_or(("a", text));
        let is_name = |part: &str, longest, more: &[u8]| {
            let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            part.len() <= longest
                && ends(part.as_bytes().first())
                && ends(part.as_bytes().last())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        let is_domain =
            |part: &str| is_name(part, 253, b"-.") && !part.contains(|c: char| c.is_ascii_uppercase());
        if is_domain(prefix) && is_name(name, 63, b"-._") {
            Ok(Self(text.to_owned()))
        } else {
            Err(TaintKeyError)
        }
    }
}

impl fmt::Display for TaintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "startup_taint_present",
            "Whether the node had the startup taint when it was last looked at, which it is not while the daemon is \
             not ready",
            metrics.present.clone(),
        );
        registry.register(
            "startup_taint_removals",
            "How often the startup taint was taken off the node",
            metrics.removals.clone(),
        );
        metrics
    }
}

impl StartupTaint {
    pub fn new(
        client: Client,
        node_name: String,
        key: TaintKey,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Self {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&());
        let nodes = Api::all_with(client, &resource);
        Self { nodes, node_name, key, readiness, metrics, fails: None }
    }

    /// Works for ever. While the daemon is not ready it leaves the node alone.
    pub async fn keep_off(mut self) {
        loop {
            self.readiness.ready().await;
            let pause = match timeout(PATIENCE, self.take_off()).await.unwrap_or(Err(Failure::Unreachable)) {
                Ok(()) => {
                    self.fails = None;
                    LOOK_AGAIN / 2 + (LOOK_AGAIN / 2).mul_f64(fastrand::f64())
                }
                Err(failure) => self.failed(failure),
            };
            sleep(pause).await;
        }
    }

    async fn take_off(&self) -> Result<(), Failure> {
        // The API server's own copy will do, and is no burden to it: what is out of date in it fails the patch's test.
        let any_version = GetParams { resource_version: Some("0".to_owned()) };
        let node =
            self.nodes.get_with(&self.node_name, &any_version).await.map_err(|error| Failure::of(&error))?;
        let removal = removal(&node.spec.taints, &self.key);
        self.metrics.present.set(removal.is_some().into());
        let Some(removal) = removal else { return Ok(()) };
        let patch: Patch<()> = Patch::Json(removal);
        let patched = self.nodes.patch(&self.node_name, &PatchParams::default(), &patch).await;
        patched.map_err(|error| Failure::of(&error))?;
        self.metrics.present.set(0);
        self.metrics.removals.inc();
        info!(node = self.node_name, taint = %self.key, "took the startup taint off the node: pods may come");
        Ok(())
    }

    /// Logs what is news, and says how long to wait.
    fn failed(&mut self, failure: Failure) -> Duration {
        let (before, count) = self.fails.map_or((None, 0), |(failure, count)| (Some(failure), count));
        self.fails = Some((failure, count.saturating_add(1)));
        if before != Some(failure) {
            let (node, taint) = (&self.node_name, &self.key);
            match failure {
                Failure::Conflict => debug!(node, "the node's taints have changed meanwhile; look again"),
                Failure::Forbidden => error!(
                    node, %taint,
                    "cannot take the startup taint off the node: allow the daemon's ServiceAccount to get and patch nodes, or \
                     leave --startup-taint out"
                ),
                Failure::NoSuchNode => {
                    warn!(node, "cannot look for the startup taint: the API server has no such node")
                }
                Failure::Unreachable => {
                    warn!(node, "cannot look for the startup taint: the API server does not answer");
                }
            }
        }
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(count));
        let longest = doubled.min(LOOK_AGAIN);
        longest / 2 + (longest / 2).mul_f64(fastrand::f64())
    }
}

impl Failure {
    /// The text of the error is left out: it may quote all of the node.
    fn of(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unreachable };
        match status.code {
            401 | 403 => Self::Forbidden,
            404 => Self::NoSuchNode,
            // A test of the patch that fails is 422.
            409 | 422 => Self::Conflict,
            _ => Self::Unreachable,
        }
    }
}

/// The patch that removes each taint of `key` out of `taints`, and nothing else: it fails where another stands in its
/// place by then. The last goes first, so that the places of the others stay.
fn removal(taints: &[Value], key: &TaintKey) -> Option<json_patch::Patch> {
    let ours = taints.iter().enumerate().rev().filter(|(_, taint)| taint["key"] == *key.0);
    let operations: Vec<Value> = ours
        .flat_map(|(place, taint)| {
            let path = format!("/spec/taints/{place}");
            [json!({"op": "test", "path": path, "value": taint}), json!({"op": "remove", "path": path})]
        })
        .collect();
    if operations.is_empty() {
        return None;
    }
    Some(serde_json::from_value(operations.into()).expect("it is made of the operations of a JSON patch"))
}

#[cfg(test)]
mod tests;
