//! Finds pods that should have been injected and were not, such as those made while nobody answered the API server.
//!
//! Every pod of the cluster passes by once, slimmed to a few fields, and none is kept. The few that look as if they
//! lacked something are fetched whole and put before the same decision as in a review; where that would inject, the
//! pod is told so by an Event. With several replicas each finds the same pods; the Event's name is made of the pod, so
//! that there is one.

pub mod object;

use std::{collections::HashMap, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ObjectMeta, PostParams},
    core::ApiResource,
    runtime::{WatchStreamExt, watcher},
};
use moka::sync::Cache;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde_json::Value;
use tokio::{sync::mpsc, time::sleep};
use tracing::{debug, info, warn};

use self::object::PodObject;
use crate::{
    cache::Known,
    kubernetes::{PAGE, told},
    mutate::{Outcome, mutate},
    pod::PodView,
    policy::Policy,
};
use rolecall_process::time::{Clock, unix_seconds};

/// Pods that wait for a closer look. More at once are left out: such a cluster has a trouble that shows without them.
const QUEUE: usize = 10_000;

/// Pause between two closer looks, which cost the API server a read each.
const PAUSE: Duration = Duration::from_millis(50);

/// A pod older than this gets no Event: nobody looks for news of it, and after the shim came to a cluster for the first
/// time there may be thousands.
const NEWS_FOR: Duration = Duration::from_secs(3600);

/// The label by which the shipped configuration leaves a whole namespace out.
const LEFT_OUT: (&str, &str) = ("rolecall.dev/webhook", "disabled");

/// How long the answer counts whether a namespace is left out.
const NAMESPACE_FOR: Duration = Duration::from_secs(60);

const REASON: &str = "RolecallNotInjected";

/// What is found.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    missed: Gauge,
    found: Counter,
    errors: Counter,
}

/// Looks at every pod that the watch shows.
pub struct Missed {
    known: Known,
    policy: Policy,
    client: Client,
    clock: Clock,
    metrics: Metrics,
    /// The pods that lack something, by uid, with the list that they were last in.
    lacking: HashMap<String, u32>,
    list: u32,
}

/// A pod to be looked at closely.
struct Suspect {
    namespace: String,
    name: String,
    uid: String,
    created: i64,
}

/// What a closer look found.
struct Looked {
    uid: String,
    lacks: bool,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "shim_pods_not_injected",
            "Pods that run without the credentials that they should have been given",
            metrics.missed.clone(),
        );
        registry.register(
            "shim_missed_injections",
            "Pods that were found to lack the credentials that they should have been given",
            metrics.found.clone(),
        );
        registry.register(
            "shim_missed_injection_errors",
            "Failures to watch pods, to look at one or to tell it; the watch is retried",
            metrics.errors.clone(),
        );
        metrics
    }
}

/// The pods of the whole cluster, retried for ever with growing pauses.
pub fn stream(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<PodObject>>> {
    let api: Api<PodObject> = Api::all_with(client, &object::resource());
    watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff()
}

impl Missed {
    pub fn new(known: Known, policy: Policy, client: Client, clock: Clock, metrics: Metrics) -> Self {
        Self { known, policy, client, clock, metrics, lacking: HashMap::new(), list: 0 }
    }

    /// Looks at what `stream` brings; ends with it.
    pub async fn run(mut self, stream: impl Stream<Item = watcher::Result<watcher::Event<PodObject>>>) {
        let mut stream = pin!(stream);
        let (suspects, queue) = mpsc::channel(QUEUE);
        let mut looks = pin!(self.looks(queue));
        let mut lost = false;
        loop {
            tokio::select! {
                item = stream.next() => match item {
                    None => return,
                    Some(Ok(event)) => {
                        lost = false;
                        self.follow(event, &suspects);
                    }
                    Some(Err(error)) => {
                        self.metrics.errors.inc();
                        if !std::mem::replace(&mut lost, true) {
                            warn!(
                                error = told(&error),
                                "cannot watch pods (the shim needs get, list and watch for them, or \
                                 --missed-injection=off); missed injections are not found until it can"
                            );
                        }
                    }
                },
                Some(looked) = looks.next() => {
                    if looked.lacks {
                        self.metrics.found.inc();
                        self.lacking.insert(looked.uid, self.list);
                    }
                }
            }
            self.metrics.missed.set(i64::try_from(self.lacking.len()).unwrap_or(i64::MAX));
        }
    }

    fn follow(&mut self, event: watcher::Event<PodObject>, suspects: &mpsc::Sender<Suspect>) {
        match event {
            watcher::Event::Init => self.list = self.list.wrapping_add(1),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => self.see(&pod, suspects),
            watcher::Event::InitDone => self.lacking.retain(|_, list| *list == self.list),
            watcher::Event::Delete(pod) => {
                self.lacking.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
        }
    }

    fn see(&mut self, pod: &PodObject, suspects: &mpsc::Sender<Suspect>) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        if object::is_over(pod) {
            self.lacking.remove(uid);
            return;
        }
        if let Some(list) = self.lacking.get_mut(uid) {
            *list = self.list;
            return;
        }
        if object::has_credentials(pod) || object::is_left_out(pod) {
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let sketch = object::sketch(pod);
        let decision = self.known.decide_now(&namespace, PodView::new(&sketch), &self.policy);
        if decision.binding.is_none() {
            return;
        }
        let suspect = Suspect {
            namespace,
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.to_owned(),
            created: object::created(pod),
        };
        if suspects.try_send(suspect).is_err() {
            self.metrics.errors.inc();
        }
    }

    /// Looks closely at one suspect after the other.
    fn looks(&self, queue: mpsc::Receiver<Suspect>) -> impl Stream<Item = Looked> + use<> {
        let look = Look {
            known: self.known.clone(),
            policy: self.policy.clone(),
            client: self.client.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            left_out: Cache::builder().max_capacity(QUEUE as u64).time_to_live(NAMESPACE_FOR).build(),
        };
        futures_util::stream::unfold((queue, look), |(mut queue, look)| async move {
            let suspect = queue.recv().await?;
            let lacks = look.at(&suspect).await;
            sleep(PAUSE).await;
            Some((Looked { uid: suspect.uid, lacks }, (queue, look)))
        })
    }
}

/// What a closer look needs.
struct Look {
    known: Known,
    policy: Policy,
    client: Client,
    clock: Clock,
    metrics: Metrics,
    /// Whether a namespace is left out.
    left_out: Cache<String, bool>,
}

impl Look {
    async fn at(&self, suspect: &Suspect) -> bool {
        let Suspect { namespace, name, uid, created } = suspect;
        if self.is_left_out(namespace).await {
            return false;
        }
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let pod = match api.get_opt(name).await {
            Ok(Some(pod)) => pod,
            Ok(None) => return false,
            Err(error) => {
                self.metrics.errors.inc();
                // An answer that cannot be parsed would show a pod's content in its text.
                debug!(namespace, name, kind = kind_of(&error), "cannot look at a pod");
                return false;
            }
        };
        if pod.metadata.uid.as_deref() != Some(uid) {
            return false;
        }
        let Ok(pod) = serde_json::to_value(pod) else { return false };
        if !would_inject(&self.known, &self.policy, namespace, &pod) {
            return false;
        }
        info!(namespace, name, "a pod was not injected");
        let age = unix_seconds(self.clock.now()).saturating_sub(*created);
        if u64::try_from(age).unwrap_or(0) <= NEWS_FOR.as_secs() {
            self.tell(suspect).await;
        }
        true
    }

    /// Whether the API server does not ask about the pods of this namespace.
    async fn is_left_out(&self, namespace: &str) -> bool {
        if let Some(known) = self.left_out.get(namespace) {
            return known;
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let labels = match api.get_metadata_opt(namespace).await {
            Ok(found) => found.and_then(|found| found.metadata.labels).unwrap_or_default(),
            Err(error) => {
                self.metrics.errors.inc();
                debug!(
                    namespace,
                    error = told(&error),
                    "cannot read the labels of a namespace (the shim needs get)"
                );
                return false;
            }
        };
        let left_out = labels.get(LEFT_OUT.0).is_some_and(|value| value == LEFT_OUT.1);
        self.left_out.insert(namespace.to_owned(), left_out);
        left_out
    }

    async fn tell(&self, suspect: &Suspect) {
        let Suspect { namespace, name, .. } = suspect;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match events.create(&PostParams::default(), &event(suspect, &self.clock)).await {
            Ok(_) => {}
            // Another replica has told it already, or this one before a restart.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                self.metrics.errors.inc();
                warn!(
                    namespace,
                    name,
                    error = told(&error),
                    "cannot write an Event (the shim needs create for events)"
                );
            }
        }
    }
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

fn kind_of(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(_) => "refused",
        kube::Error::SerdeError(_) => "not understood",
        _ => "not reached",
    }
}
