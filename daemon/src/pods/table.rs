//! The table of this node's pods: one writer, which is fed by the watch, and many readers.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::HashMap;
use tokio::sync::watch;

use super::Pod;
use crate::identity::{Departed, PodUid};

/// Reads the table. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct PodTable(Arc<Shared>);

/// Writes the table; there is one.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// The pods of a list that is being received; they replace the table's when it is complete.
    listing: Option<Vec<Pod>>,
}

/// What the watch saw.
#[derive(Debug, Clone)]
pub enum Event {
    /// A new list begins.
    Init,
    /// A pod of that list.
    InitApply(Pod),
    /// The list is complete: who is not in it is gone.
    InitDone,
    /// A pod appeared or changed.
    Apply(Pod),
    /// A pod was deleted.
    Delete(PodUid),
}

/// What an event changed in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Arrived(Arc<Pod>),
    Changed { before: Arc<Pod>, after: Arc<Pod> },
    Left(Arc<Pod>),
}

/// Who has an address on the pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressOwner {
    /// Exactly one live pod.
    One(Arc<Pod>),
    /// More than one; nobody guesses which.
    Several(Vec<Arc<Pod>>),
    /// No live pod, but one that has finished.
    Finished,
    /// No pod at all.
    Nobody,
}

/// What is known of a uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UidLookup {
    Live(Arc<Pod>),
    /// The pod has succeeded or failed.
    Finished,
    /// The watch has shown the pod and taken it away.
    Departed,
    /// The watch has not shown it.
    Unknown,
}

/// A request that waits for news.
#[derive(Debug)]
#[must_use = "nobody waits any more once it is dropped"]
pub struct Wanted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    /// Counts the changes; who waits for one subscribes.
    version: watch::Sender<u64>,
    /// The same count, which costs a look no lock.
    stamp: AtomicU64,
    /// How many requests wait for news.
    wanted: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<PodUid, Arc<Pod>>,
    by_address: HashMap<IpAddr, Vec<PodUid>>,
    departed: Departed,
    synced: bool,
}

impl PodTable {
    /// An empty table that is not synced, and its writer.
    pub fn new() -> (Self, Writer) {
        let shared = Arc::new(Shared {
            state: RwLock::default(),
            version: watch::Sender::new(0),
            stamp: AtomicU64::new(0),
            wanted: watch::Sender::new(0),
        });
        (Self(shared.clone()), Writer { shared, listing: None })
    }

    /// Whether a first list was complete. It stays so while the API server is away: what was known is served.
    pub fn synced(&self) -> bool {
        self.0.read().synced
    }

    /// Wakes when the table has changed since. Subscribe before looking, or a change in between is missed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A number that rises with each change: what was read from the table after taking it holds while it stays.
    pub fn version(&self) -> u64 {
        self.0.stamp.load(Ordering::Acquire)
    }

    /// A request waits for what the table does not hold yet, for as long as it holds what is returned: whoever feeds the
    /// table had better look.
    pub fn want_news(&self) -> Wanted {
        self.0.wanted.send_modify(|wanted| *wanted += 1);
        Wanted(self.0.clone())
    }

    pub fn by_uid(&self, uid: &PodUid) -> UidLookup {
        let state = self.0.read();
        match state.pods.get(uid) {
            Some(pod) if pod.finished => UidLookup::Finished,
            Some(pod) => UidLookup::Live(pod.clone()),
            None if state.departed.contains(uid) => UidLookup::Departed,
            None => UidLookup::Unknown,
        }
    }

    pub fn by_address(&self, address: IpAddr) -> AddressOwner {
        let state = self.0.read();
        let Some(uids) = state.by_address.get(&address) else { return AddressOwner::Nobody };
        let mut live = uids.iter().filter_map(|uid| state.pods.get(uid)).filter(|pod| !pod.finished);
        match (live.next(), live.next()) {
            (None, _) => AddressOwner::Finished,
            (Some(pod), None) => AddressOwner::One(pod.clone()),
            (Some(first), Some(second)) => {
                AddressOwner::Several([first, second].into_iter().chain(live).cloned().collect())
            }
        }
    }

    /// The pods that are neither finished nor gone.
    pub fn live(&self) -> Vec<Arc<Pod>> {
        self.0.read().pods.values().filter(|pod| !pod.finished).cloned().collect()
    }

    /// How many pods there are, finished ones included.
    pub fn len(&self) -> usize {
        self.0.read().pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|wanted| *wanted -= 1);
    }
}

impl Writer {
    /// Completes when a request waits for news.
    pub async fn news_are_wanted(&self) {
        let wanted = self.shared.wanted.subscribe().wait_for(|wanted| 0 < *wanted).await.map(drop);
        wanted.expect("self holds the sender");
    }

    /// Takes in an event and tells what changed, in an order that is safe to act on: departures first.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        let changes = match event {
            Event::Init => {
                self.listing = Some(Vec::new());
                return Vec::new();
            }
            Event::InitApply(pod) => {
                self.listing.get_or_insert_default().push(pod);
                return Vec::new();
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let mut state = self.shared.write();
                state.synced = true;
                state.replace(listed)
            }
            Event::Apply(pod) => self.shared.write().apply(pod).into_iter().collect(),
            Event::Delete(uid) => self.shared.write().remove(&uid).into_iter().collect(),
        };
        self.shared.version.send_modify(|version| *version += 1);
        changes
    }
}

impl Shared {
    // The state is a few maps that are changed together by code that does not panic, so a poisoned lock holds
    // nothing half done.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Before the change and under the lock: whoever reads the new number looks after the change.
        self.stamp.fetch_add(1, Ordering::Release);
        state
    }
}

impl State {
    fn replace(&mut self, listed: Vec<Pod>) -> Vec<Change> {
        let present: HashSet<&PodUid> = listed.iter().map(Pod::uid).collect();
        let left: Vec<PodUid> = self.pods.keys().filter(|uid| !present.contains(uid)).cloned().collect();
        let mut changes: Vec<Change> = left.iter().filter_map(|uid| self.remove(uid)).collect();
        changes.extend(listed.into_iter().filter_map(|pod| self.apply(pod)));
        changes
    }

    fn apply(&mut self, pod: Pod) -> Option<Change> {
        let uid = pod.uid().clone();
        let after = Arc::new(pod);
        // A list from an API server that lags behind may have lost the pod for a while.
        self.departed.forget(&uid);
        // What has not changed stays the same value, which is how others tell.
        if self.pods.get(&uid).is_some_and(|before| *before == after) {
            return None;
        }
        let before = self.pods.insert(uid.clone(), after.clone());
        if let Some(before) = &before {
            self.release_addresses(before);
        }
        for address in &after.addresses {
            self.by_address.entry(*address).or_default().push(uid.clone());
        }
        Some(match before {
            None => Change::Arrived(after),
            Some(before) => Change::Changed { before, after },
        })
    }

    fn remove(&mut self, uid: &PodUid) -> Option<Change> {
        self.departed.remember(uid);
        let pod = self.pods.remove(uid)?;
        self.release_addresses(&pod);
        Some(Change::Left(pod))
    }

    fn release_addresses(&mut self, pod: &Pod) {
        for address in &pod.addresses {
            if let Some(uids) = self.by_address.get_mut(address) {
                uids.retain(|uid| uid != pod.uid());
                if uids.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
