//! Who holds what: the one table of credentials, and every decision about them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    CredentialKey, Credentials, SessionRequest,
    exchange::FetchError,
    metrics::Counts,
    policy,
    queue::{Priority, Queue},
};
use crate::{identity::PodUid, time::Clock};

/// How long a pod that was forgotten cannot come back by a request: longer than any request lives.
const STAY_GONE: Duration = Duration::from_secs(60);

/// Both times: expiries are compared with the wall clock, waits are measured on tokio's.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: SystemTime,
    pub(super) at: Instant,
}

/// What is known of a key, as its waiters see it.
#[derive(Clone, Default)]
pub(super) struct Status {
    credentials: Option<Arc<Credentials>>,
    /// STS issued again and gave nothing that lasts longer, so waiting for better is in vain.
    is_best: bool,
    /// Why the last finished attempt failed.
    failure: Option<FetchError>,
    /// The failure that requests are told at once, and until when.
    remembered: Option<(FetchError, Instant)>,
    gone: bool,
}

/// All keys, and what is to be done for them when.
///
/// Invariant: a key that is neither being fetched nor waiting for its token is in the queue.
pub(super) struct Table {
    entries: HashMap<CredentialKey, Entry>,
    by_pod: HashMap<PodUid, Vec<CredentialKey>>,
    queue: Queue<CredentialKey>,
    forgotten: Vec<(Instant, PodUid)>,
    next_generation: u64,
    roles_per_pod: usize,
}

struct Entry {
    /// Tells this entry from a later one of the same key.
    generation: u64,
    request: SessionRequest,
    /// Wanted by the pod itself, not only by a request; kept until forgotten.
    is_warmed: bool,
    /// The last time that a request wanted it.
    asked_at: Instant,
    phase: Phase,
    /// Since when the token has been waited for, while it is looked for anew.
    awaited_since: Option<Instant>,
    status: watch::Sender<Status>,
    /// When to refresh what is valid.
    refresh_at: SystemTime,
    /// The soonest that a waiting request may have the next attempt.
    retry_at: Instant,
    /// Transient failures in a row.
    failures: u32,
    /// Refusals in a row.
    refusals: u32,
    /// Ends whatever is under way for this entry when it goes.
    alive: CancellationToken,
    _ends_with_it: DropGuard,
}

enum Phase {
    Idle,
    Fetching,
    AwaitingToken { since: Instant, _ends_with_it: DropGuard },
}

/// Whose work it is. Results come back with it, and are dropped where the entry is another by then.
#[derive(Clone)]
pub(super) struct Ticket {
    pub(super) key: CredentialKey,
    pub(super) generation: u64,
}

/// Work for the worker; given up when `alive` is cancelled.
pub(super) struct Work {
    pub(super) ticket: Ticket,
    pub(super) request: SessionRequest,
    pub(super) alive: CancellationToken,
}

/// How a fetch ended.
pub(super) enum Fetched {
    Issued(Arc<Credentials>),
    TokenMissing,
    Failed(FetchError),
}

/// What a finished fetch was to its entry.
pub(super) enum Consequence {
    /// Nobody wants it any more.
    Dropped,
    /// It is settled, or is tried again later; `failures` counts this one's kind in a row.
    Settled { failures: u32 },
    /// The token is to be waited for.
    AwaitToken(Box<Work>),
}

impl Now {
    pub(super) fn of(clock: &Clock) -> Self {
        Self { wall: clock.now(), at: Instant::now() }
    }
}

impl Status {
    /// What a request gets without waiting.
    pub(super) fn outcome(&self, now: Now) -> Option<Result<Arc<Credentials>, FetchError>> {
        if self.gone {
            return Some(Err(FetchError::PodGone));
        }
        if let Some(credentials) = self.hand_out(now.wall) {
            return Some(Ok(credentials.clone()));
        }
        self.remembered(now.at).map(|error| Err(error.clone()))
    }

    /// Credentials that are good to hand out; below the floor only where none better are to be had.
    pub(super) fn hand_out(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        let better_is_to_be_had = !self.is_best && self.failure.is_none();
        self.valid(now).filter(|it| !better_is_to_be_had || policy::is_above_floor(it, now))
    }

    /// Credentials that have not expired.
    pub(super) fn valid(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        self.credentials.as_ref().filter(|it| !self.gone && it.is_valid_at(now))
    }

    fn remembered(&self, now: Instant) -> Option<&FetchError> {
        self.remembered.as_ref().filter(|(_, until)| now < *until).map(|(error, _)| error)
    }
}

impl Table {
    pub(super) fn new(roles_per_pod: usize) -> Self {
        Self {
            entries: HashMap::new(),
            by_pod: HashMap::new(),
            queue: Queue::new(),
            forgotten: Vec::new(),
            next_generation: 0,
            roles_per_pod,
        }
    }

    pub(super) fn status(&self, key: &CredentialKey) -> Option<watch::Ref<'_, Status>> {
        self.entries.get(key).map(|entry| entry.status.borrow())
    }

    pub(super) fn generation(&self, key: &CredentialKey) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.generation)
    }

    /// Wants credentials for `request`, now and until the pod is forgotten.
    pub(super) fn warm(&mut self, request: SessionRequest, now: Now) {
        self.forgotten.retain(|(_, pod)| *pod != request.key.pod);
        match self.entries.get_mut(&request.key) {
            None => self.insert(request, true, now),
            Some(entry) => {
                entry.is_warmed = true;
                entry.request = request;
            }
        }
    }

    /// Wants credentials for `request` because a request of the pod waits for them.
    ///
    /// `None` where the pod has as many keys as it may have. A pod that was just forgotten gets a status that says
    /// so: requests that were decided before are still on their way.
    pub(super) fn request(&mut self, request: SessionRequest, now: Now) -> Option<watch::Receiver<Status>> {
        if self.forgotten.iter().any(|(at, pod)| now.at < *at + STAY_GONE && *pod == request.key.pod) {
            return Some(watch::channel(Status { gone: true, ..Status::default() }).1);
        }
        let key = request.key.clone();
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.request = request;
        } else if self.has_room(&key.pod, now) {
            self.insert(request, false, now);
        } else {
            return None;
        }
        let status = self.entries.get(&key)?.status.subscribe();
        self.ask(&key, now);
        Some(status)
    }

    /// Hurries the next attempt for `key`, where a request would wait for it.
    pub(super) fn ask(&mut self, key: &CredentialKey, now: Now) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.asked_at = now.at;
        if entry.status.borrow().outcome(now).is_some() {
            return;
        }
        match entry.phase {
            Phase::Fetching => {}
            // A missing token is looked for anew: the wait for an old pod's looks rarely.
            Phase::Idle | Phase::AwaitingToken { .. } => {
                self.queue.raise(key, Priority::RealTime, entry.retry_at.max(now.at));
            }
        }
    }

    /// Forgets all keys of `pod`; whoever waits is told that it is gone.
    pub(super) fn forget(&mut self, pod: &PodUid, now: Now) {
        for key in self.by_pod.get(pod).cloned().unwrap_or_default() {
            self.remove(&key);
        }
        self.forgotten.retain(|(at, _)| now.at < *at + STAY_GONE);
        self.forgotten.push((now.at, pod.clone()));
    }

    /// When there is work to begin.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.queue.next_at()
    }

    /// Begins the most urgent work that is due.
    pub(super) fn begin(&mut self, now: Now) -> Option<Work> {
        while let Some(key) = self.queue.pop_due(now.at) {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if entry.is_abandoned(now) {
                self.remove(&key);
                continue;
            }
            let since = match entry.phase {
                Phase::Fetching => continue,
                Phase::Idle => None,
                Phase::AwaitingToken { since, .. } => Some(since),
            };
            entry.awaited_since = since;
            entry.phase = Phase::Fetching;
            return Some(entry.work());
        }
        None
    }

    /// Takes the result of a fetch.
    pub(super) fn finish(&mut self, ticket: &Ticket, fetched: Fetched, now: Now) -> Consequence {
        let Some(entry) = self.entries.get_mut(&ticket.key).filter(|it| it.generation == ticket.generation)
        else {
            return Consequence::Dropped;
        };
        entry.phase = Phase::Idle;
        match fetched {
            Fetched::Issued(credentials) => {
                entry.take(credentials, now);
                let due = due(entry.refresh_at, now);
                self.queue.raise(&ticket.key, Priority::Background, due);
                Consequence::Settled { failures: 0 }
            }
            Fetched::TokenMissing => {
                entry.retry_at = now.at + policy::LOOK_FOR_TOKEN;
                entry.status.send_modify(|status| status.failure = Some(FetchError::TokenMissing));
                let alive = entry.alive.child_token();
                let since = entry.awaited_since.take().unwrap_or(now.at);
                entry.phase = Phase::AwaitingToken { since, _ends_with_it: alive.clone().drop_guard() };
                let work = Work { alive, ..entry.work() };
                if !entry.is_warmed {
                    self.queue.raise(&ticket.key, Priority::Background, now.at + policy::KEEP_UNASKED);
                }
                Consequence::AwaitToken(Box::new(work))
            }
            Fetched::Failed(error) if error.is_transient() => {
                let at = entry.fail(error, now);
                let failures = entry.failures;
                let priority = entry.priority(now);
                self.queue.raise(&ticket.key, priority, at);
                Consequence::Settled { failures }
            }
            Fetched::Failed(error) => {
                let at = entry.refuse(error, now);
                let failures = entry.refusals;
                let priority = entry.priority(now);
                self.queue.raise(&ticket.key, priority, at);
                Consequence::Settled { failures }
            }
        }
    }

    /// Takes the end of a wait for a token, and says how long it was. The fetch that follows reads the token.
    pub(super) fn token_came(&mut self, ticket: &Ticket, now: Now) -> Option<Duration> {
        let entry = self.entries.get_mut(&ticket.key).filter(|it| it.generation == ticket.generation)?;
        let Phase::AwaitingToken { since, .. } = entry.phase else {
            return None;
        };
        entry.phase = Phase::Idle;
        let priority = entry.priority(now);
        self.queue.raise(&ticket.key, priority, now.at);
        Some(now.at - since)
    }

    /// What a request is told that has waited as long as it may.
    ///
    /// Where no attempt is running the failure is remembered, so that the client's own retry is told at once; where
    /// one is running, the retry had better wait for it.
    pub(super) fn give_up(&mut self, key: &CredentialKey, generation: u64, now: Now) -> FetchError {
        let Some(entry) = self.entries.get_mut(key).filter(|it| it.generation == generation) else {
            return FetchError::PodGone;
        };
        if let Some(remembered) = entry.status.borrow().remembered(now.at) {
            return remembered.clone();
        }
        let error = match entry.phase {
            Phase::Fetching => return FetchError::unreachable("an attempt is still running"),
            Phase::AwaitingToken { .. } => FetchError::TokenMissing,
            Phase::Idle => entry.status.borrow().failure.clone().unwrap_or_else(|| {
                FetchError::unreachable(
                    "no attempt could be made; the limit of attempts at a time is reached",
                )
            }),
        };
        let until = now.at + policy::REMEMBER_UNAVAILABLE;
        entry.status.send_modify(|status| status.remembered = Some((error.clone(), until)));
        error
    }

    /// Moves refreshes forward that the wall clock, stepped or resumed from sleep, says are due.
    pub(super) fn follow_clock(&mut self, now: Now) {
        for (key, entry) in &self.entries {
            let is_fresh = |status: &Status| status.credentials.is_some() && status.failure.is_none();
            if matches!(entry.phase, Phase::Idle) && is_fresh(&entry.status.borrow()) {
                self.queue.raise(key, entry.priority(now), due(entry.refresh_at, now));
            }
        }
    }

    pub(super) fn counts(&self, now: Now) -> Counts {
        let mut counts = Counts::default();
        for entry in self.entries.values() {
            let status = entry.status.borrow();
            let count = match (&entry.phase, &status.failure) {
                _ if status.valid(now.wall).is_some() => &mut counts.valid,
                (Phase::AwaitingToken { .. }, _) | (_, None | Some(FetchError::TokenMissing)) => {
                    &mut counts.pending
                }
                (Phase::Idle | Phase::Fetching, Some(_)) => &mut counts.failed,
            };
            *count += 1;
        }
        counts
    }

    /// Whether `pod` may have one more key. Keys that only wait to be dropped make room.
    fn has_room(&mut self, pod: &PodUid, now: Now) -> bool {
        let keys = self.by_pod.get(pod).cloned().unwrap_or_default();
        if keys.len() < self.roles_per_pod {
            return true;
        }
        let abandoned =
            keys.iter().find(|key| self.entries.get(key).is_some_and(|entry| entry.is_abandoned(now)));
        abandoned.inspect(|key| self.remove(key)).is_some()
    }

    fn insert(&mut self, request: SessionRequest, is_warmed: bool, now: Now) {
        self.next_generation += 1;
        let alive = CancellationToken::new();
        let key = request.key.clone();
        let entry = Entry {
            generation: self.next_generation,
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
            _ends_with_it: alive.clone().drop_guard(),
            alive,
        };
        self.queue.raise(&key, Priority::Warmup, now.at);
        self.by_pod.entry(key.pod.clone()).or_default().push(key.clone());
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &CredentialKey) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        entry.status.send_replace(Status { gone: true, ..Status::default() });
        self.queue.forget(key);
        if let Some(keys) = self.by_pod.get_mut(&key.pod) {
            keys.retain(|it| it != key);
            if keys.is_empty() {
                self.by_pod.remove(&key.pod);
            }
        }
    }
}

impl Entry {
    fn work(&self) -> Work {
        Work {
            ticket: Ticket { key: self.request.key.clone(), generation: self.generation },
            request: self.request.clone(),
            alive: self.alive.clone(),
        }
    }

    fn is_waited_for(&self) -> bool {
        0 < self.status.receiver_count()
    }

    fn priority(&self, now: Now) -> Priority {
        if self.is_waited_for() {
            Priority::RealTime
        } else if self.status.borrow().valid(now.wall).is_some() {
            Priority::Background
        } else {
            Priority::Warmup
        }
    }

    /// Whether nothing is lost by dropping it: only a request wanted it, in vain, and none waits any more.
    ///
    /// A refusal makes it so as soon as it is no longer remembered, so that a typo does not keep one of the pod's
    /// places. What may yet succeed is tried for a while longer: the client's retry finds it done.
    fn is_abandoned(&self, now: Now) -> bool {
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
    fn take(&mut self, fresh: Arc<Credentials>, now: Now) {
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
    fn fail(&mut self, error: FetchError, now: Now) -> Instant {
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
    fn refuse(&mut self, error: FetchError, now: Now) -> Instant {
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
        let until = status.valid(now.wall)?.advertised_until();
        until.duration_since(now.wall).ok()
    }
}

/// The instant of `refresh_at`; now where it has passed.
fn due(refresh_at: SystemTime, now: Now) -> Instant {
    now.at + refresh_at.duration_since(now.wall).unwrap_or_default()
}
