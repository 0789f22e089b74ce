//! A folder that goes with the test process, even when that is killed.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// When this variable is set, the folders stay, to be looked at.
pub(crate) const KEEP: &str = "ROLECALL_KEEP";

/// A new folder under the system's temporary one. Dropping it removes it.
///
/// A control plane that all tests of a process share lives in a static, which is never dropped; so it is not the
/// drop that removes the folder but a shell that waits for the end of its input.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    janitor: Option<Child>,
}

/// Reads until the other end is closed. Children that still write are about to be killed: hence the second try.
const JANITOR: &str = r#"cat >/dev/null; for _ in 1 2 3 4 5; do rm -rf -- "$1" && exit; sleep 0.2; done"#;

impl Scratch {
    /// Makes the folder, with `name` in its name.
    pub fn new(name: &str) -> Result<Self> {
        let prefix = format!("rolecall-{name}-");
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("make a temporary folder")?;
        if std::env::var_os(KEEP).is_some() {
            return Ok(Self { path: folder.keep(), janitor: None });
        }
        let mut command = Command::new("sh");
        command.args(["-c", JANITOR, "sh"]).arg(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Its own group: Ctrl-C ends the tests and is no concern of the janitor.
        command.process_group(0);
        let janitor = command.spawn().context("start sh")?;
        Ok(Self { path: folder.keep(), janitor: Some(janitor) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(janitor) = &mut self.janitor {
            // Closes its input, which is the sign to remove the folder. A failure leaves a folder and no more.
            let _ = janitor.wait();
        }
    }
}
