//! A kubelet's pods directory, written as the kubelet's atomic writer does.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

use crate::clock;

/// Mode of a token's file in a pod that sets no user and no group.
const DEFAULT_MODE: u32 = 0o644;

/// The directory in which a kubelet keeps one directory for each pod of its node.
///
/// One made with [`KubeletDir::new`] is removed when its last handle is dropped.
#[derive(Debug, Clone)]
pub struct KubeletDir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// One writer at a time, as there is one kubelet.
    writing: Mutex<()>,
    _temporary: Option<TempDir>,
}

impl KubeletDir {
    /// An empty temporary directory.
    pub fn new() -> io::Result<Self> {
        let temporary = TempDir::with_prefix("rolecall-kubelet-")?;
        let path = temporary.path().join("pods");
        fs::create_dir(&path)?;
        Ok(Self::over(path, Some(temporary)))
    }

    /// A directory of the caller's, created if it is not there, and left behind.
    pub fn at(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)?;
        Ok(Self::over(path, None))
    }

    /// The pods directory itself.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Directory of a volume of a pod.
    pub fn volume_path(&self, pod_uid: &str, volume: &str) -> PathBuf {
        self.0.path.join(pod_uid).join("volumes/kubernetes.io~projected").join(volume)
    }

    /// Where the pod's containers would find a file of a volume: through the symlinks, so that reading it again
    /// after a rotation gives the new content.
    pub fn token_path(&self, pod_uid: &str, volume: &str, file: &str) -> PathBuf {
        self.volume_path(pod_uid, volume).join(file)
    }

    /// Makes a pod's directory as the kubelet does before it sets up any volume.
    pub fn create_pod(&self, pod_uid: &str) -> io::Result<()> {
        let pod = self.0.path.join(pod_uid);
        for directory in ["containers", "plugins", "volumes"] {
            fs::create_dir_all(pod.join(directory))?;
        }
        Ok(())
    }

    /// Writes a pod's token, or rotates the one that is there. The file can be read at every moment in between.
    pub fn write_token(&self, pod_uid: &str, volume: &str, file: &str, token: &str) -> io::Result<()> {
        self.write_volume(pod_uid, volume, &[(file, token)], DEFAULT_MODE)
    }

    /// Writes or rotates a whole projected volume; a file that is no longer among `files` goes. The kubelet's mode
    /// is 600 with `runAsUser`, 640 with `fsGroup`, else 644.
    pub fn write_volume(
        &self,
        pod_uid: &str,
        volume: &str,
        files: &[(&str, &str)],
        mode: u32,
    ) -> io::Result<()> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.create_pod(pod_uid)?;
        let volume = self.volume_path(pod_uid, volume);
        fs::create_dir_all(&volume)?;
        fs::set_permissions(&volume, Permissions::from_mode(0o1777))?;

        let data = volume.join("..data");
        let former = fs::read_link(&data).ok();
        let current = fresh_directory(&volume)?;
        for (file, content) in files {
            let path = volume.join(&current).join(file);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            write_file(&path, content, mode)?;
        }

        let swapped = volume.join("..data_tmp");
        symlink(&current, &swapped)?;
        fs::rename(&swapped, &data)?;
        for (file, _) in files {
            // Of a file in a folder, the folder is linked.
            let entry = top(file);
            match symlink(Path::new("..data").join(entry), volume.join(entry)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        if let Some(former) = former {
            let former = volume.join(former);
            for entry in fs::read_dir(&former)? {
                let name = entry?.file_name();
                if !files.iter().any(|(file, _)| name == *top(file)) {
                    fs::remove_file(volume.join(name))?;
                }
            }
            remove_tree(&former)?;
        }
        Ok(())
    }

    /// Takes a volume away, as the kubelet does before it removes the pod.
    pub fn remove_volume(&self, pod_uid: &str, volume: &str) -> io::Result<()> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        remove_tree(&self.volume_path(pod_uid, volume))
    }

    /// Takes a pod's directory away. A pod that has none is no error.
    pub fn remove_pod(&self, pod_uid: &str) -> io::Result<()> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        remove_tree(&self.0.path.join(pod_uid))
    }

    fn over(path: PathBuf, temporary: Option<TempDir>) -> Self {
        Self(Arc::new(Inner { path, writing: Mutex::new(()), _temporary: temporary }))
    }
}

/// Makes `..<timestamp>.<number>` and returns its name.
fn fresh_directory(volume: &Path) -> io::Result<PathBuf> {
    loop {
        let name = format!("..{}.{}", clock::volume_timestamp(clock::now()), fastrand::u32(..));
        // The mode is set apart from creation, for the umask cuts that one.
        match DirBuilder::new().mode(0o755).create(volume.join(&name)) {
            Ok(()) => {
                fs::set_permissions(volume.join(&name), Permissions::from_mode(0o755))?;
                return Ok(name.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// The first component of a file's path in its volume.
fn top(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

fn write_file(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const UID: &str = "3f1e7b9a-0c3d-4a55-9a34-6f1f6f9f2b11";

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_has_the_layout_of_the_kubelet() {
        let kubelet = KubeletDir::new().unwrap();
        kubelet.write_token(UID, "rolecall-token", "token", "eyJ").unwrap();

        let volume = kubelet.path().join(UID).join("volumes/kubernetes.io~projected/rolecall-token");
        assert_eq!(volume, kubelet.volume_path(UID, "rolecall-token"));
        assert_eq!(mode(&volume), 0o1777);
        let data = fs::read_link(volume.join("..data")).unwrap();
        let name = data.to_str().unwrap();
        let (timestamp, number) = name.strip_prefix("..").unwrap().split_once('.').unwrap();
        assert_eq!(timestamp.len(), "2026_11_20_23_12_56".len(), "{name}");
        assert!(number.parse::<u32>().is_ok(), "{name}");
        assert_eq!(mode(&volume.join(&data)), 0o755);
        assert_eq!(mode(&volume.join(&data).join("token")), 0o644);
        assert_eq!(fs::read_link(volume.join("token")).unwrap(), Path::new("..data/token"));
        assert_eq!(fs::read_to_string(kubelet.token_path(UID, "rolecall-token", "token")).unwrap(), "eyJ");
    }

    #[test]
    fn a_rotation_leaves_nothing_of_the_former_token() {
        let kubelet = KubeletDir::new().unwrap();
        for token in ["one", "two", "three"] {
            kubelet.write_token(UID, "v", "token", token).unwrap();
            assert_eq!(fs::read_to_string(kubelet.token_path(UID, "v", "token")).unwrap(), token);
        }
        let volume = kubelet.volume_path(UID, "v");
        let current = fs::read_link(volume.join("..data")).unwrap().into_os_string().into_string().unwrap();
        let mut expect = vec![current, "..data".to_owned(), "token".to_owned()];
        expect.sort();
        assert_eq!(names(&volume), expect);
    }

    #[test]
    fn a_rotation_never_leaves_the_token_missing() {
        let kubelet = KubeletDir::new().unwrap();
        kubelet.write_token(UID, "v", "token", "token-0").unwrap();
        let path = kubelet.token_path(UID, "v", "token");
        let data = kubelet.volume_path(UID, "v").join("..data");
        let (reading, done) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let before = fs::read_link(&data).unwrap();
                    match fs::read_to_string(&path) {
                        Ok(token) => assert!(token.starts_with("token-"), "{token:?}"),
                        // The walk had passed `..data` when the directory behind it was swapped and removed.
                        Err(error) => assert_ne!(fs::read_link(&data).unwrap(), before, "{error}"),
                    }
                    reading.store(true, Ordering::Release);
                }
            });
            while !reading.load(Ordering::Acquire) && !reader.is_finished() {
                thread::yield_now();
            }
            for n in 1..200 {
                kubelet.write_token(UID, "v", "token", &format!("token-{n}")).unwrap();
            }
            done.store(true, Ordering::Release);
        });
    }

    #[test]
    fn a_volume_may_hold_several_files_and_lose_one() {
        let kubelet = KubeletDir::new().unwrap();
        kubelet.write_volume(UID, "v", &[("ca.crt", "pem"), ("token", "eyJ")], 0o600).unwrap();
        assert_eq!(mode(&fs::canonicalize(kubelet.token_path(UID, "v", "ca.crt")).unwrap()), 0o600);
        kubelet.write_volume(UID, "v", &[("token", "eyJ2")], 0o640).unwrap();
        assert!(!kubelet.token_path(UID, "v", "ca.crt").is_symlink());
        assert_eq!(fs::read_to_string(kubelet.token_path(UID, "v", "token")).unwrap(), "eyJ2");
    }

    #[test]
    fn removing_a_pod_twice_is_no_error() {
        let kubelet = KubeletDir::new().unwrap();
        kubelet.write_token(UID, "v", "token", "eyJ").unwrap();
        kubelet.remove_volume(UID, "v").unwrap();
        assert!(kubelet.path().join(UID).exists());
        kubelet.remove_pod(UID).unwrap();
        kubelet.remove_pod(UID).unwrap();
        assert_eq!(names(kubelet.path()), Vec::<String>::new());
    }

    #[test]
    fn the_last_handle_takes_the_directory_with_it() {
        let kubelet = KubeletDir::new().unwrap();
        let path = kubelet.path().to_owned();
        let clone = kubelet.clone();
        drop(kubelet);
        assert!(path.exists());
        drop(clone);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_of_the_callers_stays() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("a/pods");
        KubeletDir::at(&path).unwrap().write_token(UID, "v", "token", "eyJ").unwrap();
        assert!(path.join(UID).exists());
    }
}
