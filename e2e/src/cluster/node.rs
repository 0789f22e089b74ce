//! A node: namespaces of its own in which containerd, kubelet and kube-proxy run, as on a machine.

mod settings;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

use super::underlay::{self, Addresses, GATEWAY, GATEWAY6};
use super::{cgroups, images};
use crate::command::{PATH, output};
use crate::control_plane::{Component, ControlPlane};
use crate::process::{POLL, Process};
use crate::tools;

/// Longer than any program takes to start on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// A node. Dropping it takes its power away: every process of it ends at once.
#[derive(Debug)]
pub struct Node {
    name: String,
    addresses: Addresses,
    folder: PathBuf,
    cgroup: String,
    pause: PathBuf,
    component: Component,
    proxy: Component,
    ca: PathBuf,
    running: Option<Running>,
}

/// The processes of a node that is up. They are dropped in this order.
#[derive(Debug)]
struct Running {
    kubelet: Option<Process>,
    _kube_proxy: Process,
    containerd: Option<Process>,
    /// The namespaces and their first process: when it ends, the kernel ends all others.
    machine: Process,
}

impl Node {
    /// Makes a node that is not up yet. `folder` is for it alone, `cgroup` where the control groups of its pods go.
    pub(super) fn new(
        control_plane: &ControlPlane,
        index: u8,
        folder: PathBuf,
        cgroup: String,
        pause: &Path,
    ) -> Result<Self> {
        let name = format!("node-{index}");
        let addresses = Addresses::of(index);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        cgroups::make(&cgroup)?;
        let user = format!("system:node:{name}");
        let component =
            control_plane.kubeconfig_for_component(&user, Some("system:nodes"), &[addresses.node()])?;
        let proxy = control_plane.kubeconfig_for_component("system:kube-proxy", None, &[])?;
        let ca = control_plane.ca_path();
        let (pause, running) = (pause.to_owned(), None);
        Ok(Self { name, addresses, folder, cgroup, pause, component, proxy, ca, running })
    }

    /// Its name in the API.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, as a text.
    pub fn address(&self) -> String {
        self.addresses.node().to_string()
    }

    /// The kubelet's folder of pods, as the machine outside sees it. Volumes in memory are not seen there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Powers it on: containerd with these images, kube-proxy and the kubelet, which registers it.
    pub(super) async fn power_on(&mut self, images: &[PathBuf]) -> Result<()> {
        let machine = self.make_machine().await?;
        self.write_settings()?;
        let containerd = self.start_containerd(&machine).await?;
        for image in images {
            self.import(&machine, image)?;
        }
        let kube_proxy = self.start_kube_proxy(&machine)?;
        let kubelet = self.start_kubelet(&machine)?;
        self.running = Some(Running {
            kubelet: Some(kubelet),
            _kube_proxy: kube_proxy,
            containerd: Some(containerd),
            machine,
        });
        Ok(())
    }

    /// Takes its power away. What it has on disk stays.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Kills the kubelet and containerd; the containers go on.
    pub fn kill_agents(&mut self) -> Result<()> {
        let running = self.running.as_mut().context("the node is off")?;
        running.kubelet = None;
        running.containerd = None;
        Ok(())
    }

    /// Starts containerd and the kubelet again.
    pub async fn start_agents(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the node is off")?;
        running.containerd = Some(self.start_containerd(&running.machine).await?);
        running.kubelet = Some(self.start_kubelet(&running.machine)?);
        self.running = Some(running);
        Ok(())
    }

    /// Runs a program on the node to its end, which must be a success, and returns what it wrote.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let running = self.running.as_ref().context("the node is off")?;
        let mut command = enter(Command::new("nsenter"), &running.machine);
        command.args(words);
        output(command)
    }

    /// A program on the node for [`Process::spawn`], with its words.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Command> {
        let running = self.running.as_ref().context("the node is off")?;
        Ok(long_lived(&running.machine, words))
    }

    /// The ends of its programs' logs, for the message of a failure.
    pub fn logs(&self) -> String {
        ["kubelet", "containerd", "kube-proxy"]
            .map(|name| {
                let path = self.folder.join(format!("{name}.log"));
                let log = fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(20)..].join("\n");
                format!("--- {}\n{end}\n", path.display())
            })
            .concat()
    }

    async fn make_machine(&self) -> Result<Process> {
        let mut command = Process::command("unshare");
        command
            .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"])
            .arg("--")
            .arg(&self.pause);
        let machine = Process::spawn("machine", command, &self.folder)?;
        // The link is there once the first process is.
        let pid = format!("/proc/{}/ns/pid_for_children", machine.id());
        let ours = fs::read_link("/proc/self/ns/pid")?;
        machine.wait_until_ready(LIMIT, async || fs::read_link(&pid).is_ok_and(|link| link != ours)).await?;

        underlay::connect(self.addresses, machine.id())?;
        let mut script = enter(Command::new("nsenter"), &machine);
        script
            .args(["sh", "-c", include_str!("../../cluster/node.sh"), "node.sh"])
            .arg(&self.folder)
            .arg(format!("{}/24", self.addresses.node()))
            .arg(format!("{}/64", self.addresses.node6()))
            .args([GATEWAY.to_string(), GATEWAY6.to_string()]);
        output(script).with_context(|| format!("set up {}", self.name))?;
        Ok(machine)
    }

    async fn start_containerd(&self, machine: &Process) -> Result<Process> {
        let program = tools::path("containerd")?.join("containerd");
        let mut command = long_lived(
            machine,
            [program.as_os_str(), "-c".as_ref(), self.file("containerd.toml").as_os_str()],
        );
        let tools = tools::path("containerd")?;
        command.env("PATH", format!("{}:{PATH}", tools.display()));
        let containerd = Process::spawn("containerd", command, &self.folder)?;
        let answers = async || self.ctr(machine, ["version".as_ref()]).is_ok();
        containerd.wait_until_ready(LIMIT, answers).await?;
        Ok(containerd)
    }

    fn import(&self, machine: &Process, image: &Path) -> Result<()> {
        let words: [&OsStr; 4] =
            ["images".as_ref(), "import".as_ref(), "--local".as_ref(), image.as_os_str()];
        self.ctr(machine, words).with_context(|| format!("import {}", image.display()))?;
        Ok(())
    }

    fn ctr<'a>(&self, machine: &Process, words: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
        let mut command = enter(Command::new("nsenter"), machine);
        command.arg(tools::path("containerd")?.join("ctr"));
        command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]).args(words);
        output(command)
    }

    fn start_kubelet(&self, machine: &Process) -> Result<Process> {
        let program = tools::path("kubernetes")?.join("kubelet");
        let flags = [
            format!("--config={}", self.file("kubelet.json").display()),
            format!("--kubeconfig={}", self.component.kubeconfig.display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.addresses.node()),
            "--cert-dir=/var/lib/kubelet/pki".to_owned(),
            "--v=2".to_owned(),
        ];
        let mut command = long_lived(machine, [program]);
        command.args(flags);
        Process::spawn("kubelet", command, &self.folder)
    }

    fn start_kube_proxy(&self, machine: &Process) -> Result<Process> {
        let program = tools::path("kubernetes")?.join("kube-proxy");
        let mut command = long_lived(machine, [program]);
        command.arg(format!("--config={}", self.file("kube-proxy.json").display()));
        Process::spawn("kube-proxy", command, &self.folder)
    }

    fn write_settings(&self) -> Result<()> {
        let write = |name: &str, content: String| {
            let path = self.file(name);
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))
        };
        write("containerd.toml", settings::containerd(&self.folder, images::PAUSE)?)?;
        write("kubelet.json", settings::kubelet(self.addresses, &self.cgroup, &self.component, &self.ca))?;
        write("kube-proxy.json", settings::kube_proxy(&self.name, self.addresses, &self.proxy))?;
        let networks = self.file("cni");
        fs::create_dir_all(&networks)?;
        write("cni/10-bridge.conflist", settings::network(self.addresses))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.power_off();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The others' parents are ours; it is the machine's end that ends what containerd has started. Waiting for
        // it is of use to whoever powers the node on again. There is nobody to tell of a failure.
        let _ended = self.machine.signal(Signal::SIGKILL).map_err(|error| anyhow!("{error}"));
        while self.machine.is_running().unwrap_or(false) {
            std::thread::sleep(POLL);
        }
    }
}

/// Adds to `nsenter` what makes it enter all namespaces of a machine.
fn enter(mut nsenter: Command, machine: &Process) -> Command {
    let id = machine.id();
    for (flag, file) in
        [("net", "net"), ("mount", "mnt"), ("pid", "pid_for_children"), ("ipc", "ipc"), ("uts", "uts")]
    {
        nsenter.arg(format!("--{flag}=/proc/{id}/ns/{file}"));
    }
    nsenter.arg("--");
    nsenter
}

/// A command for [`Process::spawn`] within a machine. To be of a process namespace, a program has to be born there:
/// `nsenter` stays outside as its parent, and the program does not survive that.
fn long_lived<S: AsRef<OsStr>>(machine: &Process, words: impl IntoIterator<Item = S>) -> Command {
    let mut command = enter(Process::command("nsenter"), machine);
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]).args(words).env("PATH", PATH);
    command
}
