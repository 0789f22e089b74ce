//! What hand-overs show of themselves.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counts hand-overs. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    total: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    /// Which of the two daemons this one is: `old` or `new`.
    part: &'static str,
    result: &'static str,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    Done,
    /// The two would not understand or trust each other.
    Refused,
    /// One of the two ended or was silent in the middle; the old one serves on where it lives.
    Failed,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "handovers",
            "Hand-overs by this daemon's part and by result",
            metrics.total.clone(),
        );
        // A counter that appears with its first failure cannot be alerted on with `increase`.
        for part in ["old", "new"] {
            for result in ["done", "refused", "failed"] {
                drop(metrics.total.get_or_create(&Labels { part, result }));
            }
        }
        metrics
    }

    /// One to the next daemon.
    pub fn gave(&self, result: Result) {
        self.count("old", result);
    }

    /// One from the daemon before.
    pub fn took(&self, result: Result) {
        self.count("new", result);
    }

    fn count(&self, part: &'static str, result: Result) {
        let result = match result {
            Result::Done => "done",
            Result::Refused => "refused",
            Result::Failed => "failed",
        };
        self.total.get_or_create(&Labels { part, result }).inc();
    }
}
