//! What the API server answered when it was asked for a ServiceAccount, until the watch tells of it.

use std::{sync::Arc, time::Duration};

use kube::core::ObjectMeta;
use moka::sync::Cache;

use crate::binding::ServiceAccountFacts;

/// How long an answer of the API server stands in for the watch, which will have caught up by then.
const FOUND_FOR: Duration = Duration::from_secs(30);

/// How long nobody else asks for the same one, and how long an answer may take.
pub(super) const ASKED_FOR: Duration = Duration::from_secs(2);

/// Answers and questions that are remembered: many more than can be under way at the pace of a lookup.
const REMEMBERED: u64 = 4096;

/// Namespace and name.
pub(super) type Key = (Box<str>, Box<str>);

/// Questions and answers.
pub(super) struct Answers {
    found: Cache<Key, Arc<ServiceAccountFacts>>,
    asked: Cache<Key, ()>,
}

impl Answers {
    /// What was answered of one lately, unless the watch has told of it since.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<ServiceAccountFacts> {
        let key = (namespace.into(), name.into());
        self.found.get(&key).map(|facts| (*facts).clone())
    }

    /// Notes that somebody is about to ask for one. Says whether nobody else just has.
    pub(super) fn begin(&self, key: &Key) -> bool {
        self.asked.entry_by_ref(key).or_insert(()).is_fresh()
    }

    /// Takes an answer in, unless the watch has told of the same one while it was under way.
    pub(super) fn take(&self, key: Key, facts: ServiceAccountFacts) {
        if self.asked.contains_key(&key) {
            self.found.insert(key, Arc::new(facts));
        }
    }

    /// The watch has told of this one: an answer from before may be that of one that was deleted since.
    pub(super) fn forget(&self, metadata: &ObjectMeta) {
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else { return };
        let key = (namespace.as_str().into(), name.as_str().into());
        self.asked.invalidate(&key);
        self.found.invalidate(&key);
    }

    /// The watch has told of all there are.
    pub(super) fn forget_all(&self) {
        self.found.invalidate_all();
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            found: Cache::builder().max_capacity(REMEMBERED).time_to_live(FOUND_FOR).build(),
            asked: Cache::builder().max_capacity(REMEMBERED).time_to_live(ASKED_FOR).build(),
        }
    }
}
