//! A closer look at one pod: fetched whole, put before the same decision as in a review, and told what it lacks.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Namespace, ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ObjectMeta, PostParams},
    core::ApiResource,
};
use moka::sync::Cache;
use prometheus_client::metrics::counter::Counter;
use rolecall_process::time::{Clock, unix_seconds};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{
    scope::{Labels, Scope},
    verdicts::{Finding, Suspect},
};
use crate::{
    cache::Known,
    kubernetes::told,
    mutate::{Outcome, mutate},
    pod::PodView,
    policy::Policy,
};

/// Pause after each look, which costs the API server a read.
const PAUSE: Duration = Duration::from_millis(50);

/// A pod older than this gets no Event: nobody looks for news of it, and after the shim came to a cluster for the first
/// time there may be thousands.
const NEWS_FOR: Duration = Duration::from_secs(3600);

/// How long the labels of a namespace and the webhook's configuration count, and for how many namespaces they are kept.
const KNOWN_FOR: Duration = Duration::from_secs(60);
const NAMESPACES: u64 = 10_000;

const REASON: &str = "RolecallNotInjected";

/// What a look needs.
pub(super) struct Look {
    known: Known,
    policy: Policy,
    client: Client,
    clock: Clock,
    errors: Counter,
    /// The name of the webhook's own configuration.
    configuration: String,
    /// What that said, and until when it counts.
    scope: Option<(Arc<Scope>, Instant)>,
    /// The labels of namespaces.
    namespaces: Cache<String, Arc<Labels>>,
    scoping: Trouble,
    reading: Trouble,
    telling: Trouble,
}

/// The trouble that was last logged, so that it is said once and not for each pod.
#[derive(Default)]
struct Trouble(Option<String>);

/// What a look found.
pub(super) struct Looked {
    /// Whether it is told may have changed.
    pub(super) suspect: Suspect,
    pub(super) finding: Finding,
}

/// A look that the API server did not allow for.
struct Failed;

impl Look {
    pub(super) fn new(
        known: Known,
        policy: Policy,
        configuration: String,
        client: Client,
        clock: Clock,
        errors: Counter,
    ) -> Self {
        let namespaces = Cache::builder().max_capacity(NAMESPACES).time_to_live(KNOWN_FOR).build();
        let (scoping, reading, telling) = (Trouble::default(), Trouble::default(), Trouble::default());
        let scope = None;
        Self {
            known,
            policy,
            client,
            clock,
            errors,
            configuration,
            scope,
            namespaces,
            scoping,
            reading,
            telling,
        }
    }

    pub(super) async fn at(&mut self, mut suspect: Suspect) -> Looked {
        let finding = match self.lacks(&suspect).await {
            Ok(true) => Finding::Missed,
            Ok(false) => Finding::Fine,
            Err(Failed) => Finding::Unknown,
        };
        if finding == Finding::Missed && !suspect.is_told {
            let Suspect { namespace, name, .. } = &suspect;
            info!(namespace, name, "a pod was not injected");
            let age = unix_seconds(self.clock.now()).saturating_sub(suspect.created);
            let is_news = u64::try_from(age).unwrap_or(0) <= NEWS_FOR.as_secs();
            suspect.is_told = !is_news || self.tell(&suspect).await.is_ok();
        }
        sleep(PAUSE).await;
        Looked { suspect, finding }
    }

    async fn lacks(&mut self, suspect: &Suspect) -> Result<bool, Failed> {
        let Suspect { namespace, name, uid, .. } = suspect;
        let namespace_labels = self.labels_of(namespace).await?;
        let scope = self.scope().await?;
        if !scope.has_namespace(&namespace_labels) {
            return Ok(false);
        }
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let pod = match api.get_opt(name).await {
            Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(uid) => pod,
            Ok(Some(_) | None) => return Ok(false),
            Err(error) => return Err(self.cannot_read("a pod", &error)),
        };
        self.reading.is_over();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let is_asked = scope.has_pod(&namespace_labels, &labels);
        if !is_asked || pod.metadata.deletion_timestamp.is_some() || is_over(&pod.data) {
            return Ok(false);
        }
        let Ok(pod) = serde_json::to_value(pod) else { return Ok(false) };
        Ok(would_inject(&self.known, &self.policy, namespace, &pod))
    }

    async fn labels_of(&mut self, namespace: &str) -> Result<Arc<Labels>, Failed> {
        if let Some(known) = self.namespaces.get(namespace) {
            return Ok(known);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let labels = match api.get_metadata_opt(namespace).await {
            Ok(found) => found.and_then(|found| found.metadata.labels).unwrap_or_default(),
            Err(error) => return Err(self.cannot_read("the labels of a namespace", &error)),
        };
        let labels = Arc::new(labels);
        self.namespaces.insert(namespace.to_owned(), labels.clone());
        Ok(labels)
    }

    /// Which pods the API server asks about. Where it will not say, as in a cluster that was set up before the shim
    /// looked, the label that ships counts.
    async fn scope(&mut self) -> Result<Arc<Scope>, Failed> {
        if let Some((scope, until)) = &self.scope
            && Instant::now() < *until
        {
            return Ok(scope.clone());
        }
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let scope = match api.get(&self.configuration).await {
            Ok(configuration) => {
                self.scoping.is_over();
                Scope::of(configuration)
            }
            Err(error) if is_refused(&error) => {
                self.errors.inc();
                if self.scoping.is_new(kind_of(&error)) {
                    warn!(
                        name = self.configuration,
                        error = told(&error),
                        "cannot read the MutatingWebhookConfiguration of --webhook-configuration (the shim needs get \
                         for it); of the namespaces that the webhook leaves out, only those with the label \
                         rolecall.dev/webhook=disabled are known"
                    );
                }
                Scope::shipped()
            }
            Err(error) => return Err(self.cannot_read("the webhook's configuration", &error)),
        };
        let scope = Arc::new(scope);
        self.scope = Some((scope.clone(), Instant::now() + KNOWN_FOR));
        Ok(scope)
    }

    async fn tell(&mut self, suspect: &Suspect) -> Result<(), Failed> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &suspect.namespace);
        match events.create(&PostParams::default(), &event(suspect, &self.clock)).await {
            Ok(_) => {}
            // Another replica has told it already, or this one before a restart.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                self.errors.inc();
                if self.telling.is_new(kind_of(&error)) {
                    warn!(
                        error = told(&error),
                        "cannot tell pods by Events that they were not injected (the shim needs create for events \
                         in events.k8s.io); they are counted all the same"
                    );
                }
                return Err(Failed);
            }
        }
        self.telling.is_over();
        Ok(())
    }

    fn cannot_read(&mut self, what: &str, error: &kube::Error) -> Failed {
        self.errors.inc();
        if self.reading.is_new(format!("{what}: {}", kind_of(error))) {
            warn!(
                error = told(error),
                "cannot read {what} (the shim needs get for pods and namespaces, or --missed-injection=off); some \
                 missed injections are not found until it can"
            );
        }
        Failed
    }
}

impl Trouble {
    /// Whether it is another one than the last.
    fn is_new(&mut self, trouble: String) -> bool {
        let is_new = self.0.as_ref() != Some(&trouble);
        self.0 = Some(trouble);
        is_new
    }

    fn is_over(&mut self) {
        self.0 = None;
    }
}

/// Whether asking again will not help.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [403, 404].contains(&status.code))
}

/// What tells two troubles apart: the text of most names an object.
fn kind_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
        kube::Error::SerdeError(_) => "not understood".to_owned(),
        _ => "not reached".to_owned(),
    }
}

fn is_over(pod: &Value) -> bool {
    matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

fn would_inject(known: &Known, policy: &Policy, namespace: &str, pod: &Value) -> bool {
    let view = PodView::new(pod);
    if view.check().is_err() {
        return false;
    }
    let decision = known.decide_now(namespace, view, policy);
    let mutation = mutate(pod, namespace, &decision, policy, 0);
    let is_injection = match mutation.outcome {
        Outcome::InjectedContainer | Outcome::InjectedIrsa | Outcome::InjectedContainerCredentials => true,
        Outcome::AlreadyInjected
        | Outcome::RoleMalformed
        | Outcome::Unbound
        | Outcome::SkippedEksPresent
        | Outcome::SkippedContainers
        | Outcome::SkippedMirror
        | Outcome::Conflict
        | Outcome::NotAPod
        | Outcome::Denied => false,
    };
    is_injection && !mutation.patch.is_empty()
}

fn event(suspect: &Suspect, clock: &Clock) -> Event {
    let Suspect { namespace, name, uid, .. } = suspect;
    let now = jiff::Timestamp::from_second(unix_seconds(clock.now())).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let start = name.get(..180).unwrap_or(name).trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            // The same of every replica: the API server takes the first.
            name: Some(format!("{start}.{uid}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(REASON.to_owned()),
        action: Some("Inject".to_owned()),
        note: Some(
            "The pod runs without the AWS credentials that its ServiceAccount asks for: the webhook did not \
             answer when the pod was created, or the role was given later. Delete the pod, so that its controller \
             makes it anew."
                .to_owned(),
        ),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("rolecall.dev/shim".to_owned()),
        reporting_instance: Some("rolecall-shim".to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn the_same_refusal_of_two_pods_is_one_trouble() {
        let refused = |pod: &str, code: u16| {
            let message = format!("events is forbidden in the namespace of {pod}");
            kind_of(&kube::Error::Api(Box::new(Status { code, message, ..Status::default() })))
        };
        let mut trouble = Trouble::default();
        assert!(trouble.is_new(refused("a", 403)));
        assert!(!trouble.is_new(refused("b", 403)));
        assert!(trouble.is_new(refused("b", 500)));
        trouble.is_over();
        assert!(trouble.is_new(refused("a", 500)));
    }
}
