//! How fast the whole daemon may talk to STS: fewer exchanges at a time after each throttling, more with each answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::Notify, time::Instant};

use super::{metrics::Metrics, policy};

/// The bound on exchanges, shared by the worker and its fetches.
///
/// Additive increase, multiplicative decrease, as in TCP: the account's limit is shared with every other node, and
/// this finds a fair part of it without knowing them.
pub(super) struct Pace {
    state: Mutex<State>,
    most: usize,
    /// Wakes the worker when a place comes free.
    wake: Arc<Notify>,
    metrics: Metrics,
}

struct State {
    limit: usize,
    in_flight: usize,
    /// Throttlings in a row.
    throttles: u32,
    not_before: Option<Instant>,
    slowed_at: Option<Instant>,
    /// Answers since the limit last changed.
    answers: usize,
}

/// The right to have one attempt with STS out; ends when dropped.
pub(super) struct Place {
    pace: Arc<Pace>,
}

impl Pace {
    pub(super) fn new(most: usize, wake: Arc<Notify>, metrics: Metrics) -> Arc<Self> {
        let most = most.max(1);
        metrics.concurrency_limit(most);
        let state =
            State { limit: most, in_flight: 0, throttles: 0, not_before: None, slowed_at: None, answers: 0 };
        Arc::new(Self { state: Mutex::new(state), most, wake, metrics })
    }

    /// When the next exchange may begin; `None` while all places are taken.
    pub(super) fn free_at(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        (state.in_flight < state.limit).then(|| state.not_before.map_or(now, |at| at.max(now)))
    }

    /// Takes a place. The worker asks [`Pace::free_at`] first, and nobody else takes any but by [`Pace::spare`].
    pub(super) fn take(self: &Arc<Self>) -> Place {
        self.state().in_flight += 1;
        Place { pace: self.clone() }
    }

    /// A place for a second attempt, unless it would make a throttled STS worse.
    pub(super) fn spare(self: &Arc<Self>) -> Option<Place> {
        let state = self.state();
        let spare = state.in_flight < state.limit && state.throttles == 0;
        drop(state);
        spare.then(|| self.take())
    }

    /// STS answered an attempt that began at `began` without throttling it.
    ///
    /// An attempt that was out when STS throttled another says nothing of the slower pace. One more place is tried
    /// after as many answers as there are places: each round, as TCP does, and not each answer.
    pub(super) fn answered(&self, began: Instant) {
        let mut state = self.state();
        if state.slowed_at.is_some_and(|at| began <= at) {
            return;
        }
        state.throttles = 0;
        state.not_before = None;
        state.answers += 1;
        if state.limit <= state.answers && state.limit < self.most {
            state.limit += 1;
            state.answers = 0;
            self.metrics.concurrency_limit(state.limit);
        }
    }

    /// STS throttled an attempt that began at `began`. Attempts that were out together count once.
    pub(super) fn throttled(&self, began: Instant, now: Instant, jitter: f64) {
        let mut state = self.state();
        if state.slowed_at.is_some_and(|at| began <= at) {
            return;
        }
        state.throttles = state.throttles.saturating_add(1);
        state.limit = (state.limit / 2).max(1);
        state.answers = 0;
        state.not_before = Some(now + policy::throttle_pause(state.throttles, jitter));
        state.slowed_at = Some(now);
        self.metrics.concurrency_limit(state.limit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pace.state().in_flight -= 1;
        self.pace.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pace() -> Arc<Pace> {
        Pace::new(16, Arc::new(Notify::new()), Metrics::default())
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_halves_and_answers_add_one() {
        let pace = pace();
        let limit = || pace.state().limit;
        for expect in [8, 4, 2, 1, 1] {
            tokio::time::advance(Duration::from_secs(1)).await;
            pace.throttled(Instant::now(), Instant::now(), 1.0);
            assert_eq!(limit(), expect);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let answered = |times: usize| (0..times).for_each(|_| pace.answered(Instant::now()));
        for expect in [2, 3, 4] {
            answered(expect - 2);
            assert_eq!(limit(), expect - 1, "a round of answers is not over");
            answered(1);
            assert_eq!(limit(), expect);
        }
        answered(200);
        assert_eq!(limit(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_attempts_that_were_out_do_not_undo_a_throttling() {
        let pace = pace();
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let now = Instant::now();
        (0..8).for_each(|_| pace.throttled(began, now, 1.0));
        (0..8).for_each(|_| pace.answered(began));
        assert_eq!(pace.state().limit, 8);
        assert_eq!(pace.free_at(now), Some(now + Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_throttled_attempts_counts_once() {
        let pace = pace();
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        (0..16).for_each(|_| pace.throttled(began, Instant::now(), 1.0));
        assert_eq!(pace.state().limit, 8);
        assert_eq!(pace.free_at(Instant::now()), Some(Instant::now() + Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_throttlings_in_a_row_and_ends_with_an_answer() {
        let pace = pace();
        for expect in [500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            tokio::time::advance(Duration::from_secs(20)).await;
            let now = Instant::now();
            pace.throttled(now, now, 1.0);
            assert_eq!(pace.free_at(now), Some(now + Duration::from_millis(expect)));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.answered(Instant::now());
        assert_eq!(pace.free_at(Instant::now()), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_attempt_takes_a_place_of_its_own_and_none_while_throttled() {
        let pace = Pace::new(2, Arc::new(Notify::new()), Metrics::default());
        let first = pace.take();
        let second = pace.spare().expect("one is free");
        assert!(pace.spare().is_none());
        assert_eq!(pace.free_at(Instant::now()), None);
        drop((first, second));
        pace.throttled(Instant::now(), Instant::now(), 1.0);
        assert!(pace.spare().is_none());
    }
}
