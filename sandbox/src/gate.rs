//! A gate that requests queue behind until a test lets them through.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Holds requests back, in the order of their arrival, until they are released.
///
/// Dropping it releases all, so that a failing test leaves no request hanging.
#[derive(Debug)]
pub struct Gate(Arc<Semaphore>);

/// The side of a [`Gate`] that requests wait on.
#[derive(Debug, Clone)]
pub(crate) struct Turnstile(Arc<Semaphore>);

impl Gate {
    /// A closed gate, and what requests wait on.
    pub(crate) fn closed() -> (Self, Turnstile) {
        let semaphore = Arc::new(Semaphore::new(0));
        (Self(semaphore.clone()), Turnstile(semaphore))
    }

    /// Lets one request through: the one that has waited longest, or the next to come.
    pub fn release_one(&self) {
        self.0.add_permits(1);
    }

    /// Lets every request through, waiting and future ones.
    pub fn release_all(&self) {
        self.0.close();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release_all();
    }
}

impl Turnstile {
    /// Waits until this request is let through.
    pub(crate) async fn pass(&self) {
        // A closed semaphore is an open gate: acquiring fails at once and nobody waits any longer.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}
