//! How fast the whole daemon may talk to STS: fewer exchanges at a time after each throttling, more with each answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{metrics::Metrics, policy};

/// How long an exchange is young. STS answers within a tenth of that; one that is older waits on an STS that is
/// slow, and costs nobody anything.
const YOUNG: Duration = Duration::from_secs(1);

/// The bound on exchanges, shared by the worker and its fetches.
///
/// What is bounded tightly is how many are young: the rate at which a healthy STS is asked, and the rate at which a
/// slow one is. All exchanges together are bounded far more loosely, or a slow STS would serve few pods only: where
/// it takes 15 s and ten pods come each second, 150 exchanges are out.
///
/// Additive increase, multiplicative decrease, as in TCP: the account's limit is shared with every other node, and
/// this finds a fair part of it without knowing them.
pub(super) struct Pace {
    state: Mutex<State>,
    limits: Limits,
    /// Wakes the worker when a place comes free.
    wake: Arc<Notify>,
    metrics: Metrics,
}

/// Most attempts at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In all.
    pub(super) out: usize,
    /// Of those that are young.
    pub(super) young: usize,
}

struct State {
    /// What throttling has left of the limit of young ones.
    limit: usize,
    /// When each attempt that is out began; the numbers rise with time.
    out: BTreeMap<u64, Instant>,
    next_number: u64,
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
    number: u64,
}

impl Pace {
    pub(super) fn new(limits: Limits, wake: Arc<Notify>, metrics: Metrics) -> Arc<Self> {
        let out = limits.out.max(1);
        let limits = Limits { out, young: limits.young.clamp(1, out) };
        metrics.concurrency_limit(limits.young);
        let state = State {
            limit: limits.young,
            out: BTreeMap::new(),
            next_number: 0,
            throttles: 0,
            not_before: None,
            slowed_at: None,
            answers: 0,
        };
        Arc::new(Self { state: Mutex::new(state), limits, wake, metrics })
    }

    /// When the next exchange may begin; `None` while all places are taken.
    pub(super) fn free_at(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        let begins_at = state.not_before.map_or(now, |at| at.max(now));
        (state.out.len() < self.limits.out).then(|| begins_at.max(state.has_aged_at(now)))
    }

    /// Takes a place. The worker asks [`Pace::free_at`] first, and nobody else takes any but by [`Pace::spare`].
    pub(super) fn take(self: &Arc<Self>, now: Instant) -> Place {
        let mut state = self.state();
        let number = state.next_number;
        state.next_number += 1;
        state.out.insert(number, now);
        Place { pace: self.clone(), number }
    }

    /// A place for a second attempt, unless it would make a throttled STS worse.
    pub(super) fn spare(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let is_throttled = 0 < self.state().throttles;
        let is_free = self.free_at(now).is_some_and(|at| at <= now);
        (is_free && !is_throttled).then(|| self.take(now))
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
        if state.limit <= state.answers && state.limit < self.limits.young {
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

impl State {
    /// When one more may be young: now, or once enough of those that are out have aged.
    fn has_aged_at(&self, now: Instant) -> Instant {
        let ages_at = self.out.values().rev().nth(self.limit - 1).map(|began| *began + YOUNG);
        ages_at.map_or(now, |at| at.max(now))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pace.state().out.remove(&self.number);
        self.pace.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Arc<Pace> {
        Pace::new(Limits { out: 64, young: 16 }, Arc::new(Notify::new()), Metrics::default())
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
        let pace = Pace::new(Limits { out: 2, young: 2 }, Arc::new(Notify::new()), Metrics::default());
        let now = Instant::now();
        let first = pace.take(now);
        let second = pace.spare(now).expect("one is free");
        assert!(pace.spare(now).is_none());
        assert_eq!(pace.free_at(Instant::now()), None);
        drop((first, second));
        pace.throttled(Instant::now(), Instant::now(), 1.0);
        assert!(pace.spare(now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sts_is_asked_at_the_same_rate_up_to_the_bound_on_all() {
        let pace = pace();
        let mut places: Vec<_> = (0..16).map(|_| pace.take(Instant::now())).collect();
        for _ in 1..4 {
            let begun = Instant::now();
            assert_eq!(pace.free_at(begun), Some(begun + YOUNG));
            assert!(pace.spare(begun).is_none(), "second attempts count too");
            tokio::time::advance(YOUNG).await;
            assert_eq!(pace.free_at(Instant::now()), Some(Instant::now()));
            places.extend((0..16).map(|_| pace.take(Instant::now())));
        }
        tokio::time::advance(YOUNG).await;
        assert_eq!(pace.free_at(Instant::now()), None);
        places.pop();
        assert_eq!(pace.free_at(Instant::now()), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_makes_room_at_once() {
        let pace = pace();
        let mut places: Vec<_> = (0..16).map(|_| pace.take(Instant::now())).collect();
        places.remove(3);
        assert_eq!(pace.free_at(Instant::now()), Some(Instant::now()));
    }
}
