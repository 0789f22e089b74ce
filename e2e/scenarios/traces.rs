//! A cluster that is killed leaves nothing on the machine, and neither does one that is killed with its janitor.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rolecall_e2e::cluster::cgroups;
use rolecall_e2e::{Cluster, isolation};

use crate::pods::{Pods, probe};
use crate::report::{Figure, Report};
use crate::world::probe_image;

/// How long the janitor may take.
const LIMIT: Duration = Duration::from_secs(90);

/// The line by which a cluster says that a pod of it runs.
const UP: &str = "up";

/// Kernel settings that Kubernetes sets, for the whole machine, wherever it is let.
const SETTINGS: [&str; 8] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
];

/// The programs of a cluster, by the fifteen characters that the kernel keeps.
const PROGRAMS: [&str; 13] = [
    "etcd",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim",
    "runc",
    "pause",
    "probe",
    "rolecall-daemon",
    "rolecall-shim",
];

/// Folders in which Kubernetes and containerd leave things.
const FOLDERS: [&str; 10] = [
    "/var/lib",
    "/var/log",
    "/var/run",
    "/run",
    "/run/netns",
    "/etc",
    "/etc/cni",
    "/opt",
    "/opt/cni",
    "/usr/libexec",
];

pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    report.begin("traces");
    // Clusters of others, and what was kept of one to look at.
    let others = isolation::remains()?;
    let before = Snapshot::take()?;

    let killed = start()?;
    kill(Pid::from_raw(i32::try_from(killed.id())?), Signal::SIGKILL)?;
    wait_for_the_end(killed, &others)?;
    before.compare(&Snapshot::take()?)?;
    report.add(Figure::new("a cluster that was killed", "nothing is left"));

    let mut killed = start()?;
    // The janitor first, for it begins when the other ends; which is not to notice.
    kill(Pid::from_raw(i32::try_from(killed.id())?), Signal::SIGSTOP)?;
    for id in children(killed.id())? {
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGKILL)?;
    }
    killed.kill()?;
    killed.wait()?;
    let removed = isolation::end_all_but(&others)?;
    ensure!(!removed.is_empty(), "there was nothing to remove: this would show nothing");
    before.compare(&Snapshot::take()?)?;
    report.add(Figure::new(
        "a cluster that was killed with its janitor, and `make e2e-down`",
        "nothing is left",
    ));
    Ok(())
}

/// What the cluster to be killed is: a node with a pod.
pub(crate) async fn victim(folder: PathBuf, program: &Path) -> Result<()> {
    let image = probe_image(&folder, program)?;
    let cluster = Cluster::start(&folder, 1, &[image]).await?;
    let client = cluster.client().await?;
    let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
        kube::Api::namespaced(client.clone(), "default");
    rolecall_e2e::cluster::wait_for(&accounts, "default", |account: Option<&_>| account.is_some()).await?;
    let pods = Pods::new(client, "default");
    pods.create(&probe("waiting", "default", &["wait"])).await?;
    pods.running("waiting").await?;
    println!("{UP}");
    std::future::pending().await
}

fn start() -> Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("victim")
        // What is kept to look at would be a trace.
        .env_remove("ROLECALL_KEEP")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output is a pipe")?).read_line(&mut line)?;
    ensure!(line.trim() == UP, "the cluster to be killed did not start");
    Ok(child)
}

fn wait_for_the_end(mut killed: Child, others: &[PathBuf]) -> Result<()> {
    killed.wait()?;
    let until = Instant::now() + LIMIT;
    loop {
        let mut left = isolation::remains()?;
        left.retain(|folder| !others.contains(folder));
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < until, "after {LIMIT:?} the janitor has left {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The processes that a process has started.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        if of == Some(parent) {
            children.push(id);
        }
    }
    Ok(children)
}

/// What Kubernetes could have changed on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    fn take() -> Result<Self> {
        let mut lines = BTreeSet::new();
        for command in [
            "ip -brief link",
            "ip -brief address",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
        ] {
            let mut words = command.split(' ');
            let output = Command::new(words.next().context("a program")?)
                .args(words)
                .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
                .output()
                .with_context(|| format!("run {command}"))?;
            // One that fails each time would find everything as before.
            ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // Comments have the time, and chains their counters.
            let text = text.lines().filter(|line| !line.starts_with('#'));
            lines.extend(
                text.map(|line| format!("{command}: {}", line.split('[').next().unwrap_or(line).trim())),
            );
        }
        for mount in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            lines.insert(format!("mount: {}", mount.split(' ').nth(4).unwrap_or_default()));
        }
        for setting in SETTINGS {
            let value = fs::read_to_string(format!("/proc/sys/{setting}")).unwrap_or_default();
            lines.insert(format!("{setting}={}", value.trim()));
        }
        for folder in FOLDERS {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                lines.insert(format!("{folder}: {}", entry?.file_name().to_string_lossy()));
            }
        }
        for entry in fs::read_dir("/proc")? {
            let process = entry?.file_name().to_string_lossy().into_owned();
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            // One that has ended has a name until its parent has asked for its status, but no program any more.
            let runs = fs::read_link(format!("/proc/{process}/exe")).is_ok();
            if runs && PROGRAMS.contains(&name.trim()) {
                lines.insert(format!("process: {process} {name}"));
            }
        }
        lines.extend(cgroups::named("")?.into_iter().map(|name| format!("control group: {name}")));
        Ok(Self { lines })
    }

    fn compare(&self, after: &Self) -> Result<()> {
        let gone: Vec<&String> = self.lines.difference(&after.lines).collect();
        let new: Vec<&String> = after.lines.difference(&self.lines).collect();
        ensure!(gone.is_empty() && new.is_empty(), "the machine is another: gone {gone:#?}, new {new:#?}");
        Ok(())
    }
}
