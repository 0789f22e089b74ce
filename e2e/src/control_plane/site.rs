//! Where a control plane is, and for whom.

use std::net::Ipv4Addr;

/// The addresses of Services where there are nodes to serve them.
pub(crate) const SERVICES: &str = "10.96.0.0/16";

/// The API server's own Service, as pods see it: the first of [`SERVICES`].
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Where a control plane is, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// For clients on this machine alone; tests act for nodes and controllers.
    Loopback(Ipv4Addr),
    /// For real nodes, whose kubelets it asks for logs and whose pods it calls as webhooks.
    Network {
        /// Its address, which every node can reach.
        address: Ipv4Addr,
    },
}

impl Site {
    /// What it listens on.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Loopback(address) | Self::Network { address } => address,
        }
    }

    /// What its certificate has to name.
    pub(super) fn served_addresses(self) -> Vec<Ipv4Addr> {
        match self {
            Self::Loopback(address) => vec![address],
            Self::Network { address } => vec![address, API_SERVICE],
        }
    }
}
