//! The node that the daemon runs on.

mod addresses;

pub use addresses::{FollowError, NodeAddresses};
