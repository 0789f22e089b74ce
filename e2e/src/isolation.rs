//! Runs this program again in namespaces of its own, so that what it does to a machine ends with it, however it ends.
//!
//! Links, addresses, rules and mounts belong to namespaces, and processes to one too: the kernel takes all of them
//! away when the first process within ends. What is left is a folder and control groups; a janitor outside removes
//! these, and [`end_all_but`] where even the janitor was killed.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};

use crate::cluster::cgroups;
use crate::scratch::KEEP;

/// How every folder and control group of ours begins.
const PREFIX: &str = "rolecall-cluster-";

/// Longer than processes take to die on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// In the folder: who has made it.
const SUPERVISOR: &str = "supervisor";

/// Runs this program with `arguments` and the path of a new folder behind them, in namespaces of its own, and
/// removes all traces once it has ended.
///
/// The folder's name is for a control group too. `janitor` are the arguments by which this program becomes
/// [`clean_up_after`], again with the folder behind them.
pub fn run(arguments: &[OsString], janitor: &[OsString]) -> Result<ExitStatus> {
    anyhow::ensure!(getuid().is_root(), "a cluster needs root: containers are made by nobody else here");
    let program = std::env::current_exe().context("find this program")?;
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().context("make a temporary folder")?.keep();
    let mut janitor = Command::new(&program)
        .args(janitor)
        .arg(&folder)
        .stdin(Stdio::piped())
        // Its own group: Ctrl-C ends the cluster and is no concern of the janitor.
        .process_group(0)
        .spawn()
        .context("start the janitor")?;
    let here = Supervisor::of(std::process::id()).context("read /proc")?;
    fs::write(folder.join(SUPERVISOR), here.to_text()).context("write who supervises")?;
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary)?;

    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(["--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(arguments)
        .arg(&folder)
        // Nothing of the inside cleans up after a kill, so its temporary files are where the janitor finds them.
        .env("TMPDIR", temporary)
        .status()
        .context("run unshare of util-linux")?;
    // Waiting closes its input first, which is the sign to begin.
    let cleaned = janitor.wait().context("wait for the janitor")?;
    anyhow::ensure!(cleaned.success(), "something of {} is left: `make e2e-down`", folder.display());
    Ok(status)
}

/// What the janitor does: waits until its input ends, with the process that has started it, and removes what it left.
pub fn clean_up_after(folder: &Path) -> Result<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context("wait for the end of the input")?;
    remove_remains(folder)
}

/// Ends every cluster on this machine but those of `spared`, and removes what is left of those that were killed. Returns
/// their folders.
pub fn end_all_but(spared: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut folders = remains()?;
    folders.retain(|folder| !spared.contains(folder));
    for folder in &folders {
        let text = fs::read_to_string(folder.join(SUPERVISOR)).unwrap_or_default();
        if let Some(supervisor) = Supervisor::from_text(&text)
            && supervisor.is_running()
        {
            kill(Pid::from_raw(supervisor.id), Signal::SIGKILL).context("kill the supervisor")?;
        }
        remove_remains(folder)?;
    }
    Ok(folders)
}

/// The folders of all clusters of this user on this machine that run or were killed, also of those whose folder is gone
/// already.
pub fn remains() -> Result<Vec<PathBuf>> {
    let temporary = std::env::temp_dir();
    let mut folders = Vec::new();
    for entry in fs::read_dir(&temporary).context("list the temporary folders")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            folders.push(entry.path());
        }
    }
    for name in cgroups::named(PREFIX)? {
        let folder = temporary.join(name);
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.retain(|folder| is_ours_or_gone(folder));
    Ok(folders)
}

/// Whether nobody else has made it: anybody may make a folder of such a name, and have a process killed that it names.
fn is_ours_or_gone(folder: &Path) -> bool {
    match fs::symlink_metadata(folder) {
        Ok(metadata) => metadata.uid() == getuid().as_raw(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Removes folder and control groups, as soon as the last process is gone from them.
fn remove_remains(folder: &Path) -> Result<()> {
    let name = folder.file_name().context("the folder has a name")?.to_string_lossy();
    let until = Instant::now() + LIMIT;
    loop {
        let removed = cgroups::remove(&name).and_then(|()| remove_folder(folder));
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if until < Instant::now() => {
                return Err(anyhow!(error).context(format!("remove what is left of {name}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    match std::env::var_os(KEEP) {
        Some(_) => Ok(()),
        None if folder.exists() => fs::remove_dir_all(folder),
        None => Ok(()),
    }
}

/// A process, told from a later one with the same id by the time of its start.
#[derive(Debug, PartialEq, Eq)]
struct Supervisor {
    id: i32,
    started: String,
}

impl Supervisor {
    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(PathBuf::from(format!("/proc/{id}/stat"))).ok()?;
        // The name in brackets may hold anything; what follows it starts with the third field.
        let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.to_owned();
        Some(Self { id: i32::try_from(id).ok()?, started })
    }

    fn to_text(&self) -> String {
        format!("{} {}", self.id, self.started)
    }

    fn from_text(text: &str) -> Option<Self> {
        let (id, started) = text.trim().split_once(' ')?;
        Some(Self { id: id.parse().ok()?, started: started.to_owned() })
    }

    fn is_running(&self) -> bool {
        u32::try_from(self.id).ok().and_then(Self::of).as_ref() == Some(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_id() {
        let this = Supervisor::of(std::process::id()).unwrap();
        assert!(this.is_running());
        assert_eq!(Supervisor::from_text(&this.to_text()).unwrap(), this);
        let former = Supervisor { started: "1".to_owned(), ..this };
        assert!(!former.is_running());
    }

    #[test]
    fn a_text_of_another_form_names_no_process() {
        assert_eq!(Supervisor::from_text(""), None);
        assert_eq!(Supervisor::from_text("someone 12"), None);
    }

    #[test]
    fn a_folder_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_ours_or_gone(folder.path()));
        // To give it away takes root, who owns `/` otherwise.
        let somebodys = if getuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(65534), None).unwrap();
            folder.path()
        } else {
            Path::new("/")
        };
        assert!(!is_ours_or_gone(somebodys));
        assert!(is_ours_or_gone(&folder.path().join("gone")));
    }
}
