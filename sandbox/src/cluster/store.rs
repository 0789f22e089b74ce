//! The pods with their history: one writer's lock, versions, and a log that watches read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::status::Refusal;
use crate::{clock, ids};

/// Changes kept for watches; older ones are compacted away.
const HISTORY: usize = 50_000;

pub(super) type Key = (String, String);
pub(super) type Pods = BTreeMap<Key, Arc<Value>>;

pub(super) struct Store {
    shelf: Mutex<Shelf>,
    version: watch::Sender<u64>,
}

/// One change of one pod.
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) before: Option<Arc<Value>>,
    /// None for a deletion.
    pub(super) after: Option<Arc<Value>>,
}

/// The resource version asked for is no longer in the history.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expired {
    pub(super) asked: u64,
    pub(super) oldest: u64,
}

struct Shelf {
    /// Shared with the lists that are being paged through.
    pods: Arc<Pods>,
    log: VecDeque<Arc<Change>>,
    version: u64,
    /// Nobody new is let in to the history before this version.
    compacted: u64,
    /// The log begins after this version. It outlives a compaction, for the watches that are following it.
    dropped: u64,
    /// The pods at the versions that paged lists began with.
    snapshots: BTreeMap<u64, Arc<Pods>>,
}

impl Default for Store {
    fn default() -> Self {
        // Not from 1: in a real cluster much else is stored before the first pod.
        let version = 1000;
        let shelf = Shelf {
            pods: Arc::default(),
            log: VecDeque::new(),
            version,
            compacted: version,
            dropped: version,
            snapshots: BTreeMap::new(),
        };
        Self { shelf: Mutex::new(shelf), version: watch::Sender::new(version) }
    }
}

impl Store {
    pub(super) fn apply(&self, mut pod: Value) -> Value {
        self.write(|shelf| {
            let key = key(&pod);
            let former = shelf.pods.get(&key).cloned();
            let uid = pod["metadata"]["uid"].as_str().map(str::to_owned);
            let same = former.as_ref().filter(|former| {
                uid.as_deref().is_none_or(|uid| former["metadata"]["uid"].as_str() == Some(uid))
            });
            let metadata = &mut pod["metadata"];
            match same {
                Some(same) => {
                    metadata["uid"] = same["metadata"]["uid"].clone();
                    metadata["creationTimestamp"] = same["metadata"]["creationTimestamp"].clone();
                }
                None => {
                    if former.is_some() {
                        shelf.remove(&key);
                    }
                    metadata["uid"] = uid.unwrap_or_else(ids::uuid).into();
                    if metadata["creationTimestamp"].is_null() {
                        metadata["creationTimestamp"] = clock::iso8601(clock::now()).into();
                    }
                }
            }
            shelf.put(key, pod)
        })
    }

    pub(super) fn update(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Option<Value> {
        self.write(|shelf| {
            let key = (namespace.to_owned(), name.to_owned());
            let mut pod = Value::clone(shelf.pods.get(&key)?);
            change(&mut pod);
            Some(shelf.put(key, pod))
        })
    }

    pub(super) fn delete(&self, namespace: &str, name: &str) -> Option<Value> {
        self.write(|shelf| shelf.remove(&(namespace.to_owned(), name.to_owned())))
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.shelf().pods.get(&key).map(|pod| Value::clone(pod))
    }

    pub(super) fn version(&self) -> u64 {
        self.shelf().version
    }

    /// Follows the version, so that a watch knows when to look again.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The pods and their version.
    pub(super) fn current(&self) -> (u64, Arc<Pods>) {
        let shelf = self.shelf();
        (shelf.version, shelf.pods.clone())
    }

    /// The same, and they can be had again by [`Self::at`] until the history is compacted.
    pub(super) fn snapshot(&self) -> (u64, Arc<Pods>) {
        let mut shelf = self.shelf();
        let (version, pods) = (shelf.version, shelf.pods.clone());
        shelf.snapshots.insert(version, pods.clone());
        (version, pods)
    }

    /// The pods as they were at a version of which a snapshot was taken.
    pub(super) fn at(&self, version: u64) -> Result<Arc<Pods>, Expired> {
        let shelf = self.shelf();
        if version == shelf.version {
            return Ok(shelf.pods.clone());
        }
        let expired = Expired { asked: version, oldest: shelf.compacted };
        shelf.snapshots.get(&version).cloned().ok_or(expired)
    }

    /// Whether a watch may begin after this version.
    pub(super) fn admit(&self, version: u64) -> Result<(), Refusal> {
        let shelf = self.shelf();
        if version < shelf.compacted {
            return Err(Expired { asked: version, oldest: shelf.compacted }.into());
        }
        if shelf.version < version {
            return Err(Refusal::too_large_version(version, shelf.version));
        }
        Ok(())
    }

    /// The changes after a version, and the version they lead to.
    pub(super) fn since(&self, version: u64) -> Result<(u64, Vec<Arc<Change>>), Expired> {
        let shelf = self.shelf();
        if version < shelf.dropped {
            return Err(Expired { asked: version, oldest: shelf.dropped });
        }
        let seen = shelf.log.partition_point(|change| change.version <= version);
        Ok((shelf.version, shelf.log.range(seen..).cloned().collect()))
    }

    /// Closes the history to newcomers. The version moves on, as it does when anything else in a cluster is written:
    /// who has seen the latest change of a pod, and no bookmark since, is behind all the same.
    pub(super) fn compact(&self) {
        let mut shelf = self.shelf();
        shelf.version += 1;
        shelf.compacted = shelf.version;
        shelf.snapshots.clear();
    }

    fn write<R>(&self, change: impl FnOnce(&mut Shelf) -> R) -> R {
        let mut shelf = self.shelf();
        let result = change(&mut shelf);
        self.version.send_replace(shelf.version);
        result
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn put(&mut self, key: Key, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        let after = Arc::new(pod.clone());
        let before = Arc::make_mut(&mut self.pods).insert(key, after.clone());
        self.record(Change { version: self.version, before, after: Some(after) });
        pod
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut last = Value::clone(Arc::make_mut(&mut self.pods).remove(key)?.as_ref());
        self.version += 1;
        // A deletion has a version of its own, and its event shows the last state with that version.
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.record(Change { version: self.version, before: Some(Arc::new(last.clone())), after: None });
        Some(last)
    }

    fn record(&mut self, change: Change) {
        self.log.push_back(Arc::new(change));
        if HISTORY < self.log.len()
            && let Some(oldest) = self.log.pop_front()
        {
            self.dropped = oldest.version;
            self.compacted = self.compacted.max(self.dropped);
            self.snapshots = self.snapshots.split_off(&oldest.version);
        }
    }
}

/// Applies a JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().and_then(|target| target.remove(name));
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

/// Namespace and name of a pod.
fn key(pod: &Value) -> Key {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Value {
        json!({ "metadata": { "namespace": "demo", "name": name } })
    }

    fn version(pod: &Value) -> u64 {
        pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn versions_grow_and_a_replacement_keeps_the_uid() {
        let store = Store::default();
        let first = store.apply(pod("orders"));
        let second = store.apply(pod("orders"));
        assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);
        assert_eq!(version(&first) + 1, version(&second));
        assert_eq!(version(&second), store.version());
    }

    #[test]
    fn another_uid_is_another_pod() {
        let store = Store::default();
        let begin = store.version();
        store.apply(pod("orders"));
        let mut other = pod("orders");
        other["metadata"]["uid"] = "another".into();
        store.apply(other);
        let kinds: Vec<_> = store
            .since(begin)
            .unwrap()
            .1
            .iter()
            .map(|change| (change.before.is_some(), change.after.is_some()))
            .collect();
        assert_eq!(kinds, [(false, true), (true, false), (false, true)]);
    }

    #[test]
    fn a_deletion_has_its_own_version() {
        let store = Store::default();
        let created = store.apply(pod("orders"));
        let deleted = store.delete("demo", "orders").unwrap();
        assert_eq!(version(&created) + 1, version(&deleted));
        assert_eq!(store.delete("demo", "orders"), None);
        assert_eq!(store.version(), version(&deleted));
    }

    #[test]
    fn compaction_keeps_newcomers_out_and_lets_followers_go_on() {
        let store = Store::default();
        store.apply(pod("orders"));
        let before = store.version();
        assert!(store.admit(before).is_ok());
        store.compact();
        let after = store.version();
        assert_eq!(store.admit(before).unwrap_err().status, http::StatusCode::GONE);
        assert!(store.admit(after).is_ok());
        assert_eq!(store.admit(after + 1).unwrap_err().status, http::StatusCode::GATEWAY_TIMEOUT);
        store.apply(pod("reports"));
        let (version, changes) = store.since(before).unwrap();
        assert_eq!((version, changes.len()), (after + 1, 1));
    }

    #[test]
    fn a_snapshot_stays_as_it_was_until_the_history_is_compacted() {
        let store = Store::default();
        store.apply(pod("orders"));
        let (version, _) = store.snapshot();
        store.apply(pod("reports"));
        assert_eq!(store.at(version).unwrap().len(), 1);
        assert_eq!(store.current().1.len(), 2);
        store.compact();
        assert!(store.at(version).is_err());
    }

    #[test]
    fn the_history_is_bounded() {
        let store = Store::default();
        let begin = store.version();
        for _ in 0..=HISTORY {
            store.apply(pod("orders"));
        }
        assert!(store.since(begin).is_err() && store.admit(begin).is_err());
        assert_eq!(store.since(begin + 1).unwrap().1.len(), HISTORY);
    }

    #[test]
    fn merge_patches_follow_their_rfc() {
        let mut value = json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        merge(&mut value, &json!({ "a": { "b": null, "e": { "f": null, "g": 3 } }, "d": [2] }));
        assert_eq!(value, json!({ "a": { "c": 2, "e": { "g": 3 } }, "d": [2] }));
    }
}
