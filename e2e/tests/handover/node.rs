//! A node on loopback, whose daemons come one after another.

use std::{
    cell::Cell,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use rolecall_e2e::{Process, Scratch, binary, free_port, own_address};
use rolecall_process::probe::{self, Question};
use rolecall_sandbox::{
    World,
    cluster::pod::PodBuilder,
    world::{NODE, WorldPod},
};

pub const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// Longer than any step takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Node {
    pub world: World,
    pub endpoint: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
    pub scratch: Scratch,
    daemons: Cell<u32>,
}

/// A daemon of the node. Dropping it kills it.
pub struct Daemon {
    pub process: Process,
    pub socket: PathBuf,
}

impl Node {
    pub async fn new() -> Self {
        let world = World::start().await.unwrap();
        let scratch = Scratch::new("handover").unwrap();
        std::fs::write(scratch.path().join("kubeconfig"), world.cluster.kubeconfig()).unwrap();
        let address = own_address();
        let here = || SocketAddr::from((address, free_port(address).unwrap()));
        Self { endpoint: here(), admin: here(), metrics: here(), world, scratch, daemons: Cell::new(0) }
    }

    /// Where its daemons hand over.
    pub fn handover_socket(&self) -> PathBuf {
        self.scratch.path().join("handover/handover.sock")
    }

    /// A pod whose requests come from the node's own address.
    pub fn pod(&self, name: &str) -> WorldPod {
        let pod = PodBuilder::new("shop", name).service_account(name).role(ROLE).host_network(true);
        self.world.pod(pod).unwrap()
    }

    /// Starts a daemon, whatever becomes of it.
    pub fn spawn(&self, flags: &[&str]) -> Daemon {
        self.daemons.set(self.daemons.get() + 1);
        self.spawn_again(&format!("daemon-{}", self.daemons.get()), flags)
    }

    /// Starts a daemon that looks for the one before it, and waits for the one after it, at `handover_socket`.
    pub fn spawn_at(&self, handover_socket: &Path) -> Daemon {
        self.daemons.set(self.daemons.get() + 1);
        self.spawn_with(&format!("daemon-{}", self.daemons.get()), handover_socket, &[])
    }

    /// Starts a daemon in the place of an earlier one of this name, as in the same pod.
    pub fn spawn_again(&self, name: &str, flags: &[&str]) -> Daemon {
        self.spawn_with(name, &self.handover_socket(), flags)
    }

    fn spawn_with(&self, name: &str, handover_socket: &Path, flags: &[&str]) -> Daemon {
        let scratch = self.scratch.path();
        let socket = scratch.join(name).join("admin.sock");
        let mut command = Process::command(binary("rolecall-daemon").unwrap());
        command.args([
            format!("--node-name={NODE}"),
            format!("--sts-endpoint={}", self.world.sts.url()),
            format!("--kubeconfig={}", scratch.join("kubeconfig").display()),
            format!("--pods-dir={}", self.world.kubelet.path().display()),
            format!("--listen={}", self.endpoint),
            format!("--admin-listen={}", self.admin),
            format!("--metrics-listen={}", self.metrics),
            format!("--admin-socket={}", socket.display()),
            format!("--handover-socket={}", handover_socket.display()),
            "--metadata-firewall=off".to_owned(),
            "--manage-addresses=off".to_owned(),
        ]);
        if !flags.iter().any(|flag| flag.starts_with("--region=")) {
            command.arg("--region=us-east-1");
        }
        command.args(flags);
        Daemon { process: Process::spawn(name, command, scratch).unwrap(), socket }
    }

    /// Starts a daemon and waits until it serves.
    pub async fn start(&self, flags: &[&str]) -> Daemon {
        let daemon = self.spawn(flags);
        daemon.is_ready_soon().await;
        daemon
    }

    /// Waits until each of `pods` has its credentials.
    pub async fn warm(&self, pods: &[WorldPod]) {
        self.world
            .sts
            .wait_until(|calls| calls.iter().filter(|call| call.outcome.is_granted()).count() == pods.len())
            .await;
    }
}

impl Daemon {
    /// Its answer to the kubelet's readiness probe.
    pub async fn is_ready(&self) -> bool {
        probe::ask(&Question::Ready, &self.socket).await.is_ok_and(|answer| answer.good)
    }

    /// Its answer to the kubelet's liveness probe.
    pub async fn is_alive(&self) -> bool {
        probe::ask(&Question::Live, &self.socket).await.is_ok_and(|answer| answer.good)
    }

    pub async fn is_ready_soon(&self) {
        self.process.wait_until_ready(LIMIT, async || self.is_ready().await).await.unwrap();
    }

    /// Waits for a text in its log.
    pub async fn logged(&self, part: &str) {
        self.process.wait_until_ready(LIMIT, async || self.process.logs().contains(part)).await.unwrap();
    }

    /// Has it do nothing more, and waits until that is so.
    pub async fn stand_still(&self) {
        self.process.signal(Signal::SIGSTOP).unwrap();
        let tasks = format!("/proc/{}/task", self.process.id());
        let stands = || {
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                // One that has ended meanwhile does nothing more either. The state stands after the name, which may
                // hold anything.
                std::fs::read_to_string(task.path().join("stat")).map_or(true, |stat| {
                    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
                })
            })
        };
        self.process.wait_until_ready(LIMIT, async || stands()).await.unwrap();
    }

    pub async fn stop(&self) {
        self.process.signal(Signal::SIGTERM).unwrap();
        let status = self.process.exit(LIMIT).await.unwrap();
        assert!(status.success(), "{status}\n{}", self.process.logs());
    }
}

/// Waits until `path` is as `exists` says.
pub async fn until_exists(path: &Path, exists: bool) {
    let there = async {
        while path.exists() != exists {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, there).await.unwrap();
}
