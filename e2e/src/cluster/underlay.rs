//! The network between the nodes and the control plane: a bridge, in the network namespace of this process.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::command::run;

/// The control plane's side, and every node's router.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 1);

/// Where AWS's instance metadata service is on a real node.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The addresses of one node and of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    index: u8,
}

impl Addresses {
    /// Those of the first node, the second, and so on, from 1.
    pub(super) fn of(index: u8) -> Self {
        Self { index }
    }

    pub(super) fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, 0, 10 + self.index)
    }

    pub(super) fn node6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0x10 + u16::from(self.index))
    }

    pub(super) fn pods(self) -> String {
        format!("10.244.{}.0/24", self.index)
    }

    pub(super) fn pods6(self) -> String {
        format!("fd00:10:244:{}::/64", self.index)
    }

    fn port(self) -> String {
        format!("node{}", self.index)
    }
}

/// Makes the bridge, and the addresses of the metadata service behind it.
pub(super) fn make() -> Result<()> {
    run("ip link set lo up")?;
    run("ip link add underlay type bridge")?;
    run("ip link set underlay up")?;
    run(&format!("ip addr add {GATEWAY}/24 dev underlay"))?;
    run(&format!("ip addr add {GATEWAY6}/64 dev underlay nodad"))?;
    run(&format!("ip addr add {METADATA}/32 dev lo"))?;
    run(&format!("ip addr add {METADATA6}/128 dev lo nodad"))?;
    for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{forwarding}");
        std::fs::write(&path, "1").with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Connects a node, whose network namespace process `pid` is in, by its `eth0`. Routes to its pods lead there.
pub(super) fn connect(addresses: Addresses, pid: u32) -> Result<()> {
    let port = addresses.port();
    // The kernel takes its time to remove what was connected to a namespace that is gone.
    let _none = run(&format!("ip link delete {port}"));
    run(&format!("ip link add {port} type veth peer name eth0 netns {pid}"))?;
    run(&format!("ip link set {port} master underlay up"))?;
    run(&format!("ip route replace {} via {}", addresses.pods(), addresses.node()))?;
    run(&format!("ip route replace {} via {}", addresses.pods6(), addresses.node6()))?;
    Ok(())
}
