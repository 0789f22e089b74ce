//! A histogram of durations that takes no lock, for what every request observes.
//!
//! The one of prometheus-client is behind a mutex, which all connections would share. What is scraped is the same.

use std::{
    array, fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// The longest duration of each bucket but the last, in seconds: a warm answer to one that was given up.
pub(super) const BOUNDS: [f64; 10] =
    [0.0001, 0.0004, 0.0016, 0.0064, 0.0256, 0.1024, 0.4096, 1.6384, 6.5536, 26.2144];

/// The bucket of whatever takes longer than every bound.
const BEYOND: usize = BOUNDS.len();

/// How many requests took how long. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct DurationHistogram(Arc<Cells>);

/// Every core writes here, so nothing else lies on these cache lines; and in this order, so that the sum and the counts
/// of the short durations are on the same one.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Cells {
    /// Five centuries fit, of all durations together. What comes after looks like a restart to who scrapes it.
    nanoseconds: AtomicU64,
    /// Each duration is in one of these only; the encoder adds them up.
    counts: [AtomicU64; BEYOND + 1],
}

impl DurationHistogram {
    // Relaxed is enough here and below: no other memory is read on the strength of these numbers. Each of them only
    // rises, from one scrape to the next as well, and none has to agree with another.
    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BEYOND);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl EncodeMetric for DurationHistogram {
    /// The count is that of the buckets as they were read. The sum may be some requests ahead of it or behind.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let buckets: [(f64, u64); BEYOND + 1] = array::from_fn(|bucket| {
            let bound = BOUNDS.get(bucket).copied().unwrap_or(f64::INFINITY);
            (bound, self.0.counts[bucket].load(Ordering::Relaxed))
        });
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use std::thread;

    use prometheus_client::{
        metrics::histogram::{Histogram, exponential_buckets},
        registry::{Metric, Registry, Unit},
    };

    use super::*;

    fn text(metric: impl Metric) -> String {
        let mut registry = Registry::with_prefix("rolecall");
        registry.register_with_unit("request_duration", "Time", Unit::Seconds, metric);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[track_caller]
    fn check(durations: &[Duration]) {
        let ours = DurationHistogram::default();
        let theirs = Histogram::new(exponential_buckets(0.0001, 4.0, 10));
        for took in durations {
            ours.observe(*took);
            theirs.observe(took.as_secs_f64());
        }
        assert_eq!(text(ours), text(theirs), "{durations:?}");
    }

    #[test]
    fn a_scrape_reads_as_that_of_the_library() {
        check(&[]);
        // Powers of two of a second, which the library's sum of floats adds up exactly as well.
        check(&[9, 8, 5, 2, 1].map(|halvings| Duration::from_secs(1) / (1 << halvings)));
        check(&[1, 3, 26, 27, 3600].map(Duration::from_secs));
    }

    #[test]
    fn a_duration_on_a_bound_or_beside_it_is_counted_where_the_library_counts_it() {
        for bound in BOUNDS.map(Duration::from_secs_f64) {
            let nanosecond = Duration::from_nanos(1);
            for took in [bound - nanosecond, bound, bound + nanosecond] {
                check(&[took]);
            }
        }
        check(&[Duration::ZERO]);
    }

    #[test]
    fn no_observation_is_lost_between_threads() {
        let histogram = DurationHistogram::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(Duration::from_millis(1))));
            }
        });
        let text = text(histogram);
        for line in ["sum 4.0", "count 4000", "bucket{le=\"0.0016\"} 4000", "bucket{le=\"+Inf\"} 4000"] {
            assert!(text.contains(&format!("rolecall_request_duration_seconds_{line}\n")), "{text}");
        }
    }
}
