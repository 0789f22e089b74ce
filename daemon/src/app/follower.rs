//! What a change of the pods asks of each part, and which credentials they are to have.

use std::{net::IpAddr, sync::Arc};

use crate::{
    credentials::{CredentialKey, CredentialManager, SessionRequest},
    events::{Events, Notice},
    pods::{AddressOwner, Change, Pod, PodTable, UidLookup},
    server::{endpoint::Limits, limits::Source, observe::Observer},
    sessions::{Sessions, most_urgent_first},
    token::verify::Verifier,
};

/// Does for each part what a change of the pods asks of it.
pub(super) struct Follower {
    pub(super) table: PodTable,
    pub(super) sessions: Sessions,
    pub(super) credentials: CredentialManager,
    pub(super) verifier: Verifier,
    pub(super) observer: Observer,
    pub(super) limits: Limits,
    pub(super) events: Events,
}

impl Follower {
    /// Does it for what was learned at once, the most urgent first.
    pub(super) fn follow_all(&self, mut changes: Vec<Change>) {
        most_urgent_first(&mut changes);
        changes.iter().for_each(|change| self.follow(change));
    }

    fn follow(&self, change: &Change) {
        match change {
            Change::Arrived(pod) => {
                tracing::debug!(pod = %pod.identity, uid = %pod.uid(), role = ?pod.binding.role, "saw a pod");
                self.credentials.readmit(pod.uid());
                self.sessions.prepare(pod);
                self.tell(pod);
                self.warm(pod);
            }
            Change::Changed { before, after } if after.finished => {
                self.forget(after);
                self.forget_addresses(before, |_| true);
            }
            Change::Changed { before, after } => {
                self.forget_addresses(before, |address| !after.addresses.contains(address));
                if before.finished {
                    // The API server lets a phase go back, though no kubelet does that.
                    self.credentials.readmit(after.uid());
                }
                if before.binding.role != after.binding.role {
                    self.tell(after);
                }
                self.sessions.prepare(after);
                let key = |pod| self.sessions.own(pod).map(|session| session.key);
                // What it had in a former role stays until it goes: a container may still ask for it by its path.
                if key(before) != key(after) {
                    self.warm(after);
                }
            }
            Change::Left(pod) => {
                tracing::debug!(pod = %pod.identity, uid = %pod.uid(), "a pod has left");
                self.forget(pod);
            }
        }
    }

    fn warm(&self, pod: &Pod) {
        if let Some(session) = self.sessions.own(pod) {
            tracing::info!(pod = %pod.identity, role = %session.key.role, "saw a pod with a role");
            self.credentials.warm(session);
        }
    }

    fn tell(&self, pod: &Pod) {
        if let Some(notice) = Notice::of_pod(pod) {
            self.events.tell(&pod.identity, notice);
        }
    }

    fn forget(&self, pod: &Pod) {
        self.credentials.forget(pod.uid());
        self.sessions.forget(pod.uid());
        self.verifier.forget(pod.uid());
        self.observer.forget(pod.uid());
        self.limits.forget(&Source::Pod(pod.uid().clone()));
        self.forget_addresses(pod, |_| true);
    }

    /// What is known of the addresses of `pod` that it has no more is of no use to whoever has them next; but for one that
    /// has an owner again this is that pod's.
    fn forget_addresses(&self, pod: &Pod, is_left: impl Fn(&IpAddr) -> bool) {
        for address in pod.addresses.iter().copied().filter(is_left) {
            match self.table.by_address(address) {
                AddressOwner::One(_) | AddressOwner::Several(_) => {}
                AddressOwner::Finished | AddressOwner::Nobody => {
                    self.limits.forget(&Source::Address(address));
                }
            }
        }
    }
}

/// Makes the request for a key, where it is one that this daemon would ask for.
pub(super) fn good_here(
    sessions: Sessions,
    table: PodTable,
) -> impl Fn(&CredentialKey) -> Option<SessionRequest> + Clone + Send + Sync + 'static {
    move |key| match table.by_uid(&key.pod) {
        UidLookup::Live(pod) if !pod.token_volumes.is_empty() => {
            let request = sessions.find(&pod, &key.role);
            (request.key == *key).then(|| Arc::unwrap_or_clone(request))
        }
        UidLookup::Live(_) | UidLookup::Finished | UidLookup::Departed | UidLookup::Unknown => None,
    }
}
