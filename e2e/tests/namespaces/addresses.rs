//! The endpoint's addresses on the node.

use std::{fs, net::TcpListener};

use crate::{
    daemon::{Surroundings, cleaned, cleanup as run_cleanup},
    network::{ENDPOINT, Link, Node, run, wait_until},
};

const NO_FIREWALL: &str = "--metadata-firewall=off";

/// All of the node, but those that the kernel makes up, which take a moment to come.
fn all_addresses() -> Vec<String> {
    run("ip -o address show").lines().filter(|line| !line.contains("fe80:")).map(str::to_owned).collect()
}

fn on_lo(address: &str) -> bool {
    run("ip -o address show dev lo").contains(&format!(" {address}/"))
}

pub fn put_on_lo_and_put_back() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pods = [node.pod(Link::Bridge, 2), node.pod(Link::Routed, 2)];
    let known: Vec<_> = ["a", "b"].iter().zip(&pods).map(|(name, pod)| surroundings.pod(name, pod)).collect();
    let mut daemon = surroundings.start(&[NO_FIREWALL]);
    let served = || {
        for (pod, known) in pods.iter().zip(&known) {
            for endpoint in ENDPOINT {
                assert_eq!(pod.asks(endpoint, Some(&known.token().unwrap())), "200 orders");
            }
        }
    };
    served();
    let lines = run("ip -o address show dev lo");
    let line = |address: &str| lines.lines().find(|line| line.contains(address)).unwrap();
    // The node never sends from them.
    assert!(line("169.254.170.23/32").contains("scope host lo:rolecall"), "{lines}");
    assert!(line("fd00:ec2::23/128").contains("deprecated"), "{lines}");

    for (number, remove) in
        ["ip address del 169.254.170.23/32 dev lo", "ip address del fd00:ec2::23/128 dev lo"]
            .iter()
            .enumerate()
    {
        run(remove);
        wait_until("the address is back", || ENDPOINT.iter().all(|address| on_lo(address)));
        let restored = f64::from(u32::try_from(number + 1).unwrap());
        wait_until("it is counted", || daemon.metric("listen_addresses_restored_total") == restored);
        served();
    }
    daemon.wait_for_log("the endpoint's address was gone from the node");
    // An interface that goes down loses its IPv6 addresses.
    run("ip link set lo down");
    run("ip link set lo up");
    wait_until("the addresses are back", || ENDPOINT.iter().all(|address| on_lo(address)));
    served();
    assert_eq!(daemon.metric("listen_addresses_missing"), 0.0);
}

pub fn node_without_ipv6() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pod = node.pod(Link::Bridge, 2);
    let known = surroundings.pod("a", &pod);
    for interface in ["all", "lo"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1").unwrap();
    }
    let mut daemon = surroundings.start(&[]);
    assert_eq!(pod.asks(ENDPOINT[0], Some(&known.token().unwrap())), "200 orders");
    daemon.wait_for_log("cannot put the endpoint's address on lo");
    daemon.wait_for_log("no IPv6");
    assert_eq!(daemon.metric("listen_addresses_missing"), 1.0);
}

pub fn there_before() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    run("ip address add 169.254.170.23/32 dev up0");
    let before = all_addresses();
    let mut daemon = surroundings.start(&[NO_FIREWALL, "--listen=169.254.170.23:80"]);
    assert_eq!(all_addresses(), before);
    daemon.kill();
    assert_eq!(cleaned(&["--listen=169.254.170.23:80"]), ["nothing to remove"]);
    assert_eq!(all_addresses(), before);
}

pub fn taken() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    run("ip address add 169.254.170.23/32 dev up0");
    let agent = TcpListener::bind("169.254.170.23:80").unwrap();
    let mut daemon = surroundings.spawn(&[NO_FIREWALL]);
    assert_eq!(daemon.end().code(), Some(71));
    let log = daemon.log();
    let parts = ["--listen 169.254.170.23:80", "EKS Pod Identity Agent", "remove one of the two"];
    for part in parts {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    assert!(!on_lo("169.254.170.23"));
    // As it is installed, it could as well be a daemon from before hand-overs: it says so, and waits.
    let handover = format!("--handover-socket={}", surroundings.path("handover/handover.sock").display());
    let mut waits = surroundings.spawn_as("waits", &[NO_FIREWALL, &handover]);
    waits.wait_for_log("cannot take over yet");
    for part in parts {
        waits.wait_for_log(part);
    }
    assert!(!waits.log().contains("the admin doors are open"));
    drop(agent);
    waits.wait_until_ready();
}

pub fn missing_right() {
    let surroundings = Surroundings::new();
    let start = |flags: &[&str]| {
        let by = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
        let mut daemon = surroundings.spawn_by(&by, flags);
        assert_eq!(daemon.end().code(), Some(71), "{}", daemon.log());
        daemon.log()
    };
    for flags in [
        &["--metadata-firewall=nftables"][..],
        &["--metadata-firewall=iptables", "--iptables=iptables-nft"],
        &["--metadata-firewall=iptables", "--iptables=iptables-legacy"],
    ] {
        let log = start(flags);
        assert!(log.contains("CAP_NET_ADMIN") && log.contains("--metadata-firewall=off"), "{flags:?}: {log}");
    }
    let log = start(&[NO_FIREWALL]);
    assert!(log.contains("CAP_NET_ADMIN") && log.contains("--manage-addresses=off"), "{log}");
}

pub fn cleanup() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    run("ip address add 169.254.170.99/32 dev lo");
    let before = all_addresses();
    let flags = [NO_FIREWALL, "--listen=169.254.170.23:80,[fd00:ec2::23]:80,169.254.170.2:80"];
    let mut daemon = surroundings.start(&flags);
    daemon.kill();
    assert!(on_lo("169.254.170.2"), "they stay");
    // It knows what is ours by its mark, whatever its own settings are.
    let mut removed = cleaned(&[]);
    removed.sort();
    assert_eq!(
        removed,
        ["removed 169.254.170.2 from lo", "removed 169.254.170.23 from lo", "removed fd00:ec2::23 from lo"]
    );
    assert_eq!(all_addresses(), before);
    assert_eq!(cleaned(&[]), ["nothing to remove"]);
    // Without a mark, by equality.
    run("ip address add 169.254.170.23/32 dev lo");
    assert_eq!(cleaned(&[]), ["removed 169.254.170.23 from lo"]);
    assert_eq!(run_cleanup(&["--no-such-flag"]).status.code(), Some(64));
}
