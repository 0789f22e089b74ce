//! Finds pods that should have been injected and were not, such as those made while nobody answered the API server.
//!
//! Two streams show pods, each slimmed to a few fields while it is parsed, and keep none. A watch shows the pods that
//! have not started, so each pod of the cluster passes by once in its life, and not with every change of its status. A
//! [`sweep`] turns all the pages of pods once at the start, once after a gap in the watch, and then each hour: it finds
//! what was made before, and what lacks credentials since its ServiceAccount was given a role.
//!
//! The few that look as if they lacked something are remembered ([`verdicts`]) and fetched whole, one after the other
//! ([`look`]); where the same decision as in a review would inject, the pod is told so by an Event. With several replicas
//! each finds the same pods; the Event's name is made of the pod, so that there is one.

pub mod look;
pub mod object;
mod scope;
pub mod sweep;
mod verdicts;

use std::pin::pin;

use futures_util::{Stream, StreamExt, future::OptionFuture};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::warn;

use self::{
    look::{Look, Looked},
    object::PodObject,
    verdicts::{Suspect, Verdicts},
};
use crate::{
    cache::Known,
    kubernetes::{PAGE, told},
    pod::PodView,
    policy::Policy,
};
use rolecall_process::time::Clock;

/// A pod is created so, and leaves this phase once and for all.
const NOT_STARTED: &str = "status.phase=Pending";

/// What is found.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    missed: Gauge,
    found: Counter,
    errors: Counter,
    swept: Counter,
}

/// Looks at every pod that the streams show.
pub struct Missed {
    known: Known,
    policy: Policy,
    /// The name of the webhook's own configuration, which says whose pods are left out.
    configuration: String,
    client: Client,
    clock: Clock,
    metrics: Metrics,
    verdicts: Verdicts,
    /// Whether the first list of the watch has begun: a later one means that some pods may have passed by unseen.
    watched: bool,
    /// Whether the last answer of the watch, or of the sweep, was an error.
    lost: (bool, bool),
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
            "Failures to see pods, to look at one or to tell it, each tried again; and suspects without room",
            metrics.errors.clone(),
        );
        registry.register(
            "shim_missed_injection_pods_swept",
            "Pods that were seen while all pods of the cluster were listed",
            metrics.swept.clone(),
        );
        metrics
    }
}

/// The pods of the whole cluster that have not started, retried for ever with growing pauses.
pub fn stream(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<PodObject>>> {
    let api: Api<PodObject> = Api::all_with(client, &object::resource());
    watcher(api, watcher::Config::default().page_size(PAGE).fields(NOT_STARTED)).default_backoff()
}

impl Missed {
    pub fn new(
        known: Known,
        policy: Policy,
        configuration: String,
        client: Client,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let (verdicts, watched, lost) = (Verdicts::default(), false, (false, false));
        Self { known, policy, configuration, client, clock, metrics, verdicts, watched, lost }
    }

    /// Looks at what `stream` brings, and at all pods now and then; ends with the stream.
    pub async fn run(mut self, stream: impl Stream<Item = watcher::Result<watcher::Event<PodObject>>>) {
        let mut stream = pin!(stream);
        let (again, asked) = sweep::asking();
        let mut pages = pin!(sweep::pages(self.client.clone(), asked));
        let (suspects, queue) = mpsc::channel(1);
        let mut looks = pin!(self.looks(queue));
        loop {
            if let Ok(place) = suspects.try_reserve()
                && let Some(suspect) = self.verdicts.next(Instant::now())
            {
                place.send(suspect);
            }
            let due = self.verdicts.due().filter(|_| 0 < suspects.capacity());
            tokio::select! {
                item = stream.next() => match item {
                    None => return,
                    Some(Ok(event)) => {
                        self.lost.0 = false;
                        if self.follow(event) {
                            again.ask();
                        }
                    }
                    Some(Err(error)) => {
                        let was_lost = std::mem::replace(&mut self.lost.0, true);
                        self.failed(was_lost, "watch", &error);
                    }
                },
                Some(page) = pages.next() => match page {
                    Ok(pods) => {
                        self.lost.1 = false;
                        self.metrics.swept.inc_by(pods.len() as u64);
                        pods.iter().for_each(|pod| self.see(pod));
                    }
                    Err(error) => {
                        let was_lost = std::mem::replace(&mut self.lost.1, true);
                        self.failed(was_lost, "list", &error);
                    }
                },
                Some(looked) = looks.next() => self.judge(looked),
                Some(()) = OptionFuture::from(due.map(sleep_until)) => {}
            }
            self.metrics.missed.set(i64::try_from(self.verdicts.missed()).unwrap_or(i64::MAX));
        }
    }

    /// Says whether pods may have passed by unseen.
    fn follow(&mut self, event: watcher::Event<PodObject>) -> bool {
        match event {
            watcher::Event::Init => return std::mem::replace(&mut self.watched, true),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => self.see(&pod),
            watcher::Event::InitDone => {}
            // It is gone, or it has started.
            watcher::Event::Delete(pod) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if object::is_over(&pod) {
                    self.verdicts.gone(uid);
                } else {
                    self.verdicts.look_again(uid, Instant::now());
                }
            }
        }
        false
    }

    fn see(&mut self, pod: &PodObject) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        if object::is_over(pod) {
            self.verdicts.gone(uid);
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
            is_told: false,
        };
        if !self.verdicts.suspect(suspect, Instant::now()) {
            self.metrics.errors.inc();
        }
    }

    fn judge(&mut self, looked: Looked) {
        if self.verdicts.judge(&looked.suspect, looked.finding, Instant::now()) {
            self.metrics.found.inc();
        }
    }

    /// Looks closely at one suspect after the other.
    fn looks(&self, queue: mpsc::Receiver<Suspect>) -> impl Stream<Item = Looked> + use<> {
        let look = Look::new(
            self.known.clone(),
            self.policy.clone(),
            self.configuration.clone(),
            self.client.clone(),
            self.clock.clone(),
            self.metrics.errors.clone(),
        );
        futures_util::stream::unfold((queue, look), |(mut queue, mut look)| async move {
            let suspect = queue.recv().await?;
            let looked = look.at(suspect).await;
            Some((looked, (queue, look)))
        })
    }

    fn failed(&self, was_lost: bool, what: &'static str, error: &(dyn std::error::Error + 'static)) {
        self.metrics.errors.inc();
        if !was_lost {
            warn!(
                error = told(error),
                "cannot {what} pods (the shim needs get, list and watch for them, or --missed-injection=off); \
                 missed injections are not found until it can"
            );
        }
    }
}

#[cfg(test)]
mod tests;
