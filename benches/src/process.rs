//! The programs under measurement, each in a process of its own, and what the kernel tells of them.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    ops::{Add, Div, Sub},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};
use rolecall_sandbox::world::{NODE, World};
use tempfile::TempDir;

use crate::threads::Threads;

/// Where the daemon serves, as it does on a node.
pub(crate) const ENDPOINT: &str = "169.254.170.23:80";

/// What is not as it is by default: there is no metadata address to close, and a benchmark's one pod would meet the
/// limits that a real one keeps to.
pub(crate) const UNLIKE_DEFAULT: [&str; 4] = [
    "--metadata-firewall=off",
    "--max-requests-per-second-per-pod=1000000",
    "--max-connections-per-pod=1024",
    "--max-waiting-per-pod=1024",
];

/// The machine's root certificates, where Debian has them, and so the daemon's image; and where others do.
const ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Longer than anything takes that is to come.
const LIMIT: Duration = Duration::from_secs(120);

/// Longer than an end takes: the daemon's drain has 25 s.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A process that is killed when this is dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

/// Time on a processor.
#[derive(Clone, Copy, Default)]
pub(crate) struct CpuTime {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

/// The daemon as it ships, on a node of the sandbox.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first positive answer of `/readyz`.
    pub(crate) ready_after: Duration,
    _scratch: TempDir,
}

/// What the daemon runs under.
pub(crate) type Wrapper = Vec<OsString>;

impl Daemon {
    /// Starts it with its defaults but for where things are, [`UNLIKE_DEFAULT`] and `flags`, and waits until it is
    /// ready.
    pub(crate) fn start(world: &World, flags: &[&str], wrapper: &Wrapper) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let kubeconfig = scratch.path().join("kubeconfig");
        let admin = scratch.path().join("admin.sock");
        fs::write(&kubeconfig, world.cluster.kubeconfig())?;
        let mut command = wrapped(&beside_us("rolecall-daemon")?, wrapper);
        command
            .arg("--node-name")
            .arg(NODE)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--pods-dir")
            .arg(world.kubelet.path())
            .args(["--sts-endpoint", &world.sts.url()])
            .args(["--listen", ENDPOINT])
            .arg("--admin-socket")
            .arg(&admin)
            .args(UNLIKE_DEFAULT)
            .args(flags)
            .env("SSL_CERT_FILE", trust(scratch.path(), world)?)
            .env_remove("SSL_CERT_DIR")
            .stdout(Stdio::null())
            .stderr(fs::File::create(scratch.path().join("log"))?);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy().to_ascii_lowercase();
            if name.ends_with("_proxy") || name.starts_with("rolecall_") {
                command.env_remove(variable);
            }
        }
        let began = Instant::now();
        let mut process = Process::start("the daemon", command)?;
        let ready = |process: &mut Process| -> Result<bool> {
            if let Some(status) = process.child.try_wait()? {
                let log = fs::read_to_string(scratch.path().join("log")).unwrap_or_default();
                bail!("the daemon ended with {status}:\n{log}");
            }
            Ok(is_ready(&admin))
        };
        while !ready(&mut process)? {
            ensure!(began.elapsed() < LIMIT, "the daemon is not ready after {LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
        let ready_after = began.elapsed();
        Ok(Self { process, address: ENDPOINT.parse()?, ready_after, _scratch: scratch })
    }
}

/// Writes whom the daemon shall trust: as many as on a node, and the authority of this world.
fn trust(scratch: &Path, world: &World) -> Result<PathBuf> {
    let roots = ROOTS
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .context("find the machine's root certificates; install ca-certificates")?;
    let authority = world.authority.as_ref().context("the world speaks TLS")?;
    let path = scratch.join("roots.pem");
    fs::write(&path, format!("{roots}\n{}", authority.pem()))?;
    Ok(path)
}

/// Starts this program's own floor on `body` and returns where it listens.
pub(crate) fn start_floor(body: &[u8], wrapper: &Wrapper) -> Result<(Process, SocketAddr)> {
    // Not by its name: cargo puts another build of it there when it runs a benchmark.
    let ourselves = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let mut command = wrapped(&ourselves, wrapper);
    command.arg("floor").arg(std::str::from_utf8(body)?).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process::start("the floor", command)?;
    let stdout = process.child.stdout.take().context("the floor has an output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((process, line.trim().parse().context("the floor says where it listens")?))
}

impl Process {
    fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("start {name} with setpriv of util-linux"))?;
        Ok(Self { name, child })
    }

    /// Bytes that are resident and belong to nothing but this process: heap, stacks and changed data. The program's
    /// own pages are left out, for all daemons of a node share them with the page cache.
    pub(crate) fn anonymous_memory(&self) -> Result<u64> {
        self.status("RssAnon:")
    }

    /// Resident bytes.
    pub(crate) fn resident_memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Time on a processor since the start, in ticks of some milliseconds.
    pub(crate) fn cpu_time(&self) -> Result<CpuTime> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The fields after the program's name, which may have spaces (proc(5)): 14 and 15 are utime and stime.
        let (_, rest) = stat.rsplit_once(')').context("the form of /proc/<pid>/stat")?;
        let mut fields = rest.split_whitespace().skip(11);
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks per second")?;
        let mut time = || -> Result<Duration> {
            let ticks: u64 = fields.next().context("the fields of /proc/<pid>/stat")?.parse()?;
            Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
        };
        Ok(CpuTime { user: time()?, system: time()? })
    }

    /// What the kernel accounts for its threads: time to the nanosecond, but not split by what it was for.
    pub(crate) fn threads(&self) -> Result<Threads> {
        Threads::of(self.child.id())
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(asked.elapsed() < END_LIMIT, "{} has not ended {END_LIMIT:?} after SIGTERM", self.name);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kibibytes.with_context(|| format!("{field} in /proc/<pid>/status"))?.parse::<u64>()? * 1024)
    }
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        // The kernel splits a total, and may move some of it from one part to the other later.
        let (user, system) = (self.user, self.system);
        Self { user: user.saturating_sub(earlier.user), system: system.saturating_sub(earlier.system) }
    }
}

impl Div<u32> for CpuTime {
    type Output = Self;

    fn div(self, by: u32) -> Self {
        Self { user: self.user / by.max(1), system: self.system / by.max(1) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of this name in the directory of this one.
pub(crate) fn beside_us(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not there: cargo build --release -p {name}", path.display());
    Ok(path)
}

/// The kernel kills the program when this process is gone, whichever way that ends. To ask for that between fork and
/// exec in our own code would take `unsafe`; setpriv does it and becomes the program, under the same process id.
///
/// To be started by the main thread: to the kernel, a parent is gone when the thread is that started the child.
fn wrapped(program: &Path, wrapper: &Wrapper) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(wrapper).arg(program);
    command
}

fn is_ready(admin: &Path) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = UnixStream::connect(admin) else { return false };
    let asked = stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n");
    let mut reply = String::new();
    asked.and_then(|()| stream.read_to_string(&mut reply)).is_ok() && reply.contains(" 200 ")
}
