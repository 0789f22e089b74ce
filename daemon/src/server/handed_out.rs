//! What a source of requests was handed out last, so that its next one need not look for it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;

use crate::{
    credentials::{CredentialManager, Found, Mark},
    pods::Pod,
};

/// Which credentials a pod got in its own role. It keeps none of them.
#[derive(Debug, Default)]
pub(super) struct HandedOut(Mutex<Option<(Arc<Pod>, Mark)>>);

impl HandedOut {
    /// The document of before, where to look for that of `pod` would find the same.
    pub(super) fn again(
        &self,
        pod: &Arc<Pod>,
        credentials: &CredentialManager,
        now: SystemTime,
    ) -> Option<Bytes> {
        let last = self.last();
        // A pod that has changed is another value: its role may be another one.
        let (_, mark) = last.as_ref().filter(|(then, _)| Arc::ptr_eq(then, pod))?;
        credentials.again(mark, now).map(|credentials| credentials.reply())
    }

    /// Takes what `pod` was handed out.
    pub(super) fn remember(&self, pod: &Arc<Pod>, found: &Found) {
        *self.last() = Some((pod.clone(), found.mark()));
    }

    fn last(&self) -> MutexGuard<'_, Option<(Arc<Pod>, Mark)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
