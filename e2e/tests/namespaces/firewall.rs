//! The rules about the metadata service, in each of the kernel's ways.

use std::net::IpAddr;

use crate::{
    daemon::{Daemon, Surroundings, cleaned},
    network::{ENDPOINT, Link, METADATA, Node, Pod, Reach, carries, run, wait_until},
};

/// What keeps the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Kind {
    fn flags(self) -> [&'static str; 2] {
        match self {
            Self::Nftables => ["--metadata-firewall=nftables", "--iptables=iptables-nft"],
            Self::IptablesNft => ["--metadata-firewall=iptables", "--iptables=iptables-nft"],
            Self::IptablesLegacy => ["--metadata-firewall=iptables", "--iptables=iptables-legacy"],
        }
    }

    /// What a pod that is kept off sees.
    fn refusal(self) -> Reach {
        match self {
            Self::Nftables => Reach::Refused,
            // The table raw knows no REJECT.
            Self::IptablesNft | Self::IptablesLegacy => Reach::Silence,
        }
    }

    /// The programs of both families.
    fn iptables(self) -> [&'static str; 2] {
        match self {
            Self::Nftables | Self::IptablesNft => ["iptables-nft", "ip6tables-nft"],
            Self::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
        }
    }

    fn start(self, surroundings: &Surroundings, more: &[&str]) -> Daemon {
        surroundings.start(&[&self.flags()[..], more].concat())
    }

    /// All rules of the node, those of others included.
    fn rules(self) -> String {
        let programs: &[&str] = match self {
            Self::Nftables | Self::IptablesNft => &["nft --stateless list ruleset"],
            Self::IptablesLegacy => &["iptables-legacy-save", "ip6tables-legacy-save"],
        };
        let text: String = programs.iter().map(|line| run(line)).collect();
        // The first and last line of each table is a comment with the time; what is in brackets counts packets.
        let rules = text.lines().filter(|line| !line.starts_with('#'));
        rules.map(|line| format!("{}\n", line.split(" [").next().unwrap())).collect()
    }
}

#[track_caller]
fn check(pod: &Pod, expect: impl Fn(&str) -> Reach) {
    for (address, own) in METADATA.into_iter().zip([&pod.v4, &pod.v6]) {
        assert_eq!(pod.reaches(address), expect(own), "{own} -> {address}");
    }
}

fn seen(own: &str) -> Reach {
    Reach::Seen(own.parse::<IpAddr>().unwrap())
}

pub fn blocks(kind: Kind) {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pods = [node.pod(Link::Bridge, 2), node.pod(Link::Routed, 2)];
    let known: Vec<_> = ["a", "b"].iter().zip(&pods).map(|(name, pod)| surroundings.pod(name, pod)).collect();
    for pod in &pods {
        check(pod, seen);
    }
    let open: Vec<_> = pods.iter().flat_map(|pod| METADATA.map(|address| pod.connect(address))).collect();
    assert!(open.iter().all(|stream| carries(stream, "before")), "an open connection");

    let daemon = kind.start(&surroundings, &[]);
    for pod in &pods {
        check(pod, |_| kind.refusal());
    }
    assert!(!open.iter().any(|stream| carries(stream, "after")), "a connection that was open goes on");
    for address in METADATA {
        assert!(matches!(node.reaches(address), Reach::Seen(_)), "the node itself");
    }
    for (pod, known) in pods.iter().zip(&known) {
        for endpoint in ENDPOINT {
            assert_eq!(pod.asks(endpoint, Some(&known.token().unwrap())), "200 orders");
        }
    }
    assert_eq!(daemon.metric("metadata_firewall_in_force"), 1.0);
    assert_eq!(daemon.metric("metadata_firewall_repairs_total"), 0.0);
    assert_eq!(daemon.metric("metadata_firewall_bypass_suspected"), 0.0);
}

pub fn exempts(kind: Kind) {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let [agent, orders] = [node.pod(Link::Bridge, 2), node.pod(Link::Routed, 2)];
    let late = node.pod(Link::Routed, 3);
    let (known, _other) = (surroundings.pod("agent", &agent), surroundings.pod("orders", &orders));
    let flags = ["--metadata-exempt=shop/ag*,shop/late"];
    let mut daemon = kind.start(&surroundings, &flags);
    let exempt = |daemon: &Daemon, count: f64| {
        wait_until("the exempt addresses are known", || {
            daemon.metric("metadata_firewall_exempt_addresses") == count
        });
    };
    exempt(&daemon, 2.0);
    check(&agent, seen);
    check(&orders, |_| kind.refusal());

    // One that comes later; one that gets its address later.
    check(&late, |_| kind.refusal());
    let coming = surroundings.world.pod(surroundings.builder("late")).unwrap();
    coming.run_at(&[&late.v4, &late.v6]);
    exempt(&daemon, 4.0);
    check(&late, seen);
    check(&agent, seen);

    // A restart cuts none of them off, even while the API server is away.
    daemon.kill();
    check(&agent, seen);
    surroundings.set_outage(true);
    daemon = surroundings.spawn(&[&kind.flags()[..], &flags].concat());
    daemon.wait_for_log("the admin doors are open");
    check(&agent, seen);
    assert_eq!(daemon.metric("metadata_firewall_exempt_addresses"), 4.0);
    surroundings.set_outage(false);
    wait_until("the daemon is ready", || daemon.is_ready());
    check(&agent, seen);

    // A finished pod's address is nobody's any more, and so is that of one that is gone.
    known.set_phase("Succeeded");
    exempt(&daemon, 2.0);
    check(&agent, |_| kind.refusal());
    check(&late, seen);
    coming.delete();
    exempt(&daemon, 0.0);
    check(&late, |_| kind.refusal());
    assert_eq!(daemon.metric("metadata_firewall_repairs_total"), 0.0, "{}", daemon.log());
}

pub fn repairs(kind: Kind) {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let [agent, orders] = [node.pod(Link::Bridge, 2), node.pod(Link::Routed, 2)];
    let _known = (surroundings.pod("agent", &agent), surroundings.pod("orders", &orders));
    let mut daemon = kind.start(&surroundings, &["--metadata-exempt=shop/agent"]);
    wait_until("the exempt addresses are known", || {
        daemon.metric("metadata_firewall_exempt_addresses") == 2.0
    });
    let [iptables, ip6tables] = kind.iptables();
    let harm: Vec<String> = match kind {
        Kind::Nftables => vec![
            "nft flush ruleset".to_owned(),
            "nft delete table inet rolecall".to_owned(),
            "nft flush chain inet rolecall metadata".to_owned(),
            "nft insert rule inet rolecall metadata accept".to_owned(),
            format!("nft add element inet rolecall exempt4 {{ {} }}", orders.v4),
            "nft add table inet rolecall { flags dormant; }".to_owned(),
        ],
        Kind::IptablesNft | Kind::IptablesLegacy => vec![
            format!("{iptables} -t raw -F"),
            format!("{iptables} -t raw -I PREROUTING -j ACCEPT"),
            format!("{ip6tables} -t raw -I ROLECALL-METADATA -s {} -j RETURN", orders.v6),
        ],
    };
    for (number, harm) in harm.iter().enumerate() {
        run(harm);
        let times = f64::from(u32::try_from(number + 1).unwrap());
        wait_until(&format!("{harm} is repaired"), || {
            daemon.metric("metadata_firewall_repairs_total") == times
        });
        check(&orders, |_| kind.refusal());
        check(&agent, seen);
    }
    assert_eq!(daemon.metric("metadata_firewall_in_force"), 1.0);
    daemon.wait_for_log("put them back");
    assert!(daemon.is_ready());
}

pub fn outlives(kind: Kind) {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pod = node.pod(Link::Bridge, 2);
    let _known = surroundings.pod("a", &pod);
    // Rules of others, in the very places.
    for (program, address) in kind.iptables().into_iter().zip(["192.0.2.99", "2001:db8::99"]) {
        run(&format!("{program} -t raw -N ROLECALL"));
        run(&format!("{program} -t raw -A ROLECALL -d {address} -j DROP"));
        run(&format!("{program} -t raw -A PREROUTING -j ROLECALL"));
    }
    run("nft add table inet others");
    run("nft add chain inet others early { type filter hook prerouting priority -400; }");
    run("nft add rule inet others early ip daddr 169.254.169.254 accept");
    // As an agent of another maker that takes the metadata service's place does.
    run("nft add chain inet others instead { type nat hook prerouting priority -100; }");
    run("nft add rule inet others instead ip daddr 169.254.169.254 dnat ip to 192.0.2.2");
    check(&pod, seen);
    let before = kind.rules();
    assert!(before.contains("ROLECALL"), "{before}");

    let mut daemon = kind.start(&surroundings, &[]);
    assert_ne!(kind.rules(), before);
    check(&pod, |_| kind.refusal());
    daemon.kill();
    check(&pod, |_| kind.refusal());
    // A second daemon finds them as they should be, and changes nothing.
    let with_rules = kind.rules();
    let mut daemon = kind.start(&surroundings, &[]);
    assert_eq!(kind.rules(), with_rules);
    daemon.kill();

    let removed = cleaned(&[kind.flags()[1]]);
    assert!(removed.iter().any(|line| line.contains("rolecall") || line.contains("ROLECALL")), "{removed:?}");
    assert_eq!(kind.rules(), before);
    check(&pod, seen);
    assert_eq!(cleaned(&[kind.flags()[1]]), ["nothing to remove"]);
    assert_eq!(kind.rules(), before);
}

pub fn replaces() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pod = node.pod(Link::Bridge, 2);
    let _known = surroundings.pod("a", &pod);
    for kind in [Kind::Nftables, Kind::IptablesNft, Kind::IptablesLegacy, Kind::Nftables] {
        let mut daemon = kind.start(&surroundings, &[]);
        check(&pod, |_| kind.refusal());
        daemon.kill();
        let own = |line: &str| usize::from(run(line).to_lowercase().contains("rolecall"));
        let kinds = own("nft list tables inet") + own("iptables-nft-save") + own("iptables-legacy-save");
        assert_eq!(kinds, 1, "{kind:?} alone: {}", daemon.log());
    }
}

pub fn three_capabilities() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pod = node.pod(Link::Bridge, 2);
    let known = surroundings.pod("a", &pod);
    let by = ["setpriv", "--bounding-set=-all,+net_admin,+net_bind_service,+dac_read_search"];
    // The fourth, which iptables-legacy needs, is told when it is missing.
    let mut daemon = surroundings.spawn_by(&by, &Kind::IptablesLegacy.flags());
    assert_eq!(daemon.end().code(), Some(71));
    assert!(daemon.log().contains("CAP_NET_RAW"), "{}", daemon.log());
    for kind in [Kind::Nftables, Kind::IptablesNft] {
        let mut daemon = surroundings.start_by(&by, &kind.flags());
        check(&pod, |_| kind.refusal());
        for endpoint in ENDPOINT {
            assert_eq!(pod.asks(endpoint, Some(&known.token().unwrap())), "200 orders");
        }
        daemon.kill();
    }
}

pub fn missing_program() {
    let surroundings = Surroundings::new();
    for flags in
        [&["--nft=/no/such/nft"][..], &["--metadata-firewall=iptables", "--iptables=/no/such/iptables"]]
    {
        let mut daemon = surroundings.spawn(flags);
        assert_eq!(daemon.end().code(), Some(71));
        let log = daemon.log();
        assert!(log.contains("/no/such/") && log.contains("--metadata-firewall"), "{log}");
    }
}

pub fn tells_bypass() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    run("ip link add cilium_host type veth peer name cilium_net");
    let mut daemon = surroundings.start(&Kind::Nftables.flags());
    assert_eq!(daemon.metric("metadata_firewall_bypass_suspected"), 1.0);
    daemon.wait_for_log("hop limit");
}
