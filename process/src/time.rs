//! The wall clock, the only place that asks for it, and its text form.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the wall-clock time, which expiries are compared with.
///
/// Timers run on tokio's clock; what AWS and Kubernetes write into documents is wall-clock time. A clock is a
/// value, so that a test can tie it to tokio's paused time. Cloning is cheap.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The clock of the machine.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// A clock that tells what `now` says.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// A clock that starts at `start` and goes with tokio's, paused or not.
    #[must_use]
    pub fn following_tokio(start: SystemTime) -> Self {
        let began = tokio::time::Instant::now();
        Self::from_fn(move || start + began.elapsed())
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// What is left until `at`; zero once it has passed.
    #[must_use]
    pub fn until(&self, at: SystemTime) -> Duration {
        at.duration_since(self.now()).unwrap_or_default()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ`, rounded down to the second: the one form of an instant that every AWS SDK reads.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::from_second(unix_seconds(at)).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Whole seconds since 1970, rounded down; times before it count as zero.
#[must_use]
pub fn unix_seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// The instant of a number of seconds since 1970; earlier ones count as 1970.
#[must_use]
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_has_no_fraction_and_no_offset() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_272_721_999);
        assert_eq!(rfc3339(at), "2026-11-21T14:52:01Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_follows_tokio_stands_still_with_it() {
        let clock = Clock::following_tokio(UNIX_EPOCH);
        assert_eq!(clock.now(), UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), UNIX_EPOCH + Duration::from_secs(3600));
        assert_eq!(clock.until(UNIX_EPOCH + Duration::from_secs(3601)), Duration::from_secs(1));
        assert_eq!(clock.until(UNIX_EPOCH), Duration::ZERO);
    }
}
