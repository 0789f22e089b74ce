//! Events on pods: what keeps a pod from its credentials, told where its author looks.
//!
//! # Layout
//! What is worth an Event and in which words ([`Notice`]); which of them are told ([`Events`], by `window`), and the one
//! task that writes them ([`Publisher`]).
//!
//! Whoever has something to tell hands it over and goes on: no request waits for the API server.

mod notice;
mod publisher;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{sync::mpsc, time::Instant};

use self::window::{Verdict, Window};
pub use self::{
    notice::{Notice, Reason, Trust},
    publisher::Publisher,
};
use crate::identity::{PodIdentity, PodUid};

/// Most Events that wait to be written; the window lets no more through in a minute.
const QUEUE: usize = 64;

/// Takes what is to be told. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    window: Arc<Mutex<Window>>,
    queue: mpsc::Sender<Told>,
    metrics: Metrics,
}

/// An Event that is to be written.
#[derive(Debug)]
struct Told {
    pod: PodIdentity,
    notice: Notice,
}

/// What the Events show of themselves.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    events: Family<OutcomeLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Events {
    /// Tells nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// The handle and what its task takes from it.
    fn on(metrics: Metrics) -> (Self, mpsc::Receiver<Told>, Arc<Mutex<Window>>) {
        let (queue, told) = mpsc::channel(QUEUE);
        let window = Arc::new(Mutex::new(Window::default()));
        (Self(Some(Arc::new(Shared { window: window.clone(), queue, metrics }))), told, window)
    }

    /// Tells `notice` on `pod`, unless the same was told a while ago or too much is told. It never waits.
    pub fn tell(&self, pod: &PodIdentity, notice: Notice) {
        let Some(shared) = &self.0 else { return };
        let reason = notice.reason();
        let verdict = lock(&shared.window).admit(&pod.uid, reason, Instant::now());
        match verdict {
            Verdict::Repeats => {}
            Verdict::TooMany => shared.metrics.count("limited"),
            Verdict::Tell => {
                if shared.queue.try_send(Told { pod: pod.clone(), notice }).is_err() {
                    shared.metrics.count("dropped");
                    lock(&shared.window).take_back(&pod.uid, reason);
                }
            }
        }
    }
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "events",
            "Events on pods by outcome: written, failed (at the API server), dropped (it was too slow), limited (too \
             many pods at once); repeats are not counted",
            metrics.events.clone(),
        );
        // A counter that appears with its first failure cannot be alerted on with `increase`.
        for outcome in ["written", "failed", "dropped", "limited"] {
            drop(metrics.events.get_or_create(&OutcomeLabel { outcome }));
        }
        metrics
    }

    fn count(&self, outcome: &'static str) {
        self.events.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

// A window is a map and an instant, which code that does not panic changes together.
fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of a pod's reasons, as the window remembers it.
type Key = (PodUid, Reason);
