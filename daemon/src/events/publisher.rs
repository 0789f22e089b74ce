//! Writes Events, one after the other.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};
use tracing::{debug, error, info, warn};

use super::{Events, Metrics, Told, lock, notice::Trust, window::Window};
use crate::identity::PodIdentity;

/// Who reports; part of what tells one Event from another.
const CONTROLLER: &str = "rolecall.dev/daemon";

/// Longest name of a reporting instance that the API server takes, in bytes.
const MAX_INSTANCE_LENGTH: usize = 128;

/// Longest time that one Event may take: those that wait behind it are news.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells the cluster's issuer, once it is known.
type Issuer = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The task that writes Events.
pub struct Publisher {
    client: Client,
    reporter: Reporter,
    told: mpsc::Receiver<Told>,
    window: Arc<Mutex<Window>>,
    metrics: Metrics,
    issuer: Issuer,
    audience: String,
    /// Why the last one failed, for the log.
    fails: Option<Failure>,
}

/// Why an Event was not written, as far as it makes a difference to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The daemon lacks the right.
    Forbidden,
    /// The pod's namespace is being deleted, and takes nothing new.
    NamespaceEnds,
    /// The API server does not take it.
    Refused,
    /// The API server did not answer.
    Unreachable,
}

impl Publisher {
    /// The task, and the handle that feeds it. `node` is the node of this daemon; `issuer` and `audience` are what trust
    /// policies have to name.
    pub fn new(
        client: Client,
        node: &str,
        issuer: impl Fn() -> Option<String> + Send + Sync + 'static,
        audience: String,
        metrics: Metrics,
    ) -> (Self, Events) {
        let instance = node[..node.floor_char_boundary(MAX_INSTANCE_LENGTH)].to_owned();
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(instance) };
        let (events, told, window) = Events::on(metrics.clone());
        (
            Self { client, reporter, told, window, metrics, issuer: Box::new(issuer), audience, fails: None },
            events,
        )
    }

    /// Writes what is told, until every handle is gone.
    pub async fn run(mut self) {
        while let Some(told) = self.told.recv().await {
            match self.publish(&told).await {
                Ok(()) => {
                    self.metrics.count("written");
                    if self.fails.take().is_some() {
                        info!("Events are written again");
                    }
                }
                Err(failure) => {
                    self.metrics.count("failed");
                    lock(&self.window).take_back(&told.pod.uid, told.notice.reason());
                    self.log(failure, &told.pod);
                }
            }
        }
    }

    async fn publish(&self, Told { pod, notice }: &Told) -> Result<(), Failure> {
        let issuer = (self.issuer)();
        let trust = Trust { issuer: issuer.as_deref(), audience: &self.audience };
        let event = Event {
            type_: EventType::Warning,
            reason: notice.reason().as_str().to_owned(),
            note: Some(notice.note(pod, trust)),
            action: "ProvideCredentials".to_owned(),
            secondary: notice.related().map(reference),
        };
        // A recorder that remembered would amend the former Event, whose words may be out of date, and would need the
        // right to patch it.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        match timeout(PATIENCE, recorder.publish(&event, &reference(pod))).await {
            Ok(published) => published.map_err(|error| Failure::of(&error)),
            Err(_) => Err(Failure::Unreachable),
        }
    }

    /// Once for as long as it fails for the same cause: there may be one for each pod.
    fn log(&mut self, failure: Failure, pod: &PodIdentity) {
        let mut is_news = || self.fails.replace(failure) != Some(failure);
        match failure {
            Failure::NamespaceEnds => debug!(%pod, "no Event: the namespace of the pod is being deleted"),
            Failure::Forbidden if is_news() => error!(
                "cannot write Events: allow the daemon's ServiceAccount to create events of the API group \
                 events.k8s.io in every namespace, or set --events=off"
            ),
            Failure::Refused if is_news() => {
                warn!(%pod, "cannot write an Event: the API server does not take it");
            }
            Failure::Unreachable if is_news() => {
                warn!("cannot write an Event: the API server does not answer");
            }
            Failure::Forbidden | Failure::Refused | Failure::Unreachable => {}
        }
    }
}

impl Failure {
    /// The text of the error is left out: it may quote whatever was answered.
    fn of(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unreachable };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        match status.code {
            _ if causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                Self::NamespaceEnds
            }
            401 | 403 => Self::Forbidden,
            429 | 500.. => Self::Unreachable,
            _ => Self::Refused,
        }
    }
}

fn reference(pod: &PodIdentity) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
