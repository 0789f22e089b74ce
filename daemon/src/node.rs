//! The node that the daemon runs on.

mod addresses;
pub mod cleanup;
pub mod firewall;
pub mod loopback;
mod netlink;
pub mod taint;

pub use addresses::{FollowError, NodeAddresses};
pub use netlink::{AskError, Netlink};
