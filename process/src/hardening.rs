//! What a program that holds secrets gives up for their sake.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Keeps the memory of the process, in which there are secrets, from its neighbors.
///
/// Without it, a crash would write them to the node's disk, where they would lie until somebody looks; and a
/// process of the same user could read them through `/proc` or attach a debugger. Failing is no reason not to
/// serve: a container runtime may have taken the right to it.
pub fn close_memory() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "turn core dumps off");
    }
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "close the memory of the process to others");
    }
}
