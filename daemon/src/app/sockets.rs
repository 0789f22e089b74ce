//! The sockets that the daemon listens on: bound, or taken over.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use nix::errno::Errno;
use rolecall_process::{address::with_remedy, admin};
use tokio::net::TcpSocket;

use super::StartError;
use crate::{handover::Door, node::loopback};

/// Connections that the kernel keeps for a listener that is busy.
const BACKLOG: u32 = 4096;

/// Where to listen.
pub(super) struct Wanted {
    pub(super) endpoint: Vec<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

/// Every TCP socket that it listens on.
pub(super) struct Sockets {
    pub(super) endpoint: Vec<TcpListener>,
    pub(super) doors: admin::Doors,
}

impl Sockets {
    /// Binds all that is wanted.
    pub(super) fn bind(wanted: &Wanted) -> Result<Self, StartError> {
        Self::take(wanted, Vec::new())
    }

    /// Takes what is wanted of `offered` and binds the rest. What is offered and not wanted is closed.
    pub(super) fn take(wanted: &Wanted, mut offered: Vec<(Door, TcpListener)>) -> Result<Self, StartError> {
        let mut taken = |door, address: SocketAddr| {
            let is_it = |(its_door, listener): &(Door, TcpListener)| {
                *its_door == door && listener.local_addr().is_ok_and(|its| its == address)
            };
            let index = offered.iter().position(is_it)?;
            Some(offered.swap_remove(index).1)
        };
        let admin = wanted.admin.and_then(|address| taken(Door::Admin, address));
        let metrics = wanted.metrics.and_then(|address| taken(Door::Metrics, address));
        let endpoint = endpoint(&wanted.endpoint, |address| taken(Door::Endpoint, address))?;
        let missing = admin::Doors::bind(
            wanted.admin.filter(|_| admin.is_none()),
            wanted.metrics.filter(|_| metrics.is_none()),
        )?;
        let doors = admin::Doors {
            listen: admin.or(missing.listen),
            metrics_listen: metrics.or(missing.metrics_listen),
        };
        Ok(Self { endpoint, doors })
    }

    /// The same sockets once more, for the next daemon.
    pub(super) fn try_clone(&self) -> io::Result<Vec<(Door, TcpListener)>> {
        let endpoint = self.endpoint.iter().map(|listener| (Door::Endpoint, listener));
        let admin = self.doors.listen.iter().map(|listener| (Door::Admin, listener));
        let metrics = self.doors.metrics_listen.iter().map(|listener| (Door::Metrics, listener));
        let all = endpoint.chain(admin).chain(metrics);
        all.map(|(door, listener)| Ok((door, listener.try_clone()?))).collect()
    }
}

/// Whether `error` says that another process listens there.
pub(super) fn is_taken(error: &StartError) -> bool {
    let source = match error {
        StartError::Listen { source, .. } | StartError::Admin(admin::Error::Bind { source, .. }) => source,
        StartError::Admin(admin::Error::Socket { .. } | admin::Error::Start(_))
        | StartError::Client(_)
        | StartError::Sts(_)
        | StartError::Netlink(_)
        | StartError::Node(_)
        | StartError::Loopback(_)
        | StartError::Firewall(_)
        | StartError::Handover { .. }
        | StartError::Listeners(_)
        | StartError::EssentialTask(_) => return false,
    };
    source.kind() == io::ErrorKind::AddrInUse
}

/// Listens where it can be listened. A family that the node does not have is left out, as long as something is left.
fn endpoint(
    addresses: &[SocketAddr],
    mut taken: impl FnMut(SocketAddr) -> Option<TcpListener>,
) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    let mut left_out = None;
    for &address in addresses {
        if let Some(listener) = taken(address) {
            listeners.push(listener);
            continue;
        }
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(cause) => {
                let is_absent = is_absent(&cause);
                let remedy = match cause.kind() {
                    io::ErrorKind::AddrInUse => {
                        "Another program has this address and port (the EKS Pod Identity Agent, if it is 169.254.170.23:80): remove \
                         one of the two"
                    }
                    io::ErrorKind::PermissionDenied => "Ports below 1024 need CAP_NET_BIND_SERVICE",
                    _ if loopback::is_ours_to_put(address.ip()) => {
                        "The address must be on an interface of the node: give the daemon CAP_NET_ADMIN and \
                         --manage-addresses=on, and it puts it on lo"
                    }
                    _ => "The address must be on an interface of the node: ip address add <address> dev lo",
                };
                let error = StartError::Listen { address, source: with_remedy(cause, remedy) };
                if !is_absent {
                    return Err(error);
                }
                tracing::warn!(%address, "leave out an address that the node does not have");
                left_out = Some(error);
            }
        }
    }
    match left_out {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::EADDRNOTAVAIL, Errno::EAFNOSUPPORT];
    error.raw_os_error().is_some_and(|raw| absent.contains(&Errno::from_raw(raw)))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted daemon must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    // Linux hands it on to each accepted connection, so that none has to set it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}
