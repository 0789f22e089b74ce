//! The mark of a daemon that has handed over, so that it does not come back as the next one.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A file beside the admin socket, whose directory is a pod's own: it outlives the container and goes with the pod.
///
/// A container that is started again in a pod that has handed over finds it, and leaves the node to the daemon that
/// took over for as long as that lives.
#[derive(Debug, Clone)]
pub struct SteppedDown(PathBuf);

impl SteppedDown {
    /// The mark of the daemon whose admin socket is `admin_socket`.
    #[must_use]
    pub fn beside(admin_socket: &Path) -> Self {
        let mut path = OsString::from(admin_socket);
        path.push(".handed-over");
        Self(path.into())
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.exists()
    }

    /// # Errors
    /// When the file cannot be made.
    pub fn set(&self) -> io::Result<()> {
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&self.0).map(drop)
    }

    /// # Errors
    /// When the file cannot be taken away.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _gone => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_set_and_cleared_any_number_of_times() {
        let dir = tempfile::tempdir().unwrap();
        let mark = SteppedDown::beside(&dir.path().join("admin.sock"));
        assert!(!mark.is_set());
        for _ in 0..2 {
            mark.set().unwrap();
            assert!(mark.is_set() && dir.path().join("admin.sock.handed-over").exists());
        }
        for _ in 0..2 {
            mark.clear().unwrap();
            assert!(!mark.is_set());
        }
    }
}
