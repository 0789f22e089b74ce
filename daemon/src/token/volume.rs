//! The kubelet's directory of pods: finds and reads the projected token of a pod, and nothing else.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat},
};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{MAX_TOKEN_LENGTH, Token};
use crate::identity::PodUid;

/// A token in a projected volume of a pod, as the pod's spec names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenVolume {
    /// Name of the volume.
    pub volume: Arc<str>,
    /// Path of the token's file in it.
    pub path: Arc<str>,
}

/// Reads tokens beneath the kubelet's directory of pods (`/var/lib/kubelet/pods`). Cloning is cheap.
#[derive(Debug, Clone)]
pub struct TokenSource {
    pods_dir: Arc<Path>,
}

/// Why a token cannot be had from disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The kubelet has not written it yet, or has taken it away with the pod.
    #[error("find no token of the pod in the kubelet's directory")]
    Missing,
    /// A path that leads out of the volume, a file that is no file, or one that is too large or no text.
    #[error("refuse the pod's token file: {0}")]
    Unusable(&'static str),
    /// The directory cannot be read: missing rights or mounts, which only the operator can mend.
    #[error("read the pod's token")]
    Io(#[source] Arc<io::Error>),
}

impl TokenSource {
    /// A reader beneath `pods_dir`.
    pub fn new(pods_dir: PathBuf) -> Self {
        Self { pods_dir: pods_dir.into() }
    }

    /// Whether the directory of pods is there, to be told at the start.
    ///
    /// # Errors
    /// What the system says of it.
    pub fn check(&self) -> Result<(), ReadError> {
        open_pods_dir(&self.pods_dir).map(drop)
    }

    /// Reads the token of pod `uid` out of the first of `volumes` that has one.
    ///
    /// # Errors
    /// [`ReadError::Missing`] when none has.
    pub async fn read(&self, uid: &PodUid, volumes: &[TokenVolume]) -> Result<Token, ReadError> {
        let (pods_dir, uid, volumes) = (self.pods_dir.clone(), uid.clone(), volumes.to_vec());
        tokio::task::spawn_blocking(move || read_first(&pods_dir, &uid, &volumes))
            .await
            .map_err(|error| ReadError::Io(Arc::new(io::Error::other(error))))?
    }

    /// Reads the token as [`TokenSource::read`] does, and waits for it where it is missing.
    ///
    /// The kubelet writes it some 100 to 700 ms after the pod is bound, and the container starts 250 ms or more
    /// after that (measured), so the lead is short. A directory watch cannot see it come: it appears in a file
    /// system that is mounted over the watched directory. So this looks again after an eighth of the time it
    /// has waited so far, between 5 ms and 5 s: soon while it is young, rarely once it is old.
    ///
    /// # Errors
    /// All but [`ReadError::Missing`].
    pub async fn wait(&self, uid: &PodUid, volumes: &[TokenVolume]) -> Result<Token, ReadError> {
        let began = Instant::now();
        loop {
            match self.read(uid, volumes).await {
                Err(ReadError::Missing) => tokio::time::sleep(look_again_in(began.elapsed())).await,
                done => return done,
            }
        }
    }
}

fn look_again_in(waited: Duration) -> Duration {
    (waited / 8).clamp(Duration::from_millis(5), Duration::from_secs(5))
}

fn read_first(pods_dir: &Path, uid: &PodUid, volumes: &[TokenVolume]) -> Result<Token, ReadError> {
    let mut error = ReadError::Missing;
    for volume in volumes {
        match read_volume(pods_dir, uid, volume) {
            Err(ReadError::Missing) => {}
            Err(other) => error = other,
            Ok(token) => return Ok(token),
        }
    }
    Err(error)
}

fn read_volume(pods_dir: &Path, uid: &PodUid, volume: &TokenVolume) -> Result<Token, ReadError> {
    let is_plain = |text: &str| {
        let mut parts = Path::new(text).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    if !is_plain(&volume.volume) {
        return Err(ReadError::Unusable("its volume's name is a path"));
    }
    let pods = open_pods_dir(pods_dir)?;
    let within: PathBuf =
        [uid.as_str(), "volumes", "kubernetes.io~projected", &volume.volume].iter().collect();
    let directory = open(
        pods.as_fd(),
        &within,
        OFlag::O_PATH | OFlag::O_DIRECTORY,
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS,
    )?;
    let mut missed_in = None;
    loop {
        // The kubelet's own links lead from the file to `..data` and on, all inside of the volume. The file is opened
        // without blocking, so that a fifo in its place cannot hold the thread.
        let file = open(
            directory.as_fd(),
            Path::new(&*volume.path),
            OFlag::O_RDONLY | OFlag::O_NONBLOCK,
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        if let Err(ReadError::Missing) = file {
            // A rotation leads the link to another folder and takes the former away, perhaps while it is walked through.
            let data = readlinkat(&directory, "..data").ok();
            if data.is_some() && data != missed_in {
                missed_in = data;
                continue;
            }
        }
        return read_capped(File::from(file?));
    }
}

/// Its absence is no missing token but a wrong mount, which would look like one for every pod.
fn open_pods_dir(path: &Path) -> Result<OwnedFd, ReadError> {
    let opened = open(nix::fcntl::AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY, ResolveFlag::empty());
    opened.map_err(|error| match error {
        ReadError::Missing => ReadError::Io(Arc::new(Errno::ENOENT.into())),
        other => other,
    })
}

fn open(at: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, ReadError> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        return match openat2(&at, path, how) {
            Ok(fd) => Ok(fd),
            // EAGAIN: a rename raced with the walk beneath; the kernel asks to try again.
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(ReadError::Missing),
            Err(Errno::EXDEV | Errno::ELOOP) => Err(ReadError::Unusable("a link leads out of its volume")),
            Err(errno) => Err(ReadError::Io(Arc::new(errno.into()))),
        };
    }
}

fn read_capped(file: File) -> Result<Token, ReadError> {
    let io = |error| ReadError::Io(Arc::new(error));
    if !file.metadata().map_err(io)?.is_file() {
        return Err(ReadError::Unusable("it is not a regular file"));
    }
    // One allocation of the full size: a buffer that grew would leave parts of the token behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TOKEN_LENGTH + 1));
    file.take(MAX_TOKEN_LENGTH as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if MAX_TOKEN_LENGTH < bytes.len() {
        return Err(ReadError::Unusable("it is larger than 16 KiB"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| ReadError::Unusable("it is not text"))?;
    let token = Token::new(text);
    if token.expose().is_empty() { Err(ReadError::Missing) } else { Ok(token) }
}

#[cfg(test)]
mod tests;
