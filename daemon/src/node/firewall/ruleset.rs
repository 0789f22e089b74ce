//! What the rules say, whoever keeps them: nobody but those exempt reaches the instance metadata service.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The instance metadata service on IPv4.
pub(super) const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The instance metadata service on IPv6.
pub(super) const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// The rules as a value.
///
/// They meet the packets that *arrive* at the node, before any routing and any translation of addresses: those of
/// pods. What the node and the pods of its own network send does not arrive, so no interface needs a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Source addresses that may pass.
    pub exempt: BTreeSet<IpAddr>,
}

/// How the rules in the kernel compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// They are those of the value.
    Same,
    /// There are none.
    Absent,
    /// They are not; says what is wrong.
    Different(String),
}

impl Ruleset {
    pub(super) fn exempt_v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.exempt.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    pub(super) fn exempt_v6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.exempt.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        })
    }
}
