//! The control groups of a cluster's pods, on either version of the hierarchy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// What the pods of a cluster weigh against each single thread outside of it, where a real node has all of its own
/// services in one group that weighs less than the pods. Without it, a daemon waited for the processor twenty times as
/// long as it ran, up to a second at once.
const SHARES: u32 = 20 * 1024;

/// Makes the group `name` beneath the root of every hierarchy, as a kubelet wants to find its own.
pub(super) fn make(name: &str) -> Result<()> {
    for root in roots()? {
        // From the root down: what a group may limit, its parent has to allow.
        let mut folder = root.clone();
        for part in Path::new(name) {
            let parent = folder.clone();
            folder.push(part);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            inherit(&parent, &folder)?;
            if parent == root {
                outweigh(&folder)?;
            }
        }
    }
    Ok(())
}

/// Removes the groups `name` and everything beneath them. Fails while a process is left in one.
pub fn remove(name: &str) -> io::Result<()> {
    for root in roots()? {
        remove_tree(&root.join(name))?;
    }
    Ok(())
}

/// The names of the groups right beneath the roots that start so.
pub fn named(prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for root in roots()? {
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// One with version 2; with version 1 one for each controller, and on a hybrid machine one without any.
fn roots() -> io::Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_owned()]);
    }
    let mut roots = Vec::new();
    for entry in fs::read_dir(mount)? {
        let entry = entry?;
        // Links name several controllers of one hierarchy.
        if entry.file_type()?.is_dir() {
            roots.push(entry.path());
        }
    }
    Ok(roots)
}

fn inherit(parent: &Path, child: &Path) -> Result<()> {
    // Version 1: a set of processors and memory that is empty takes no process.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        if from.exists() && fs::read_to_string(&to).is_ok_and(|content| content.trim().is_empty()) {
            let set = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
            fs::write(&to, set).with_context(|| format!("write {}", to.display()))?;
        }
    }
    // Version 2: one by one, for each that cannot be had would refuse all.
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        // What is not allowed here, the kubelet will miss and say so.
        let _refused = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Gives a group its [`SHARES`], where its hierarchy deals in the processor.
fn outweigh(folder: &Path) -> Result<()> {
    // As Kubernetes computes the weight of version 2 from the shares of version 1:
    // <https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/2254-cgroup-v2>
    let weight = 1 + (SHARES - 2) * 9999 / 262_142;
    for (file, value) in [("cpu.shares", SHARES), ("cpu.weight", weight)] {
        let file = folder.join(file);
        if file.exists() {
            fs::write(&file, value.to_string()).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
