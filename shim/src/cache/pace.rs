//! Limits how often something is done.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// So many at once, and so many a second.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    burst: f64,
    state: Mutex<(f64, Instant)>,
}

impl Pace {
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, state: Mutex::new((burst, Instant::now())) }
    }

    /// Takes one, if there is one.
    pub fn take(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gained = now.saturating_duration_since(state.1).as_secs_f64() * self.per_second;
        let left = (state.0 + gained).min(self.burst);
        let taken = 1.0 <= left;
        *state = (if taken { left - 1.0 } else { left }, now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_followed_by_so_many_a_second() {
        let pace = Pace::new(10, 3);
        let taken = || (0..20).filter(|_| pace.take()).count();
        assert_eq!(taken(), 3);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(), 1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(), 3);
    }
}
