//! A child process that cannot outlive the test process, whichever way that ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a child is asked whether it has ended, or whether it is ready.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Becomes the program that follows the first argument, which is the id of who must be the parent.
const UNLESS_ORPHANED: &str = r#"[ "$PPID" = "$1" ] || exit; shift; exec "$@""#;

/// A running program whose output goes to files. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// A command for [`Process::spawn`]. The caller adds arguments and environment, but no redirections.
    pub fn command(program: impl AsRef<OsStr>) -> Command {
        // The kernel kills the child when its parent is gone. Setting that between fork and exec in our own code
        // would take `unsafe`; setpriv does it and becomes the program, under the same process id. In between, a
        // shell looks whether the parent was gone before it was set.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", UNLESS_ORPHANED, "sh"]);
        command.arg(std::process::id().to_string()).arg(program);
        command
    }

    /// Starts a [`Process::command`]. Both its outputs go to `<folder>/<name>.log`.
    pub fn spawn(name: &str, command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        Self::spawn_with_output(name, command, log.clone(), log)
    }

    /// Starts a [`Process::command`] with its outputs apart: `<folder>/<name>.out` and `<folder>/<name>.log`.
    pub fn spawn_with_stdout(name: &str, command: Command, folder: &Path) -> Result<Self> {
        let stdout = folder.join(format!("{name}.out"));
        Self::spawn_with_output(name, command, stdout, folder.join(format!("{name}.log")))
    }

    fn spawn_with_output(name: &str, mut command: Command, stdout: PathBuf, stderr: PathBuf) -> Result<Self> {
        // Appending, so that a program that is started again continues its log.
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("open {}", path.display()))
        };
        command.stdin(Stdio::null()).stdout(open(&stdout)?).stderr(open(&stderr)?);
        let child =
            SPAWNER.spawn(command).with_context(|| format!("start {name} with setpriv of util-linux"))?;
        Ok(Self { name: name.to_owned(), child: Mutex::new(child), stdout, stderr })
    }

    /// The process id. It stays reserved until the handle is dropped or the end was observed.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.exit_status()?.is_none())
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        self.child().try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Sends a signal, for example SIGTERM for an orderly end or SIGSTOP for a process that hangs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        // Once waited for, its id may be another process's.
        if child.try_wait()?.is_some() {
            bail!("{} has ended already", self.name);
        }
        let pid = i32::try_from(child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill().and_then(|()| child.wait()).map(drop).with_context(|| format!("kill {}", self.name))
    }

    /// Waits for its end; fails after `limit`, with its logs.
    pub async fn exit(&self, limit: Duration) -> Result<ExitStatus> {
        let waited = tokio::time::timeout(limit, async {
            loop {
                if let Some(status) = self.exit_status()? {
                    return Ok(status);
                }
                tokio::time::sleep(POLL).await;
            }
        });
        waited.await.map_err(|_| anyhow!("{} did not end within {limit:?}\n{}", self.name, self.logs()))?
    }

    /// Everything it has logged.
    pub fn logs(&self) -> String {
        let log = std::fs::read(&self.stderr).unwrap_or_default();
        format!("--- {}\n{}", self.stderr.display(), String::from_utf8_lossy(&log))
    }

    /// Everything it has written to its standard output.
    pub fn stdout(&self) -> Result<String> {
        std::fs::read_to_string(&self.stdout).with_context(|| format!("read {}", self.stdout.display()))
    }

    /// Waits until `ready` says so. Fails as soon as the process ends, or after `limit`, with the end of its log.
    pub async fn wait_until_ready(&self, limit: Duration, ready: impl AsyncFn() -> bool) -> Result<()> {
        let waited = tokio::time::timeout(limit, async {
            while !ready().await {
                if let Some(status) = self.exit_status()? {
                    bail!("{} ended with {status}", self.name);
                }
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        });
        let outcome =
            waited.await.unwrap_or_else(|_| Err(anyhow!("{} was not ready within {limit:?}", self.name)));
        outcome.map_err(|error| error.context(self.end_of_log()))
    }

    fn end_of_log(&self) -> String {
        let logs = self.logs();
        let lines: Vec<&str> = logs.lines().collect();
        format!("the log of {} ends with\n{}", self.name, lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().expect("nothing panics while it holds this lock")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before; there is nobody to report anything else to.
        let _ = self.kill();
    }
}

/// The thread that starts all children.
///
/// A parent is gone, in the kernel's eyes, when the *thread* that started the child ends, and the thread of a
/// test, or of its runtime, ends before the process does. This one lasts as long as the process.
static SPAWNER: LazyLock<Spawner> = LazyLock::new(Spawner::start);

struct Spawner {
    requests: mpsc::Sender<(Command, mpsc::Sender<io::Result<Child>>)>,
}

impl Spawner {
    fn start() -> Self {
        let (requests, received) = mpsc::channel::<(Command, mpsc::Sender<io::Result<Child>>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in received {
                // The caller waits for the reply, so it is there to take it.
                let _ = reply.send(command.spawn());
            }
        });
        Self { requests }
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, child) = mpsc::channel();
        self.requests.send((command, reply)).expect("the spawner runs as long as the process");
        child.recv().expect("the spawner answers every request")
    }
}
