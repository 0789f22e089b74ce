//! Files that are exchanged as the kubelet exchanges those of a volume.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A volume as the kubelet fills it: the files' names lead through `..data`, which is exchanged as a whole.
pub(crate) struct Volume {
    folder: TempDir,
    version: u32,
}

impl Volume {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let mut volume = Self { folder: TempDir::new().unwrap(), version: 0 };
        volume.fill(files);
        volume
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn fill(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = self.path(&format!("..v{}", self.version));
        fs::create_dir(&version).unwrap();
        for (name, content) in files {
            fs::write(version.join(name), content).unwrap();
            let link = self.path(name);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        let next = self.path("..data_tmp");
        symlink(&version, &next).unwrap();
        fs::rename(next, self.path("..data")).unwrap();
    }
}
