//! The node's own addresses, asked of the kernel and followed.

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_route::address::{AddressAttribute, AddressMessage},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{AskError, Netlink, netlink::Asker};

/// Pause after the kernel did not tell.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The addresses of the network namespace that this process lives in: of every interface, loopback, bridges and
/// link-local ones included. Cloning is cheap.
///
/// A request that comes from one of them was sent by a pod on the host network or by the node itself.
#[derive(Debug, Clone)]
pub struct NodeAddresses(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    nets: RwLock<Vec<IpNet>>,
    version: watch::Sender<u64>,
    /// The same count, which costs a look no lock.
    stamp: AtomicU64,
}

/// The kernel does not tell the addresses.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("open a netlink socket")]
    Open(#[source] std::io::Error),
    #[error("ask the kernel for the node's addresses")]
    Ask(#[from] AskError),
    #[error("the netlink socket was closed")]
    Closed,
}

impl NodeAddresses {
    /// A set that does not change by itself: a node that is known beforehand.
    pub fn fixed(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let nets = RwLock::new(nets.into_iter().collect());
        Self(Arc::new(Shared { nets, version: watch::Sender::new(0), stamp: AtomicU64::new(0) }))
    }

    /// Asks the kernel, and returns the set with a task that follows it; the task ends only when it fails.
    ///
    /// # Errors
    /// When netlink cannot be had at all.
    pub async fn follow(
        netlink: &Netlink,
    ) -> Result<(Self, impl Future<Output = FollowError> + use<>), FollowError> {
        let (asker, mut changes) = netlink
            .connect(&[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])
            .map_err(FollowError::Open)?;
        let addresses = Self::fixed([]);
        addresses.ask(&asker).await?;
        let following = addresses.clone();
        let task = async move {
            while changes.next().await {
                while let Err(error) = following.ask(&asker).await {
                    warn!(%error, "cannot follow the node's addresses; those last seen count");
                    tokio::select! {
                        () = tokio::time::sleep(ASK_AGAIN_AFTER) => {}
                        goes_on = changes.next() => if !goes_on {
                            return FollowError::Closed;
                        }
                    }
                }
            }
            FollowError::Closed
        };
        Ok((addresses, task))
    }

    /// Whether `address` is the node's own.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.nets.read().unwrap_or_else(PoisonError::into_inner).iter().any(|net| net.contains(&address))
    }

    /// A number that rises with each change: what [`Self::contains`] said after taking it holds while it stays.
    pub fn version(&self) -> u64 {
        self.0.stamp.load(Ordering::Acquire)
    }

    /// Wakes when the set has changed since.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    async fn ask(&self, asker: &Asker) -> Result<(), FollowError> {
        let messages = asker.addresses().await?;
        let mut nets: Vec<IpNet> = messages.iter().filter_map(own_net).collect();
        nets.sort_unstable();
        nets.dedup();
        let mut current = self.0.nets.write().unwrap_or_else(PoisonError::into_inner);
        if *current != nets {
            debug!(count = nets.len(), "learned the node's addresses");
            // Before the change and under the lock: whoever reads the new number looks after the change.
            self.0.stamp.fetch_add(1, Ordering::Release);
            *current = nets;
            drop(current);
            self.0.version.send_modify(|version| *version += 1);
        }
        Ok(())
    }
}

/// The address itself; of loopback, the whole net: every address in 127.0.0.0/8 is the node's.
fn own_net(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point link `Address` is the other side's.
    let address = find(true).or_else(|| find(false))?;
    let prefix = if address.is_loopback() { message.header.prefix_len } else { max_prefix(address) };
    IpNet::new(address, prefix).ok().map(|net| net.trunc())
}

fn max_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_loopback_with_its_whole_net_to_threads_that_cannot_ask_it() {
        let netlink = Netlink::start().unwrap();
        // Without I/O, this thread cannot hold a socket: it never waits in the kernel.
        let idle = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (addresses, _task) = idle.block_on(NodeAddresses::follow(&netlink)).unwrap();
        for own in ["127.0.0.1", "127.0.0.2", "127.255.255.254"] {
            assert!(addresses.contains(own.parse().unwrap()), "{own}");
        }
        for other in ["192.0.2.77", "10.255.255.77", "2001:db8::77"] {
            assert!(!addresses.contains(other.parse().unwrap()), "{other}");
        }
    }

    #[tokio::test]
    async fn without_the_thread_the_task_ends() {
        let netlink = Netlink::start().unwrap();
        let (_addresses, task) = NodeAddresses::follow(&netlink).await.unwrap();
        drop(netlink);
        assert!(matches!(task.await, FollowError::Closed));
    }
}
