//! What the metrics say of reviews. No label's values can grow.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::mutate::Outcome;

/// The metrics of the webhook. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Metrics {
    reviews: Family<OutcomeLabel, Counter>,
    unanswered: Family<ReasonLabel, Counter>,
    duration: Histogram,
    cpu: Histogram,
    pub(super) open: Gauge,
    pub(super) displaced: Counter,
    pub(super) refused: Counter,
    pub(super) accept_errors: Counter,
    pub(super) handshake_errors: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Why a call got no review as its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It was none: another path, method, type or size.
    NotAReview,
    /// It was one that cannot be read.
    Malformed,
    /// It came before everything was known.
    NotReady,
    /// The bodies of others take all the memory that bodies may take.
    NoRoom,
    /// Making the answer panicked.
    Panicked,
}

impl Unanswered {
    const ALL: [Self; 5] = [Self::NotAReview, Self::Malformed, Self::NotReady, Self::NoRoom, Self::Panicked];

    fn as_str(self) -> &'static str {
        match self {
            Self::NotAReview => "not_a_review",
            Self::Malformed => "malformed",
            Self::NotReady => "not_ready",
            Self::NoRoom => "no_room",
            Self::Panicked => "panicked",
        }
    }
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            unanswered: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 2.5, 13)),
            cpu: Histogram::new(exponential_buckets(0.000_01, 2.5, 10)),
            open: Gauge::default(),
            displaced: Counter::default(),
            refused: Counter::default(),
            accept_errors: Counter::default(),
            handshake_errors: Counter::default(),
        };
        // Looked up, so that each is shown from the start.
        for outcome in Outcome::ALL {
            let _ = metrics.reviews.get_or_create(&OutcomeLabel { outcome: outcome.as_str() });
        }
        for reason in Unanswered::ALL {
            let _ = metrics.unanswered.get_or_create(&ReasonLabel { reason: reason.as_str() });
        }
        registry.register("shim_reviews", "Reviews by what became of them", metrics.reviews.clone());
        registry.register(
            "shim_calls_unanswered",
            "Calls that got no review as their answer, by reason",
            metrics.unanswered.clone(),
        );
        registry.register(
            "shim_review_duration_seconds",
            "Time from a review's last byte to its answer, waiting for a ServiceAccount included",
            metrics.duration.clone(),
        );
        registry.register(
            "shim_review_work_seconds",
            "Time of that in which the answer was made, without waiting",
            metrics.cpu.clone(),
        );
        registry.register("shim_connections_open", "Open connections", metrics.open.clone());
        registry.register(
            "shim_connections_displaced",
            "Idle connections that were closed for those of peers that hold fewer, all places being taken",
            metrics.displaced.clone(),
        );
        registry.register(
            "shim_connections_refused",
            "Connections that were closed at once, all places being taken by peers that hold fewer or are busy",
            metrics.refused.clone(),
        );
        registry.register(
            "shim_accept_errors",
            "Failures to accept a connection",
            metrics.accept_errors.clone(),
        );
        registry.register(
            "shim_handshake_errors",
            "Connections that ended before TLS was set up; a steady rate may mean that caBundle is wrong",
            metrics.handshake_errors.clone(),
        );
        metrics
    }

    pub(super) fn reviewed(&self, outcome: Outcome, duration: Duration, work: Duration) {
        self.reviews.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
        self.duration.observe(duration.as_secs_f64());
        self.cpu.observe(work.as_secs_f64());
    }

    pub(super) fn unanswered(&self, reason: Unanswered) {
        self.unanswered.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }
}
