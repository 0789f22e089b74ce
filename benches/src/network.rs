//! A network of our own, in which pods have addresses that are not the node's.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getgid, getuid},
};

/// Where `ip` may be, which an ordinary user's path may lack.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// The pods' addresses: every one of them can be bound and reached, but none is on an interface, so none is among
/// the node's own addresses, as the daemon asks the kernel for them.
const PODS: &str = "10.0.0.0/8";

/// Leaves the machine's network for an empty one. To be called before there is any thread.
///
/// # Errors
/// When namespaces cannot be made; the message says what to do.
pub(crate) fn enter() -> Result<()> {
    let (user, group) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNET;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).context(
        "make a network namespace; run as root, or let users make namespaces: \
         sysctl kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
    )?;
    if !user.is_root() {
        fs::write("/proc/self/setgroups", "deny").context("write setgroups")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("write uid_map")?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("write gid_map")?;
    }
    ip("link set lo up")?;
    ip(&format!("route add local {PODS} dev lo"))
}

/// The address of the `index`-th pod.
pub(crate) fn pod_address(index: usize) -> [u8; 4] {
    let [.., high, middle, low] = (index as u64 + 1).to_be_bytes();
    [10, high, middle, low]
}

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(line.split(' '))
        .env("PATH", PATH)
        .output()
        .context("run ip; install it (Debian: apt install iproute2)")?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
