//! Keeps the addresses that pods ask on the node's loopback interface.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
    time::Duration,
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rtnetlink::{
    AddressMessageBuilder, Handle, MulticastGroup,
    packet_route::address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
        CacheInfo,
    },
};
use tracing::{info, warn};

use super::{
    AskError, Netlink,
    netlink::{Asker, Changes},
};
use rolecall_process::{drain, readiness::Condition, telemetry::chain};

/// Where the addresses go. A kernel may lack dummy interfaces; it never lacks this one.
const INTERFACE: &str = "lo";

/// What `ip address` shows beside an IPv4 address of ours. IPv6 addresses have no label.
const LABEL: &str = "lo:rolecall";

/// The `IFA_PROTO` of our addresses, so that `cleanup` knows them; kernels before 5.18 do not keep it.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(0x52);

/// What could not be put back is tried again after this time, or sooner if the kernel tells of a change.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Addresses to be on the node, and the way to the kernel.
pub struct Loopback {
    wanted: Vec<IpAddr>,
    asker: Asker,
    changes: Changes,
    /// Why an address is missing, as it was logged.
    missing: BTreeMap<IpAddr, String>,
    metrics: Metrics,
}

/// What the metrics say of the addresses.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    missing: Gauge,
    restored: Counter,
}

/// The kernel does not let the addresses be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    #[error("find the interface lo")]
    Interface(#[source] Errno),
    #[error("ask the kernel for the node's addresses")]
    Ask(#[from] AskError),
    #[error("put {address} on lo")]
    Put { address: IpAddr, source: Box<rtnetlink::Error> },
    #[error("remove {address} from lo")]
    Remove { address: IpAddr, source: Box<rtnetlink::Error> },
}

/// Whether `address` is of the kind that the daemon may put on a node: one that no network routes.
///
/// Others are the node's own affair, loopback and unspecified ones are there already.
#[must_use]
pub fn is_ours_to_put(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// Puts those of `wanted` that the node does not have on its loopback interface. What cannot be put there is
/// logged and left out: a node without IPv6 is a healthy node.
///
/// # Errors
/// When netlink cannot be had at all.
pub async fn put(wanted: Vec<IpAddr>, netlink: &Netlink, metrics: Metrics) -> Result<Loopback, Error> {
    let (asker, changes) = netlink
        .connect(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])
        .map_err(Error::Open)?;
    let mut loopback = Loopback { wanted, asker, changes, missing: BTreeMap::new(), metrics };
    for address in loopback.settle().await? {
        info!(%address, "put the endpoint's address on lo");
    }
    Ok(loopback)
}

/// Removes from the loopback interface what a daemon has put there: what carries its mark, and the `wanted` ones.
/// Returns them.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(wanted: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let netlink = Netlink::start().map_err(Error::Open)?;
    let (asker, _changes) = netlink.connect(&[]).map_err(Error::Open)?;
    let index = index()?;
    let found = asker.addresses().await?;
    let mut removed = Vec::new();
    for message in found.into_iter().filter(|message| message.header.index == index) {
        let Some(address) = address_of(&message) else { continue };
        let is_alone = message.header.prefix_len == max_prefix(address);
        if !is_alone || !(is_marked(&message) || wanted.contains(&address)) {
            continue;
        }
        match asker.done(asker.handle().address().del(message).execute()).await? {
            Ok(()) => removed.push(address),
            Err(error) if errno(&error) == Some(Errno::EADDRNOTAVAIL) => {}
            Err(source) => return Err(Error::Remove { address, source: Box::new(source) }),
        }
    }
    Ok(removed)
}

impl Loopback {
    /// Puts back what something removes, until the drain begins or the kernel's messages end.
    ///
    /// An address that the node never had, because it has no IPv6, holds no readiness back.
    pub async fn keep(mut self, condition: Condition, drain: drain::Watch) {
        let mut begun = pin!(drain.begun());
        let left_out: Vec<IpAddr> = self.missing.keys().copied().collect();
        let mut retry = !self.missing.is_empty();
        loop {
            tokio::select! {
                () = &mut begun => return,
                changed = self.changes.next() => if !changed {
                    warn!("the netlink socket was closed; the endpoint's addresses are not followed any more");
                    return;
                },
                () = tokio::time::sleep(RETRY_AFTER), if retry => {}
            }
            match self.settle().await {
                Ok(restored) => {
                    for address in restored {
                        warn!(%address, "the endpoint's address was gone from the node; put it back on lo");
                        self.metrics.restored.inc();
                    }
                }
                Err(error) => {
                    warn!(error = %chain(&error), "cannot look after the endpoint's addresses");
                    if retry {
                        condition.broken("what addresses the node has is not to be learned; see the log");
                    }
                    // What is missing is not known.
                    retry = true;
                    continue;
                }
            }
            retry = !self.missing.is_empty();
            match self.missing.iter().find(|(address, _)| !left_out.contains(address)) {
                Some((address, reason)) => {
                    condition.broken(&format!("{address} is gone from the node: {reason}"));
                }
                None => condition.restored(),
            }
        }
    }

    /// Puts what is missing, and returns what that was. What the kernel refuses is in `missing` afterwards.
    async fn settle(&mut self) -> Result<Vec<IpAddr>, Error> {
        let index = index()?;
        let found = self.asker.addresses().await?;
        let present: Vec<IpAddr> = found.iter().filter_map(address_of).collect();
        let mut results = Vec::new();
        for &address in self.wanted.iter().filter(|address| !present.contains(address)) {
            let added = self.asker.done(add(self.asker.handle(), index, address)).await;
            results.push((address, added.map_err(Error::Ask).flatten()));
        }
        let before = std::mem::take(&mut self.missing);
        let mut put = Vec::new();
        for (address, result) in results {
            match result {
                Ok(()) => put.push(address),
                Err(error) => {
                    let reason = format!("{}; {}", chain(&error), remedy(&error));
                    if before.get(&address) != Some(&reason) {
                        warn!(%address, reason, "cannot put the endpoint's address on lo");
                    }
                    self.missing.insert(address, reason);
                }
            }
        }
        self.metrics.missing.set(self.missing.len().try_into().unwrap_or(i64::MAX));
        Ok(put)
    }
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "listen_addresses_missing",
            "Addresses of --listen that should be on lo and could not be put there",
            metrics.missing.clone(),
        );
        registry.register(
            "listen_addresses_restored",
            "Addresses of --listen that something had removed from the node and that were put back",
            metrics.restored.clone(),
        );
        metrics
    }
}

fn index() -> Result<u32, Error> {
    if_nametoindex(INTERFACE).map_err(Error::Interface)
}

async fn add(handle: &Handle, index: u32, address: IpAddr) -> Result<(), Error> {
    let mut request = handle.address().add(index, address, max_prefix(address));
    *request.message_mut() = message(index, address);
    match request.execute().await {
        Ok(()) => Ok(()),
        // Somebody else was faster.
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
        Err(source) => Err(Error::Put { address, source: Box::new(source) }),
    }
}

/// The address as it is put on the interface: for its own sake, never for others to be reached from.
fn message(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = match address {
        IpAddr::V4(address) => {
            let mut message =
                AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, 32).build();
            message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
            // Of host scope, so that the node never sends from it.
            message.header.scope = AddressScope::Host;
            message.attributes.push(AddressAttribute::Label(LABEL.to_owned()));
            message
        }
        IpAddr::V6(address) => {
            let mut message =
                AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(address, 128).build();
            // Nobody else can have it on this interface, so it is to be had at once.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            // Deprecated, so that the node prefers any other address to send from.
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
            message
        }
    };
    message.attributes.push(AddressAttribute::Protocol(PROTOCOL));
    message
}

fn is_marked(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Label(label) => label == LABEL,
        AddressAttribute::Protocol(protocol) => *protocol == PROTOCOL,
        _ => false,
    })
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn max_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().abs())),
        _ => None,
    }
}

fn remedy(error: &Error) -> &'static str {
    let Error::Put { source, address } = error else { return "this is tried again" };
    match errno(source) {
        Some(Errno::EPERM) => {
            "give the daemon CAP_NET_ADMIN, or put the address there yourself and set --manage-addresses=off"
        }
        _ if address.is_ipv6() => {
            "the node seems to have no IPv6; nothing is lost if its pods have none either"
        }
        _ => "put the address there yourself and set --manage-addresses=off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_no_network_routes_are_put_on_a_node() {
        for (address, expect) in [
            ("169.254.170.23", true),
            ("169.254.170.2", true),
            ("fd00:ec2::23", true),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("192.0.2.1", false),
            ("fe80::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_ours_to_put(address.parse().unwrap()), expect, "{address}");
        }
    }

    #[test]
    fn what_is_put_carries_our_mark_and_is_no_source_address() {
        for address in ["169.254.170.23", "fd00:ec2::23"] {
            let address: IpAddr = address.parse().unwrap();
            let message = message(1, address);
            assert!(is_marked(&message));
            assert_eq!(address_of(&message), Some(address));
            assert_eq!(message.header.prefix_len, max_prefix(address));
            assert_eq!(message.header.scope == AddressScope::Host, address.is_ipv4());
        }
    }
}
