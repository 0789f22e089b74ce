//! Whom the requests of one address were found to come from, for as long as nothing has changed that this was decided
//! from.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use crate::pods::Pod;

/// What one address is remembered for, which every request that is decided with it comes from.
#[derive(Default)]
pub struct Memory(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Fresh,
    /// One request was decided. Most pods ask once in a long while, so nothing is kept yet.
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
    /// Who shares the address with the pod learns nothing of its token by the time that the comparison takes.
    pub(super) fn recall(&self, token: &[u8], basis: Basis, now: SystemTime) -> Option<Arc<Pod>> {
        match &*self.state() {
            State::Known { token: before, basis: then, until, pod }
                if *then == basis
                    && until.is_none_or(|until| now < until)
                    && verify_slices_are_equal(before, token).is_ok() =>
            {
                Some(pod.clone())
            }
            State::Fresh | State::Once | State::Known { .. } => None,
        }
    }

    /// Whether no request was decided yet.
    pub(in crate::server) fn is_fresh(&self) -> bool {
        matches!(*self.state(), State::Fresh)
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
