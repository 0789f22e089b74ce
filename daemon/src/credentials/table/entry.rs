//! One key of the table: what it holds, what is done for it, and what a result means to it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Now, Ticket, Work};
use crate::credentials::{Credentials, SessionRequest, exchange::FetchError, policy, queue::Priority};

/// All that is known of one key.
pub(super) struct Entry {
    /// Tells this entry from a later one of the same key.
    pub(super) generation: u64,
    pub(super) request: SessionRequest,
    /// Wanted by the pod itself, not only by a request; kept until forgotten.
    pub(super) is_warmed: bool,
    /// The last time that a request wanted it.
    pub(super) asked_at: Instant,
    pub(super) phase: Phase,
    /// Since when the token has been waited for, while it is looked for anew.
    pub(super) awaited_since: Option<Instant>,
    pub(super) status: watch::Sender<Status>,
    /// When to refresh what is valid.
    pub(super) refresh_at: SystemTime,
    /// The soonest that a waiting request may have the next attempt.
    pub(super) retry_at: Instant,
    /// Transient failures in a row.
    pub(super) failures: u32,
    /// Refusals in a row.
    pub(super) refusals: u32,
    /// When it was due unasked before the table was frozen.
    pub(super) was_due_at: Option<Instant>,
    /// The daemon before this one is fetching it; to be asked once.
    pub(super) is_under_way_before: bool,
    /// Ends whatever is under way for this entry when it goes.
    pub(super) alive: CancellationToken,
    _ends_with_it: DropGuard,
}

/// What is being done for a key.
pub(super) enum Phase {
    Idle,
    Fetching,
    AwaitingToken { since: Instant, _ends_with_it: DropGuard },
}

/// What is known of a key, as its waiters see it.
#[derive(Clone, Default)]
pub(in crate::credentials) struct Status {
    pub(super) credentials: Option<Arc<Credentials>>,
    /// STS issued again and gave nothing that lasts longer, so waiting for better is in vain.
    pub(super) is_best: bool,
    /// Why the last finished attempt failed.
    pub(super) failure: Option<FetchError>,
    /// The failure that requests are told at once, and until when.
    pub(super) remembered: Option<(FetchError, Instant)>,
    pub(super) gone: bool,
}

impl Status {
    /// What the waiters of a forgotten pod are told.
    pub(super) fn gone() -> Self {
        Self { gone: true, ..Self::default() }
    }

    /// What a request gets without waiting, which has just come or `waits` already.
    ///
    /// A failure that may pass is remembered for requests that come after it: whoever waits has its own time to
    /// the end, and what is tried behind it goes on.
    pub(in crate::credentials) fn outcome(
        &self,
        now: Now,
        waits: bool,
    ) -> Option<Result<Arc<Credentials>, FetchError>> {
        if self.gone {
            return Some(Err(FetchError::PodGone));
        }
        if let Some(credentials) = self.hand_out(now.wall) {
            return Some(Ok(credentials.clone()));
        }
        let remembered = self.remembered(now.at).filter(|error| !waits || !error.is_transient());
        remembered.map(|error| Err(error.clone()))
    }

    /// Credentials that are good to hand out; below the floor only where none better are to be had.
    pub(in crate::credentials) fn hand_out(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        let better_is_to_be_had = !self.is_best && self.failure.is_none();
        self.valid(now).filter(|it| !better_is_to_be_had || policy::is_above_floor(it, now))
    }

    /// Credentials that have not expired.
    pub(in crate::credentials) fn valid(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        self.credentials.as_ref().filter(|it| !self.gone && it.is_valid_at(now))
    }

    pub(super) fn remembered(&self, now: Instant) -> Option<&FetchError> {
        self.remembered.as_ref().filter(|(_, until)| now < *until).map(|(error, _)| error)
    }
}

impl Entry {
    /// A key that nothing is known of yet.
    pub(super) fn new(generation: u64, request: SessionRequest, is_warmed: bool, now: Now) -> Self {
        let alive = CancellationToken::new();
        Self {
            generation,
            request,
            is_warmed,
            asked_at: now.at,
            phase: Phase::Idle,
            awaited_since: None,
            status: watch::Sender::new(Status::default()),
            refresh_at: now.wall,
            retry_at: now.at,
            failures: 0,
            refusals: 0,
            was_due_at: None,
            is_under_way_before: false,
            _ends_with_it: alive.clone().drop_guard(),
            alive,
        }
    }

    pub(super) fn work(&self) -> Work {
        Work {
            ticket: Ticket { key: self.request.key.clone(), generation: self.generation },
            request: self.request.clone(),
            alive: self.alive.clone(),
            elsewhere: None,
        }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        0 < self.status.receiver_count()
    }

    pub(super) fn priority(&self, now: Now) -> Priority {
        if self.is_waited_for() { Priority::RealTime } else { self.priority_unasked(now) }
    }

    pub(super) fn priority_unasked(&self, now: Now) -> Priority {
        match self.status.borrow().valid(now.wall) {
            Some(_) => Priority::Background,
            None => Priority::Warmup(self.request.urgency),
        }
    }

    /// Whether nothing is lost by dropping it: only a request wanted it, in vain, and none waits any more.
    ///
    /// A refusal makes it so as soon as it is no longer remembered, so that a typo does not keep one of the pod's
    /// places. What may yet succeed is tried for a while longer: the client's retry finds it done.
    pub(super) fn is_abandoned(&self, now: Now) -> bool {
        let status = self.status.borrow();
        let Some(failure) = &status.failure else {
            return false;
        };
        let lasting = !failure.is_transient() || self.asked_at + policy::KEEP_UNASKED <= now.at;
        !self.is_warmed
            && !self.is_waited_for()
            && !matches!(self.phase, Phase::Fetching)
            && status.valid(now.wall).is_none()
            && status.remembered(now.at).is_none()
            && lasting
    }

    /// Takes fresh credentials; those it has stay where they last longer.
    pub(super) fn take(&mut self, fresh: Arc<Credentials>, now: Now) {
        self.failures = 0;
        self.refusals = 0;
        self.retry_at = now.at;
        self.refresh_at = policy::refresh_at(fresh.issued_at(), fresh.expires_at(), fastrand::f64());
        self.status.send_modify(|status| {
            status.failure = None;
            status.remembered = None;
            let held_until = status.credentials.as_ref().map(|held| held.expires_at());
            status.is_best = held_until.is_some_and(|until| fresh.expires_at() <= until);
            if !status.is_best {
                status.credentials = Some(fresh);
            }
        });
    }

    /// Takes a failure that may pass, and says when to try again.
    pub(super) fn fail(&mut self, error: FetchError, now: Now) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let left = self.left(now);
        let longest = left.map_or(policy::RETRY_UNASKED, policy::longest_retry);
        let jitter = fastrand::f64();
        self.retry_at =
            now.at + policy::retry_in(self.failures, longest.min(policy::RETRY_WAITED_FOR), jitter);
        self.status.send_modify(|status| status.failure = Some(error));
        if self.is_waited_for() {
            return self.retry_at;
        }
        now.at + policy::retry_in(self.failures, longest, jitter)
    }

    /// Takes a failure that will last for a while, and says when to look again unasked.
    pub(super) fn refuse(&mut self, error: FetchError, now: Now) -> Instant {
        self.failures = 0;
        self.refusals = self.refusals.saturating_add(1);
        let until = now.at + policy::remember_refusal(self.refusals);
        self.retry_at = until;
        self.status.send_modify(|status| {
            status.failure = Some(error.clone());
            status.remembered = Some((error, until));
        });
        let unasked = match self.left(now) {
            None if !self.is_warmed => return until,
            None => policy::ask_again_in(self.refusals, fastrand::f64()),
            Some(left) => policy::ask_again_in(self.refusals, fastrand::f64()).min(left / 4),
        };
        until.max(now.at + unasked)
    }

    /// How long what is valid stays so.
    fn left(&self, now: Now) -> Option<Duration> {
        let status = self.status.borrow();
        let until = status.valid(now.wall)?.handed_out_until();
        until.duration_since(now.wall).ok()
    }
}
