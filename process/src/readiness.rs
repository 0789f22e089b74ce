//! Whether the daemon can serve, and if not, what is missing.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Ready once every [`Latch`] has been dropped and no [`Condition`] holds it back. Cloning is cheap.
///
/// A value that never had a latch is ready: take every latch before anything can ask.
#[derive(Clone, Default)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// Something that has to happen once before the daemon is ready; dropping it says that it has.
#[must_use = "dropping it says that it has happened"]
pub struct Latch {
    name: &'static str,
    id: u64,
    readiness: Readiness,
}

/// Something that has to hold for as long as the daemon is to be ready. It holds until told otherwise.
pub struct Condition {
    name: &'static str,
    id: u64,
    readiness: Readiness,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// In the order in which they were registered, which is the order of the boot.
    missing: BTreeMap<u64, Cow<'static, str>>,
}

impl Readiness {
    /// Holds readiness back until the returned value is dropped.
    pub fn latch(&self, name: &'static str) -> Latch {
        let mut state = self.state();
        let id = state.new_id();
        state.missing.insert(id, name.into());
        Latch { name, id, readiness: self.clone() }
    }

    /// Registers something that can hold readiness back at any later time.
    #[must_use]
    pub fn condition(&self, name: &'static str) -> Condition {
        let id = self.state().new_id();
        Condition { name, id, readiness: self.clone() }
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state().missing.is_empty()
    }

    /// Completes once it is ready.
    pub async fn ready(&self) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Enabled before looking, so that no change falls in between.
            changed.as_mut().enable();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    /// What holds readiness back, in words for an operator.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.state().missing.values().map(|what| what.clone().into_owned()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// Holds readiness back, for `reason`.
    pub fn broken(&self, reason: &str) {
        let what = format!("{}: {reason}", self.name).into();
        self.readiness.state().missing.insert(self.id, what);
    }

    /// Lets readiness be again.
    pub fn restored(&self) {
        self.readiness.state().missing.remove(&self.id);
        self.readiness.changed.notify_waiters();
    }
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let still_missing = {
            let mut state = self.readiness.state();
            state.missing.remove(&self.id);
            state.missing.len()
        };
        self.readiness.changed.notify_waiters();
        tracing::debug!(done = self.name, still_missing, "a step of the start is done");
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.restored();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_the_last_latch_drops() {
        let readiness = Readiness::default();
        let pods = readiness.latch("pods synced");
        let listeners = readiness.latch("listeners bound");
        assert_eq!(readiness.missing(), ["pods synced", "listeners bound"]);
        drop(pods);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.missing(), ["listeners bound"]);
        drop(listeners);
        assert!(readiness.is_ready());
        assert_eq!(readiness.missing(), [""; 0]);
    }

    #[test]
    fn two_latches_of_one_name_are_two_latches() {
        let readiness = Readiness::default();
        let first = readiness.latch("listener bound");
        let _second = readiness.latch("listener bound");
        drop(first);
        assert_eq!(readiness.missing(), ["listener bound"]);
    }

    #[test]
    fn a_condition_comes_and_goes() {
        let readiness = Readiness::default();
        let condition = readiness.condition("endpoint address");
        assert!(readiness.is_ready());
        condition.broken("169.254.170.23 is gone from lo");
        condition.broken("fd00:ec2::23 is gone from lo");
        assert_eq!(readiness.missing(), ["endpoint address: fd00:ec2::23 is gone from lo"]);
        condition.restored();
        assert!(readiness.is_ready());
        condition.broken("gone again");
        drop(condition);
        assert!(readiness.is_ready());
    }
}
