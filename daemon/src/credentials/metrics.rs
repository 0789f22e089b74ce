//! What the metrics say of credentials and of STS. No label's values can grow.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

use super::exchange::StsError;

/// The metrics of credentials. Cloning is cheap.
#[derive(Clone)]
pub struct Metrics {
    credentials: Family<StateLabel, Gauge>,
    sts_requests: Family<OutcomeLabel, Counter>,
    sts_duration: Family<OutcomeLabel, Histogram, StsBuckets>,
    sts_in_flight: Gauge,
    sts_concurrency_limit: Gauge,
    token_wait: Histogram,
}

/// How many keys there are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// A pod that asks gets credentials.
    pub(super) valid: usize,
    /// There is nothing yet: the first fetch is under way or to come.
    pub(super) pending: usize,
    /// There is nothing, and the last attempt failed.
    pub(super) failed: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone)]
struct StsBuckets;

const OUTCOMES: [&str; 5] = ["ok", "denied", "token_refused", "throttled", "unreachable"];

/// An attempt that is out; counts as in flight until dropped.
pub(super) struct InFlight(Gauge);

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        metrics.register_in(registry);
        metrics
    }

    pub(super) fn register_in(&self, registry: &mut Registry) {
        registry.register("credentials", "Credentials by state", self.credentials.clone());
        registry.register("sts_requests", "Attempts with STS by outcome", self.sts_requests.clone());
        registry.register(
            "sts_request_duration_seconds",
            "Time that STS took to answer one attempt",
            self.sts_duration.clone(),
        );
        registry.register(
            "sts_requests_in_flight",
            "Attempts with STS that have no answer yet",
            self.sts_in_flight.clone(),
        );
        registry.register(
            "sts_concurrency_limit",
            "Most attempts with STS that may be younger than a second; lowered by throttling",
            self.sts_concurrency_limit.clone(),
        );
        registry.register(
            "token_wait_seconds",
            "Time that a pod's token was waited for because it was not on disk yet",
            self.token_wait.clone(),
        );
    }

    pub(super) fn begin_attempt(&self) -> InFlight {
        self.sts_in_flight.inc();
        InFlight(self.sts_in_flight.clone())
    }

    pub(super) fn attempted<T>(&self, result: &Result<T, StsError>, took: Duration) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(StsError::Denied { .. }) => "denied",
            Err(StsError::TokenRefused { .. }) => "token_refused",
            Err(StsError::Throttled { .. }) => "throttled",
            Err(StsError::Unreachable { .. }) => "unreachable",
        };
        self.sts_requests.get_or_create(&OutcomeLabel { outcome }).inc();
        self.sts_duration.get_or_create(&OutcomeLabel { outcome }).observe(took.as_secs_f64());
    }

    pub(super) fn concurrency_limit(&self, limit: usize) {
        self.sts_concurrency_limit.set(gauge(limit));
    }

    pub(super) fn waited_for_token(&self, waited: Duration) {
        self.token_wait.observe(waited.as_secs_f64());
    }

    pub(super) fn set_counts(&self, counts: Counts) {
        let states = [("valid", counts.valid), ("pending", counts.pending), ("failed", counts.failed)];
        for (state, count) in states {
            self.credentials.get_or_create(&StateLabel { state }).set(gauge(count));
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            credentials: Family::default(),
            sts_requests: Family::default(),
            sts_duration: Family::new_with_constructor(StsBuckets),
            sts_in_flight: Gauge::default(),
            sts_concurrency_limit: Gauge::default(),
            token_wait: Histogram::new([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]),
        };
        metrics.set_counts(Counts::default());
        // A counter that appears with its first failure cannot be alerted on with `increase`.
        for outcome in OUTCOMES {
            drop(metrics.sts_requests.get_or_create(&OutcomeLabel { outcome }));
            drop(metrics.sts_duration.get_or_create(&OutcomeLabel { outcome }));
        }
        metrics
    }
}

impl MetricConstructor<Histogram> for StsBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.025, 0.05, 0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0])
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn the_metrics_have_the_names_that_operators_alert_on() {
        let metrics = Metrics::default();
        let mut registry = rolecall_process::metrics::registry();
        metrics.register_in(&mut registry);
        metrics.set_counts(Counts { valid: 3, pending: 2, failed: 1 });
        metrics.concurrency_limit(8);
        metrics.attempted(&Ok(()), Duration::from_millis(30));
        metrics.attempted::<()>(&Err(StsError::unreachable("timed out")), Duration::from_secs(15));
        metrics.waited_for_token(Duration::from_millis(300));
        let in_flight = metrics.begin_attempt();
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "credentials{state=\"valid\"} 3",
            "credentials{state=\"pending\"} 2",
            "credentials{state=\"failed\"} 1",
            "sts_requests_total{outcome=\"ok\"} 1",
            "sts_requests_total{outcome=\"denied\"} 0",
            "sts_requests_total{outcome=\"token_refused\"} 0",
            "sts_requests_total{outcome=\"unreachable\"} 1",
            "sts_request_duration_seconds_bucket{le=\"0.05\",outcome=\"ok\"} 1",
            "sts_requests_in_flight 1",
            "sts_concurrency_limit 8",
            "token_wait_seconds_count 1",
        ] {
            assert!(page.contains(line), "no {line} in\n{page}");
        }
        drop(in_flight);
        assert_eq!(metrics.sts_in_flight.get(), 0);
    }
}
