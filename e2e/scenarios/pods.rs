//! Pods of the scenarios: made, waited for, asked what became of them.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use rolecall_e2e::cluster::wait_for;
use rolecall_sandbox::StsServer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::world::PROBE;

/// Longer than the API server takes to forget pods without grace, on a busy machine.
const CLEARED_WITHIN: Duration = Duration::from_secs(120);

/// The pods of one namespace.
#[derive(Clone)]
pub(crate) struct Pods {
    namespace: String,
    api: Api<Pod>,
}

/// What the probe says of one request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Answer {
    /// The status of the reply, zero where there was none.
    pub(crate) status: u16,
    /// The stable code of a refusal, `Success` otherwise.
    #[serde(default)]
    pub(crate) code: String,
    /// The key that was handed out.
    #[serde(default)]
    pub(crate) access_key_id: String,
    /// Why there was no reply.
    #[serde(default)]
    pub(crate) error: String,
    /// Seconds since 1970, when it began to connect.
    pub(crate) started_at: f64,
    /// From there until it was connected, zero where it never was.
    #[serde(default)]
    pub(crate) connected_seconds: f64,
    /// From there until the first byte of the answer, zero where there was none.
    #[serde(default)]
    pub(crate) first_byte_seconds: f64,
    /// From there until the last byte.
    pub(crate) seconds: f64,
}

/// What the probe says of many.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Summary {
    pub(crate) answers: usize,
    pub(crate) failed: usize,
    /// The first of those that got no answer, or not all of one.
    pub(crate) failures: Vec<Answer>,
    /// The first of those that got another than credentials.
    pub(crate) refusals: Vec<Answer>,
    pub(crate) keys: std::collections::BTreeMap<String, usize>,
    /// The one that took the longest, whatever came of it.
    pub(crate) slowest: Answer,
    pub(crate) longest_gap_seconds: f64,
}

impl Answer {
    /// Whether it brought credentials.
    pub(crate) fn is_success(&self) -> bool {
        self.status == 200 && self.error.is_empty() && !self.access_key_id.is_empty()
    }
}

impl fmt::Display for Answer {
    /// When, how far it came, and what came of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, code, error, started_at, connected_seconds, first_byte_seconds, seconds, .. } =
            self;
        let [connected, first_byte, all] =
            [connected_seconds, first_byte_seconds, seconds].map(|seconds| seconds * 1e3);
        write!(
            f,
            "at {started_at:.3}: connected after {connected:.0} ms, first byte after {first_byte:.0} ms, "
        )?;
        write!(f, "ended after {all:.0} ms with {status} {code}{error}")
    }
}

impl Summary {
    /// Fails unless all credentials were those of this pod.
    pub(crate) fn ensure_own(&self, sts: &StsServer, namespace: &str, name: &str) -> Result<()> {
        for key in self.keys.keys() {
            let of = sts.session(key).map(|session| session.session_name);
            ensure!(
                of.as_deref() == Some(&format!("{namespace}.{name}")),
                "{name} got credentials of {of:?}"
            );
        }
        Ok(())
    }

    /// Fails unless every request was answered with credentials; otherwise says how many were.
    pub(crate) fn all_answered(&self) -> Result<String> {
        ensure!(
            self.failed == 0,
            "{} of {} requests failed; the longest {}; {}",
            self.failed,
            self.answers,
            self.slowest,
            self.failures.iter().chain(&self.refusals).map(Answer::to_string).collect::<Vec<_>>().join("; ")
        );
        Ok(format!(
            "{} of {} requests succeed, the longest after {:.0} ms",
            self.answers,
            self.answers,
            self.slowest.seconds * 1e3
        ))
    }
}

impl Pods {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), api: Api::namespaced(client, namespace) }
    }

    /// Makes a pod.
    pub(crate) async fn create(&self, manifest: &Value) -> Result<Pod> {
        let pod: Pod = serde_json::from_value(manifest.clone()).context("read the manifest")?;
        self.api
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("create pod {}/{}", self.namespace, manifest["metadata"]["name"]))
    }

    /// Whether a pod of this ServiceAccount would be pointed at the daemon if it were made now.
    pub(crate) async fn would_be_injected(&self, service_account: &str) -> Result<bool> {
        let pod: Pod = serde_json::from_value(probe("dry-run", service_account, &["once"]))?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let pod = self.api.create(&params, &pod).await.context("create a pod for the eye")?;
        let variables = pod.spec.and_then(|spec| spec.containers.into_iter().next()?.env).unwrap_or_default();
        Ok(variables.iter().any(|variable| variable.name == "AWS_CONTAINER_CREDENTIALS_FULL_URI"))
    }

    /// Waits until the first container of a pod has ended, and returns how.
    pub(crate) async fn ended(&self, name: &str) -> Result<ContainerStateTerminated> {
        wait_for(&self.api, name, |pod: Option<&Pod>| pod.and_then(terminated).is_some()).await?;
        let pod = self.api.get(name).await?;
        terminated(&pod).cloned().context("the container has ended")
    }

    /// What the probe of a pod says, once it has ended.
    pub(crate) async fn outcome<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let ended = self.ended(name).await?;
        let message = ended.message.unwrap_or_default();
        serde_json::from_str(&message).with_context(|| format!("read what {name} says: {message:?}"))
    }

    /// What each of these says.
    pub(crate) async fn outcomes<T: DeserializeOwned>(&self, names: &[String]) -> Result<Vec<T>> {
        try_join_all(names.iter().map(|name| self.outcome(name))).await
    }

    /// Waits until the containers of a pod run, and returns it.
    pub(crate) async fn running(&self, name: &str) -> Result<Pod> {
        wait_for(&self.api, name, |pod: Option<&Pod>| pod.is_some_and(is_running)).await?;
        Ok(self.api.get(name).await?)
    }

    /// Asks for the end of a pod.
    pub(crate) async fn delete(&self, name: &str, grace_seconds: u32) -> Result<()> {
        self.api.delete(name, &DeleteParams::default().grace_period(grace_seconds)).await?;
        Ok(())
    }

    /// Removes every pod of the namespace and waits until the API has none.
    pub(crate) async fn clear(&self) -> Result<()> {
        let clearing = async {
            let now = DeleteParams::default().grace_period(0);
            self.api.delete_collection(&now, &ListParams::default()).await?;
            while !self.api.list_metadata(&ListParams::default()).await?.items.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::time::timeout(CLEARED_WITHIN, clearing)
            .await
            .with_context(|| format!("{} still has pods after {CLEARED_WITHIN:?}", self.namespace))?
    }

    pub(crate) fn api(&self) -> &Api<Pod> {
        &self.api
    }
}

/// A pod of the probe, with these arguments.
pub(crate) fn probe(name: &str, service_account: &str, arguments: &[&str]) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": service_account,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "probe",
                "image": PROBE,
                "imagePullPolicy": "Never",
                "args": arguments,
                // Without any, whatever else the machine does could keep it from running for a second.
                "resources": {"requests": {"cpu": "50m"}},
            }],
        },
    })
}

/// The address of a pod on its network.
pub(crate) fn address(pod: &Pod) -> Result<String> {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has an address")
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.first()?.state.as_ref()?.terminated.as_ref()
}

fn is_running(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.is_some_and(|all| {
        !all.is_empty()
            && all.iter().all(|one| one.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
}
