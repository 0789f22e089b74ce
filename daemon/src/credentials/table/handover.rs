//! What one daemon leaves to the next: taken out of the old table, put into the new.

use std::time::Duration;

use tokio::time::Instant;

use super::{Entry, Now, Phase, Status, Table, due};
use crate::credentials::{
    CredentialKey, FetchError, SessionRequest, handover::Inherited, policy, queue::Priority,
};

/// How long a key may stay unclaimed: the API server may have told the daemon before of a pod that it has not told
/// this one of yet.
const KEEP_UNCLAIMED: Duration = Duration::from_secs(60);

/// What was inherited, and when.
pub(super) struct Unclaimed {
    inherited: Inherited,
    at: Instant,
}

impl Unclaimed {
    pub(super) fn is_kept(&self, now: Now) -> bool {
        now.at < self.at + KEEP_UNCLAIMED
    }

    /// As it is told to the next daemon, which has a minute of its own to claim it in.
    fn bequeath(&self, now: Now) -> Inherited {
        let was = &self.inherited;
        let left = |span: Duration| (self.at + span).saturating_duration_since(now.at);
        let remembered = was.remembered.as_ref().map(|(error, span)| (error.clone(), left(*span)));
        Inherited {
            credentials: was.credentials.clone().filter(|it| it.is_valid_at(now.wall)),
            remembered: remembered.filter(|(_, span)| !span.is_zero()),
            retry_in: left(was.retry_in),
            due_in: was.due_in.map(left),
            ..was.clone()
        }
    }
}

impl Table {
    /// Tells all there is to tell of every key, claimed or not, and from then on begins only what requests wait for,
    /// which the next daemon is to be asked for first. What is under way goes on, at the daemon before as well.
    pub(in crate::credentials) fn freeze(&mut self, now: Now) -> Vec<Inherited> {
        let unclaimed = self.unclaimed.values().filter(|unclaimed| unclaimed.is_kept(now));
        let unclaimed = unclaimed.map(|unclaimed| unclaimed.bequeath(now));
        let claimed = self.entries.values().map(|entry| self.bequeath(entry, now));
        let inherited: Vec<Inherited> = claimed.chain(unclaimed).collect();
        let is_relayed = |it: &&Inherited| it.is_under_way && !self.entries.contains_key(&it.key);
        self.relays = inherited.iter().filter(is_relayed).map(|it| it.key.clone()).collect();
        self.is_frozen = true;
        self.queue.set_only_urgent(true);
        self.held_back.clear();
        for (key, entry) in &mut self.entries {
            entry.was_due_at = self.queue.due_at(key);
            self.queue.forget(key);
            if matches!(entry.phase, Phase::Idle) && entry.is_under_way_before {
                // The next daemon waits for its end.
                self.queue.raise(key, Priority::RealTime, now.at);
            } else if matches!(entry.phase, Phase::Idle) && entry.is_waited_for() {
                self.queue.raise(key, Priority::RealTime, entry.was_due_at.unwrap_or(now.at));
            }
        }
        inherited
    }

    /// Whether there are any for [`Self::take_relays`].
    pub(in crate::credentials) fn has_relays(&self) -> bool {
        !self.relays.is_empty()
    }

    /// The keys whose exchange the daemon before has out and the next one waits for; each is told once.
    pub(in crate::credentials) fn take_relays(&mut self) -> Vec<CredentialKey> {
        std::mem::take(&mut self.relays)
    }

    /// Whether the daemon before may still be asked for the end of an exchange.
    pub(in crate::credentials) fn waits_for_before(&self, now: Now) -> bool {
        self.has_relays()
            || self.entries.values().any(|entry| entry.is_under_way_before)
            || self.unclaimed.values().any(|it| it.inherited.is_under_way && it.is_kept(now))
    }

    /// Goes on as if it had never been frozen.
    pub(in crate::credentials) fn thaw(&mut self, now: Now) {
        self.is_frozen = false;
        self.queue.set_only_urgent(false);
        for (key, entry) in &mut self.entries {
            let was_due_at = entry.was_due_at.take();
            match entry.phase {
                Phase::Idle => {
                    let is_fresh = {
                        let status = entry.status.borrow();
                        status.credentials.is_some() && status.failure.is_none()
                    };
                    let retry_at = was_due_at.unwrap_or(entry.retry_at).max(now.at);
                    let at = if is_fresh { due(entry.refresh_at, now) } else { retry_at };
                    self.queue.raise(key, entry.priority(now), at);
                }
                // Its end puts it back.
                Phase::Fetching => {}
                Phase::AwaitingToken { .. } if entry.is_warmed => {}
                Phase::AwaitingToken { .. } => {
                    self.queue.raise(key, Priority::Background, now.at + policy::KEEP_UNASKED);
                }
            }
        }
    }

    /// Takes what the daemon before this one knew, before anything is fetched here.
    ///
    /// Keys that are wanted here take it at once, and so do those for which `wanted` makes a request; the others
    /// wait to be claimed for a while.
    pub(in crate::credentials) fn adopt(
        &mut self,
        inherited: Vec<Inherited>,
        wanted: impl Fn(&CredentialKey) -> Option<SessionRequest>,
        now: Now,
    ) {
        for inherited in inherited {
            let key = inherited.key.clone();
            let unclaimed = Unclaimed { inherited, at: now.at };
            if self.entries.contains_key(&key) {
                self.settle_in(&key, unclaimed, now);
                continue;
            }
            self.unclaimed.insert(key.clone(), unclaimed);
            if let Some(request) = wanted(&key).filter(|request| request.key == key) {
                self.insert(request, false, now);
            }
        }
    }

    /// Gives an entry, of which nothing is known yet, what was inherited for it.
    pub(super) fn settle_in(
        &mut self,
        key: &CredentialKey,
        Unclaimed { inherited, at }: Unclaimed,
        now: Now,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.refresh_at = inherited.refresh_at;
        entry.failures = inherited.failures;
        entry.refusals = inherited.refusals;
        entry.retry_at = at + inherited.retry_in;
        // From the offer on, its end is for the next daemon, which is asked for it.
        entry.is_under_way_before = inherited.is_under_way && !self.is_frozen;
        entry.status.send_replace(Status {
            credentials: inherited.credentials,
            is_best: inherited.is_best,
            failure: inherited.failure,
            remembered: inherited.remembered.map(|(error, left)| (error, at + left)),
            gone: false,
        });
        let (priority, at) = match (entry.is_under_way_before, inherited.due_in) {
            (true, _) => (Priority::RealTime, now.at),
            (false, Some(due_in)) => (entry.priority(now), at + due_in),
            (false, None) => (entry.priority(now), now.at),
        };
        // The place that a key without a past was given is due now, and would stay so.
        self.queue.forget(key);
        self.queue.raise(key, priority, at);
    }

    fn bequeath(&self, entry: &Entry, now: Now) -> Inherited {
        let key = &entry.request.key;
        let status = entry.status.borrow();
        let left = |at: Instant| at.saturating_duration_since(now.at);
        // What says nothing of STS the next daemon finds out for itself, without asking STS.
        let of_sts = |error: &FetchError| match error {
            FetchError::Denied { .. }
            | FetchError::TokenRefused { .. }
            | FetchError::Throttled { .. }
            | FetchError::Unreachable { .. } => true,
            FetchError::TokenMissing | FetchError::TokenUnusable(_) | FetchError::PodGone => false,
        };
        let failure = status.failure.clone().filter(of_sts);
        let is_about_the_token = status.failure.is_some() && failure.is_none();
        Inherited {
            key: key.clone(),
            is_under_way: matches!(entry.phase, Phase::Fetching) || entry.is_under_way_before,
            credentials: status.valid(now.wall).cloned(),
            is_best: status.is_best,
            refresh_at: entry.refresh_at,
            failure,
            remembered: status
                .remembered
                .as_ref()
                .filter(|(error, until)| now.at < *until && of_sts(error))
                .map(|(error, until)| (error.clone(), left(*until))),
            failures: entry.failures,
            refusals: entry.refusals,
            retry_in: if is_about_the_token { Duration::ZERO } else { left(entry.retry_at) },
            due_in: self.queue.due_at(key).filter(|_| !is_about_the_token).map(left),
        }
    }
}

#[cfg(test)]
mod tests;
