//! Whom a connection was found to be, for as long as nothing has changed that this was decided from.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use zeroize::Zeroizing;

use crate::pods::Pod;

/// What one connection is remembered for. The peer address is the connection's own, and never changes.
#[derive(Default)]
pub struct Memory(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Fresh,
    /// One request was decided. Most connections carry no second one, so nothing is kept yet.
    Once,
    Known {
        token: Zeroizing<Vec<u8>>,
        basis: Basis,
        /// When the token's age makes a difference for the next time, if it still can.
        until: Option<SystemTime>,
        pod: Arc<Pod>,
    },
}

/// All that can change what the same token from the same address is decided to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Basis {
    /// Of the table of pods.
    pub(super) pods: u64,
    /// Of the node's addresses.
    pub(super) node: u64,
}

impl Memory {
    /// The caller of before, where `token` is the one of before, nothing has changed, and its age does not matter
    /// more than it did.
    ///
    /// The comparison takes as long as the tokens agree, which tells the other end nothing but what it sent itself.
    pub(super) fn recall(&self, token: &[u8], basis: Basis, now: SystemTime) -> Option<Arc<Pod>> {
        match &*self.state() {
            State::Known { token: before, basis: then, until, pod }
                if *then == basis && until.is_none_or(|until| now < until) && before.as_slice() == token =>
            {
                Some(pod.clone())
            }
            State::Fresh | State::Once | State::Known { .. } => None,
        }
    }

    /// Whether more than one request was decided, so that there may well be another.
    pub(in crate::server) fn is_in_use(&self) -> bool {
        matches!(*self.state(), State::Known { .. })
    }

    /// Takes what was decided from `basis` for a token that expires at `until`, or has expired.
    pub(super) fn remember(&self, token: &str, basis: Basis, until: Option<SystemTime>, pod: &Arc<Pod>) {
        let mut state = self.state();
        *state = match &*state {
            State::Fresh => State::Once,
            State::Once | State::Known { .. } => {
                let token = Zeroizing::new(token.as_bytes().to_vec());
                State::Known { token, basis, until, pod: pod.clone() }
            }
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It holds a token, which has no text form.
impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory(…)")
    }
}
