//! The file of a Unix socket: made for root alone, put in the place of a stale one, taken away at the end.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process,
};

/// The socket's file, which goes when this is dropped, unless it has been replaced meanwhile.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: the file of a successor is not ours to remove. `None` where it is left to one.
    id: Option<(u64, u64)>,
}

/// Listens at `path`, readable and writable for the owner alone; the directory is made where it is missing.
///
/// A file that a process without a proper end left behind is replaced; a socket on which somebody still listens
/// and a file of another kind are errors.
///
/// # Errors
/// When the path cannot be had; the text says what is in its way.
pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    make_directory(path)?;
    check_free(path)?;
    put(path)
}

/// As [`bind`], but in the place of whatever socket is there: its listener is on its way out.
///
/// # Errors
/// As [`bind`].
pub fn replace(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    make_directory(path)?;
    put(path)
}

/// Removes the file of a socket on which nobody listens any more, and what a process that was killed while it made
/// one has left beside it. Returns what was there.
///
/// # Errors
/// When somebody listens there, when a file of another kind is there, or when it cannot be removed.
pub fn remove_stale(path: &Path) -> io::Result<Vec<PathBuf>> {
    check_free(path).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => io::Error::new(error.kind(), "a process still listens there; end it first"),
        _other => error,
    })?;
    let mut removed = drafts(path)?;
    removed.extend(fs::symlink_metadata(path).is_ok().then(|| path.to_owned()));
    for path in &removed {
        remove_if_there(path)?;
    }
    Ok(removed)
}

/// What [`put`] has made and did not come to rename.
fn drafts(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut drafts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let found = entry.file_name();
        let end = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let end = end.and_then(|end| end.strip_prefix(b"."));
        let is_process = end.is_some_and(|end| !end.is_empty() && end.iter().all(u8::is_ascii_digit));
        if is_process && entry.file_type()?.is_socket() {
            drafts.push(entry.path());
        }
    }
    Ok(drafts)
}

fn make_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn put(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Bound under another name first: at its own name it is never seen with the wrong mode, and the stale file is
    // replaced in one step.
    let mut draft = OsString::from(path);
    draft.push(format!(".{}", process::id()));
    let draft = PathBuf::from(draft);
    remove_if_there(&draft)?;
    let listener = UnixListener::bind(&draft)?;
    let settled = settle(&listener, &draft, path);
    if settled.is_err() {
        let _ = remove_if_there(&draft);
    }
    Ok((listener, settled?))
}

impl SocketFile {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is the one that was put there.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.id.is_some() && id_of(&self.path).ok() == self.id
    }

    /// Leaves the file to whoever comes after, who puts another in its place.
    pub fn leave(mut self) {
        self.id = None;
    }
}

fn settle(listener: &UnixListener, draft: &Path, path: &Path) -> io::Result<SocketFile> {
    listener.set_nonblocking(true)?;
    fs::set_permissions(draft, Permissions::from_mode(0o600))?;
    let id = id_of(draft)?;
    fs::rename(draft, path)?;
    Ok(SocketFile { path: path.to_owned(), id: Some(id) })
}

/// Whether `path` may be taken.
fn check_free(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file that is not a socket is there; choose another path",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "another process listens there; give each process a path of its own",
        )),
        Err(_) => Ok(()),
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn the_socket_is_the_owners_alone_in_a_directory_that_is_made_for_it() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("run/rolecall/admin.sock");
        let (_listener, file) = bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        assert_eq!(names(path.parent().unwrap()), ["admin.sock"]);
        drop(file);
        assert_eq!(names(path.parent().unwrap()), [""; 0]);
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("admin.sock");
        // Dropping a listener of the standard library leaves its file: as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_on_which_somebody_listens_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("admin.sock");
        let (_listener, _file) = bind(&path).unwrap();
        assert_eq!(bind(&path).err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "mine").unwrap();
        assert_eq!(bind(&path).err().map(|error| error.kind()), Some(ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_file_that_is_left_to_a_successor_stays_and_is_replaced_while_somebody_listens() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("admin.sock");
        let (_listener, file) = bind(&path).unwrap();
        file.leave();
        assert!(path.exists());
        let (successor, its_file) = replace(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        successor.accept().unwrap();
        let (_next, _file_of_next) = replace(&path).unwrap();
        assert!(!its_file.is_in_place());
    }

    #[test]
    fn what_killed_processes_leave_is_removed_and_nothing_else() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("run/handover.sock");
        assert_eq!(remove_stale(&path).unwrap(), [""; 0].map(PathBuf::from), "not even the directory");
        let (listener, file) = bind(&path).unwrap();
        file.leave();
        let draft = dir.path().join("run/handover.sock.4711");
        drop(UnixListener::bind(&draft).unwrap());
        assert_eq!(remove_stale(&path).err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        assert!(path.exists() && draft.exists());

        drop(listener);
        let others = ["handover.sock.old", "handover.socket", "handover.sock.12"];
        for name in others {
            fs::write(dir.path().join("run").join(name), "mine").unwrap();
        }
        assert_eq!(remove_stale(&path).unwrap(), [draft, path.clone()]);
        let mut left = names(path.parent().unwrap());
        left.sort();
        assert_eq!(left, ["handover.sock.12", "handover.sock.old", "handover.socket"]);
        assert_eq!(remove_stale(&path).unwrap(), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn the_file_of_a_successor_is_not_removed() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("admin.sock");
        let (listener, file) = bind(&path).unwrap();
        drop(listener);
        let (_successor, _its_file) = bind(&path).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }
}
