//! The daemon as it ships on a node of real network namespaces: pods with addresses of their own, a stand-in for
//! the metadata service behind the node, and the firewall of this kernel.
//!
//! Namespaces have to be entered before there is any thread, so this has a `main` of its own instead of libtest's.
//! An ordinary user gets a user namespace; nothing outside of it is touched.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a network")]

mod addresses;
mod callers;
mod daemon;
mod firewall;
mod network;
mod shim;
mod upgrades;

use std::{
    fs,
    io::{self, Write},
    process::{Command, ExitCode},
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getgid, getuid},
};

use firewall::Kind::{IptablesLegacy, IptablesNft, Nftables};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("an_address_is_put_on_lo_and_put_back", addresses::put_on_lo_and_put_back),
    ("a_node_without_ipv6_is_served_on_ipv4", addresses::node_without_ipv6),
    ("an_address_that_was_there_before_stays_as_it_was", addresses::there_before),
    ("another_program_at_the_endpoint_is_told_with_the_flag_to_change", addresses::taken),
    ("a_missing_right_is_told_with_the_flag_that_does_without", addresses::missing_right),
    ("three_capabilities_are_enough", firewall::three_capabilities),
    ("a_missing_program_is_told_with_the_flag_that_does_without", firewall::missing_program),
    ("cleanup_removes_the_addresses_and_may_be_run_again", addresses::cleanup),
    ("a_token_is_served_at_its_pods_address_alone", callers::own_address_alone),
    ("a_pod_without_a_token_is_served_at_its_address_as_the_shim_has_written", shim::served_by_address),
    ("pods_do_not_reach_the_metadata_service_by_nftables", || firewall::blocks(Nftables)),
    ("pods_do_not_reach_the_metadata_service_by_iptables_nft", || firewall::blocks(IptablesNft)),
    ("pods_do_not_reach_the_metadata_service_by_iptables_legacy", || firewall::blocks(IptablesLegacy)),
    ("exempt_pods_reach_it_by_nftables", || firewall::exempts(Nftables)),
    ("exempt_pods_reach_it_by_iptables_nft", || firewall::exempts(IptablesNft)),
    ("exempt_pods_reach_it_by_iptables_legacy", || firewall::exempts(IptablesLegacy)),
    ("rules_that_were_changed_are_repaired_by_nftables", || firewall::repairs(Nftables)),
    ("rules_that_were_changed_are_repaired_by_iptables_nft", || firewall::repairs(IptablesNft)),
    ("rules_that_were_changed_are_repaired_by_iptables_legacy", || firewall::repairs(IptablesLegacy)),
    ("rules_outlive_the_daemon_until_cleanup_by_nftables", || firewall::outlives(Nftables)),
    ("rules_outlive_the_daemon_until_cleanup_by_iptables_nft", || firewall::outlives(IptablesNft)),
    ("rules_outlive_the_daemon_until_cleanup_by_iptables_legacy", || firewall::outlives(IptablesLegacy)),
    ("another_way_of_blocking_replaces_the_former", firewall::replaces),
    ("a_hand_over_under_load_of_many_pods_fails_no_request", upgrades::without_a_failed_request),
    ("cleanup_removes_the_socket_of_a_killed_daemon_and_no_other", upgrades::cleanup),
    ("a_hand_over_to_another_way_of_blocking_leaves_one", upgrades::replaces_the_way_of_blocking),
    ("a_network_that_bypasses_netfilter_is_told", firewall::tells_bypass),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut out = io::stdout();
    if words.iter().any(|word| word == "--list") {
        for (name, _) in TESTS {
            writeln!(out, "{name}: test").unwrap();
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let wanted: Vec<&Test> = TESTS.iter().filter(|(name, _)| is_wanted(name)).collect();
    if wanted.is_empty() {
        return ExitCode::SUCCESS;
    }
    // It asks cargo, which belongs to the world outside.
    daemon::locate();
    if let Err(message) = enter_namespaces() {
        let mut err = io::stderr();
        writeln!(err, "these tests cannot run: {message}").unwrap();
        return ExitCode::FAILURE;
    }
    writeln!(out, "running {} tests", wanted.len()).unwrap();
    let running: Vec<_> =
        wanted.into_iter().map(|(name, test)| (*name, thread::spawn(|| network::on_a_node(*test)))).collect();
    let mut failed = 0;
    for (name, test) in running {
        let good = test.join().is_ok();
        failed += usize::from(!good);
        writeln!(out, "test {name} ... {}", if good { "ok" } else { "FAILED" }).unwrap();
    }
    writeln!(out, "{failed} failed").unwrap();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Leaves the machine's network and mounts for some of our own; says what to do where that is not possible.
fn enter_namespaces() -> Result<(), String> {
    for (program, package) in [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables-nft", "iptables"),
        ("iptables-legacy", "iptables"),
        ("setpriv", "util-linux"),
        ("mount", "util-linux"),
    ] {
        if network::find(program).is_none() {
            return Err(format!("there is no {program}; install it (Debian: apt install {package})"));
        }
    }
    let (user, group) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|error| {
        format!(
            "make namespaces: {error}; run as root, or let users make them: sysctl kernel.unprivileged_userns_clone=1 \
             (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces=10000"
        )
    })?;
    if !user.is_root() {
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("write {file}: {error}"))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("0 {user} 1"))?;
        write("gid_map", format!("0 {group} 1"))?;
    }
    // A place of our own for the lock of iptables.
    for words in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "tmpfs", "/run"]] {
        let output = Command::new(network::find("mount").unwrap()).args(words).output().unwrap();
        if !output.status.success() {
            return Err(format!("mount {words:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let forward = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    forward.map_err(|error| {
        format!("write /proc/sys/net: {error}; a container has to be privileged for that (docker run --privileged)")
    })
}
