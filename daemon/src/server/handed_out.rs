//! What a connection was handed out last, so that its next request need not look for it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;

use crate::{
    credentials::{CredentialManager, Found},
    pods::Pod,
};

/// The credentials of a pod in its own role, as one connection got them.
#[derive(Default)]
pub(super) struct HandedOut(Mutex<Option<(Arc<Pod>, Found)>>);

impl HandedOut {
    /// The document of before, where to look for that of `pod` would find the same.
    pub(super) fn again(
        &self,
        pod: &Arc<Pod>,
        credentials: &CredentialManager,
        now: SystemTime,
    ) -> Option<Bytes> {
        let mut last = self.last();
        let (then, found) = last.as_ref()?;
        // A pod that has changed is another value: its role may be another one.
        if Arc::ptr_eq(then, pod) && credentials.holds(found, now) {
            return Some(found.credentials().reply());
        }
        // Nobody needs the old keys any more.
        *last = None;
        None
    }

    /// Takes what `pod` was handed out.
    pub(super) fn remember(&self, pod: &Arc<Pod>, found: Found) {
        *self.last() = Some((pod.clone(), found));
    }

    fn last(&self) -> MutexGuard<'_, Option<(Arc<Pod>, Found)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It holds credentials, which have no text form.
impl fmt::Debug for HandedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandedOut(…)")
    }
}
