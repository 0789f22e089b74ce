//! How often pods connect to the endpoint, as their nodes' kernel counts it: the pods are not told.

use anyhow::{Context, Result};
use rolecall_e2e::cluster::Node;
use serde_json::Value;

use crate::pods::{Pods, address};
use crate::world::World;

const TABLE: &str = "rolecall-e2e-connections";

/// By the pod's address, each connection's first packet, before it can be dropped. A packet that is sent again
/// counts again; within a node none is lost. What only waits until the daemon listens asks for nothing: `probe listens`
/// marks its packets.
const RULES: &str = r#"
table ip rolecall-e2e-connections {
	set begun { type ipv4_addr; size 65535; flags dynamic; }
	chain arriving {
		type filter hook prerouting priority -400;
		ip daddr { 169.254.170.2, 169.254.170.23 } ip dscp != cs1 tcp dport 80 tcp flags & (syn | ack) == syn update @begun { ip saddr counter }
	}
}
"#;

/// Counts on all nodes until it is dropped.
pub(super) struct Connections<'a> {
    nodes: &'a [Node],
}

impl<'a> Connections<'a> {
    pub(super) fn count(world: &'a World) -> Result<Self> {
        let counting = Self { nodes: world.cluster.nodes() };
        for node in counting.nodes {
            node.run(["sh", "-c", &format!("nft -f - <<'END'\n{RULES}\nEND\n")])?;
        }
        Ok(counting)
    }

    /// How many connections the pod has begun by now.
    pub(super) async fn of(&self, pods: &Pods, name: &str) -> Result<u64> {
        let list = ["nft", "--json", "list", "set", "ip", TABLE, "begun"];
        // Before anything else: what is begun while the API server answers is begun later than now.
        let lists: Vec<String> = tokio::task::block_in_place(|| {
            self.nodes.iter().map(|node| node.run(list)).collect::<Result<_>>()
        })?;
        let address = address(&pods.api().get(name).await?)?;
        let mut connections = 0;
        for list in lists {
            connections +=
                packets(&serde_json::from_str(&list)?, &address).context("read what nft counts")?;
        }
        Ok(connections)
    }
}

impl Drop for Connections<'_> {
    fn drop(&mut self) {
        for node in self.nodes {
            // The node's namespace goes with the cluster.
            let _ = node.run(["nft", "delete", "table", "ip", TABLE]);
        }
    }
}

/// What nft counts for an address in the only set of its list (libnftables-json(5)).
fn packets(list: &Value, address: &str) -> Option<u64> {
    let set = list["nftables"].as_array()?.iter().find_map(|object| object.get("set"))?;
    let counted = |element: &Value| {
        let element = &element["elem"];
        (element["val"] == address).then(|| element["counter"]["packets"].as_u64()).flatten()
    };
    Some(set["elem"].as_array().into_iter().flatten().find_map(counted).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_that_was_not_seen_has_no_connection() {
        let element = |address: &str, packets: u64| json!({"elem": {"val": address, "counter": {"packets": packets, "bytes": 60}}});
        let list = |set: Value| json!({"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": set}]});
        let some =
            list(json!({"name": "begun", "elem": [element("10.244.1.9", 1), element("10.244.1.2", 3)]}));
        assert_eq!(packets(&some, "10.244.1.2"), Some(3));
        assert_eq!(packets(&some, "10.244.1.3"), Some(0));
        assert_eq!(packets(&list(json!({"name": "begun"})), "10.244.1.2"), Some(0), "no element yet");
        assert_eq!(packets(&json!({"nftables": []}), "10.244.1.2"), None);
    }
}
