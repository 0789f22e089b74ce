//! Where the benchmarks have their files.

use std::{env, path::Path};

/// Where many a machine has a file system in memory.
const MEMORY: &str = "/dev/shm";

/// Has them in memory where the machine has such a place, unless `TMPDIR` says otherwise: as on a node, where tokens are
/// on a tmpfs (the volume's medium is memory), and so that nobody waits for a disk that others write to.
pub(crate) fn keep_in_memory() {
    let is_there = tempfile::tempdir_in(MEMORY).is_ok();
    if is_there && env::var_os("TMPDIR").is_none() {
        // It is refused when it has been said before.
        let _ = tempfile::env::override_temp_dir(Path::new(MEMORY));
    }
}
