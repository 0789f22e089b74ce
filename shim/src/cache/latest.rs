//! A value with one writer and many readers.

use std::sync::{Arc, PoisonError, RwLock};

/// The latest good value of something that is read whole. Cloning is cheap.
#[derive(Debug)]
pub struct Latest<T>(Arc<RwLock<Arc<T>>>);

impl<T> Latest<T> {
    /// The value now.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

impl<T: Default> Default for Latest<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
