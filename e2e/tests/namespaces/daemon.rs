//! The real binary on the node of a test, in a world of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::LazyLock,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rolecall_sandbox::{
    World,
    cluster::pod::PodBuilder,
    world::{NODE, WorldPod},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::network::{self, Pod, find, wait_until};

const ROLE: &str = "arn:aws:iam::111122223333:role/orders";
const ADMIN: &str = "127.0.0.1:9910";
const METRICS: &str = "127.0.0.1:9911";

/// The API server, STS and kubelet directory of the node.
pub struct Surroundings {
    pub world: World,
    /// Its threads are on the network of the thread that made it.
    runtime: Runtime,
    dir: TempDir,
}

/// What a daemon is told of the world around it.
pub struct Settings<'a> {
    pub kubeconfig: &'a Path,
    /// The kubelet's directory of pods.
    pub pods: &'a Path,
    pub sts: &'a str,
    /// For its log and its socket.
    pub dir: &'a Path,
}

/// A running daemon. Dropping it kills it.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

/// Where the program is. Call it once before entering namespaces.
pub fn locate() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| rolecall_e2e::binary("rolecall-daemon").unwrap());
    &PROGRAM
}

impl Surroundings {
    pub fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = runtime.block_on(World::start()).unwrap();
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("kubeconfig"), world.cluster.kubeconfig()).unwrap();
        Self { world, runtime, dir }
    }

    /// The API's pod of a pod on the network; its token is on disk.
    pub fn pod(&self, name: &str, pod: &Pod) -> WorldPod {
        self.world.pod(self.builder(name).ip(&pod.v4).ip(&pod.v6)).unwrap()
    }

    pub fn builder(&self, name: &str) -> PodBuilder {
        PodBuilder::new("shop", name).service_account(name).role(ROLE)
    }

    /// Takes the API server away, or brings it back.
    pub fn set_outage(&self, outage: bool) {
        self.runtime.block_on(self.world.cluster.set_outage(outage)).unwrap();
    }

    /// Starts the daemon, whatever becomes of it.
    pub fn spawn(&self, flags: &[&str]) -> Daemon {
        self.spawn_by(&[], flags)
    }

    /// Starts the daemon by another program.
    pub fn spawn_by(&self, by: &[&str], flags: &[&str]) -> Daemon {
        self.spawn_in(self.dir.path(), by, flags)
    }

    /// Starts one of several daemons, with a log and an admin socket of its own, whatever becomes of it.
    pub fn spawn_as(&self, name: &str, flags: &[&str]) -> Daemon {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        self.spawn_in(&dir, &[], flags)
    }

    /// A path in the folder of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spawn_in(&self, dir: &Path, by: &[&str], flags: &[&str]) -> Daemon {
        let settings = Settings {
            kubeconfig: &self.dir.path().join("kubeconfig"),
            pods: self.world.kubelet.path(),
            sts: &self.world.sts.url(),
            dir,
        };
        Daemon::spawn(&settings, by, flags)
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self, flags: &[&str]) -> Daemon {
        self.start_by(&[], flags)
    }

    /// As [`Surroundings::spawn_as`], and waits until it is ready.
    pub fn start_as(&self, name: &str, flags: &[&str]) -> Daemon {
        let mut daemon = self.spawn_as(name, flags);
        daemon.wait_until_ready();
        daemon
    }

    /// Starts the daemon by another program, and waits until it is ready.
    pub fn start_by(&self, by: &[&str], flags: &[&str]) -> Daemon {
        let mut daemon = self.spawn_by(by, flags);
        daemon.wait_until_ready();
        daemon
    }
}

impl Daemon {
    /// Starts the daemon by another program, whatever becomes of it.
    pub fn spawn(settings: &Settings<'_>, by: &[&str], flags: &[&str]) -> Self {
        let log = settings.dir.join("log");
        let mut words = by.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        words.push(locate().display().to_string());
        let program = find(&words[0]).unwrap_or_else(|| PathBuf::from(&words[0]));
        let child = Command::new(program)
            .env_clear()
            .env("PATH", network::PATH)
            .args(&words[1..])
            .args([
                format!("--node-name={NODE}"),
                format!("--kubeconfig={}", settings.kubeconfig.display()),
                format!("--pods-dir={}", settings.pods.display()),
                format!("--sts-endpoint={}", settings.sts),
                format!("--admin-listen={ADMIN}"),
                format!("--metrics-listen={METRICS}"),
                format!("--admin-socket={}", settings.dir.join("admin.sock").display()),
                // What is refused after waiting is refused soon.
                "--caller-wait=300ms".to_owned(),
            ])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub fn wait_until_ready(&mut self) {
        self.wait_for_log("the admin doors are open");
        wait_until("the daemon is ready", || self.is_ready());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_for_log(&mut self, part: &str) {
        wait_until(part, || {
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended:\n{}", self.log());
            self.log().contains(part)
        });
    }

    /// Waits until the process ends by itself.
    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_ready(&self) -> bool {
        network::exchange(ADMIN.parse().unwrap(), "GET /readyz HTTP/1.1\r\nHost: a\r\n").contains(" 200 ")
    }

    /// The value of a metric, zero while it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let text = network::exchange(METRICS.parse().unwrap(), "GET /metrics HTTP/1.1\r\nHost: a\r\n");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("rolecall_")?.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `rolecall-daemon cleanup`.
pub fn cleanup(flags: &[&str]) -> Output {
    Command::new(locate()).env_clear().env("PATH", network::PATH).arg("cleanup").args(flags).output().unwrap()
}

/// What `cleanup` has removed, line by line; it must succeed.
#[track_caller]
pub fn cleaned(flags: &[&str]) -> Vec<String> {
    let output = cleanup(flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
