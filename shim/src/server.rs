//! The webhook: TLS, HTTP, and the answer to each review.

pub mod bodies;
pub mod endpoint;
pub mod listener;
pub mod metrics;
mod places;
pub mod tls;

use std::net::SocketAddr;

/// Where the webhook is, and how much it bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Open connections of all callers together.
    pub max_connections: usize,
}
