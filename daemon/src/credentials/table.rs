//! Who holds what: the one table of credentials, and every decision about them.

mod entry;
mod handover;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use foldhash::HashMap;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use self::entry::Status;
use self::{
    entry::{Entry, Phase},
    handover::Unclaimed,
};

use super::{
    CredentialKey, Credentials, SessionRequest,
    exchange::FetchError,
    handover::Neighbor,
    metrics::Counts,
    policy,
    queue::{Priority, Queue},
};
use crate::identity::{Departed, PodUid};
use rolecall_process::time::Clock;

/// Both times: expiries are compared with the wall clock, waits are measured on tokio's.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: SystemTime,
    pub(super) at: Instant,
}

/// All keys, and what is to be done for them when.
///
/// Invariant: a key that is neither being fetched nor waiting for its token is in the queue or held back.
pub(super) struct Table {
    entries: HashMap<CredentialKey, Entry>,
    by_pod: HashMap<PodUid, Vec<CredentialKey>>,
    queue: Queue<CredentialKey>,
    /// Keys that are due while their pod has as many exchanges out as it may; the end of one puts them back.
    held_back: HashMap<PodUid, Vec<(CredentialKey, Priority)>>,
    /// Pods that no request brings back: it may have been decided before they left.
    forgotten: Departed,
    next_generation: u64,
    limits: Limits,
    /// Another daemon does the fetching from now on.
    is_frozen: bool,
    /// What the daemon before this one knew of keys that nobody has wanted here yet.
    unclaimed: HashMap<CredentialKey, Unclaimed>,
    /// Exchanges of the daemon before for keys that nobody has wanted here, whose ends the next one waits for.
    relays: Vec<CredentialKey>,
}

/// What one pod may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Keys.
    pub(super) roles: usize,
    /// Exchanges at a time: with STS slow, one pod's many roles must not make all others wait.
    pub(super) exchanges: usize,
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
    /// The daemon that is to be asked first.
    pub(super) elsewhere: Option<Neighbor>,
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

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            entries: HashMap::default(),
            by_pod: HashMap::default(),
            queue: Queue::new(),
            held_back: HashMap::default(),
            forgotten: Departed::default(),
            next_generation: 0,
            limits,
            is_frozen: false,
            unclaimed: HashMap::default(),
            relays: Vec::new(),
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
        self.readmit(&request.key.pod);
        match self.entries.get_mut(&request.key) {
            None => self.insert(request, true, now),
            Some(entry) => {
                entry.is_warmed = true;
                entry.request = request;
            }
        }
    }

    /// Holds a place for `request`, a request of the pod for credentials. [`Table::ask`] hurries them.
    ///
    /// `None` where the pod has as many keys as it may have. A pod that was just forgotten gets a status that says
    /// so: requests that were decided before are still on their way.
    pub(super) fn request(&mut self, request: SessionRequest, now: Now) -> Option<watch::Receiver<Status>> {
        if self.forgotten.contains(&request.key.pod) {
            return Some(watch::channel(Status::gone()).1);
        }
        let key = request.key.clone();
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.request = request;
        } else if self.has_room(&key.pod, now) {
            self.insert(request, false, now);
        } else {
            return None;
        }
        self.entries.get(&key).map(|entry| entry.status.subscribe())
    }

    /// Hurries the next attempt for `key`, where a request would wait for it, and says whether it did.
    pub(super) fn ask(&mut self, key: &CredentialKey, now: Now) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        entry.asked_at = now.at;
        if entry.status.borrow().outcome(now, false).is_some() {
            return false;
        }
        match entry.phase {
            Phase::Fetching => false,
            // A missing token is looked for anew: the wait for an old pod's looks rarely.
            Phase::Idle | Phase::AwaitingToken { .. } => {
                self.queue.raise(key, Priority::RealTime, entry.retry_at.max(now.at));
                true
            }
        }
    }

    /// `pod` is there, again or still.
    pub(super) fn readmit(&mut self, pod: &PodUid) {
        self.forgotten.forget(pod);
    }

    /// Forgets all keys of `pod`; whoever waits is told that it is gone.
    pub(super) fn forget(&mut self, pod: &PodUid) {
        for key in self.by_pod.get(pod).cloned().unwrap_or_default() {
            self.remove(&key);
        }
        self.unclaimed.retain(|key, _| key.pod != *pod);
        self.forgotten.remember(pod);
    }

    /// When there is work to begin.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.queue.next_at()
    }

    /// Begins the most urgent work that is due.
    pub(super) fn begin(&mut self, now: Now) -> Option<Work> {
        while let Some(key) = self.queue.pop_due(now.at) {
            let is_full = self.limits.exchanges <= self.exchanges_of(&key.pod);
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if entry.is_abandoned(now) {
                self.remove(&key);
                continue;
            }
            if is_full && !matches!(entry.phase, Phase::Fetching) {
                let priority = entry.priority(now);
                self.held_back.entry(key.pod.clone()).or_default().push((key, priority));
                continue;
            }
            let since = match entry.phase {
                Phase::Fetching => continue,
                Phase::Idle => None,
                Phase::AwaitingToken { since, .. } => Some(since),
            };
            entry.awaited_since = since;
            entry.phase = Phase::Fetching;
            let elsewhere = match (std::mem::take(&mut entry.is_under_way_before), self.is_frozen) {
                (true, _) => Some(Neighbor::Before),
                (false, true) => Some(Neighbor::Next),
                (false, false) => None,
            };
            return Some(Work { elsewhere, ..entry.work() });
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
        for (key, priority) in self.held_back.remove(&ticket.key.pod).into_iter().flatten() {
            self.queue.raise(&key, priority, now.at);
        }
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
                let priority = entry.priority_unasked(now);
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
        self.unclaimed.retain(|_, unclaimed| unclaimed.is_kept(now));
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
        if keys.len() < self.limits.roles {
            return true;
        }
        let abandoned =
            keys.iter().find(|key| self.entries.get(key).is_some_and(|entry| entry.is_abandoned(now)));
        abandoned.inspect(|key| self.remove(key)).is_some()
    }

    fn exchanges_of(&self, pod: &PodUid) -> usize {
        let keys = self.by_pod.get(pod).into_iter().flatten();
        let entries = keys.filter_map(|key| self.entries.get(key));
        entries.filter(|entry| matches!(entry.phase, Phase::Fetching)).count()
    }

    fn insert(&mut self, request: SessionRequest, is_warmed: bool, now: Now) {
        self.next_generation += 1;
        let key = request.key.clone();
        let priority = Priority::Warmup(request.urgency);
        let entry = Entry::new(self.next_generation, request, is_warmed, now);
        self.queue.raise(&key, priority, now.at);
        self.by_pod.entry(key.pod.clone()).or_default().push(key.clone());
        self.entries.insert(key.clone(), entry);
        if let Some(unclaimed) = self.unclaimed.remove(&key) {
            self.settle_in(&key, unclaimed, now);
        }
    }

    fn remove(&mut self, key: &CredentialKey) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        entry.status.send_replace(Status::gone());
        self.queue.forget(key);
        if let Some(held) = self.held_back.get_mut(&key.pod) {
            held.retain(|(it, _)| it != key);
        }
        if let Some(keys) = self.by_pod.get_mut(&key.pod) {
            keys.retain(|it| it != key);
            if keys.is_empty() {
                self.by_pod.remove(&key.pod);
                self.held_back.remove(&key.pod);
            }
        }
    }
}

/// The instant of `refresh_at`; now where it has passed.
fn due(refresh_at: SystemTime, now: Now) -> Instant {
    now.at + refresh_at.duration_since(now.wall).unwrap_or_default()
}

#[cfg(test)]
mod tests;
