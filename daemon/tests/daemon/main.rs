//! The whole daemon in this process, over real sockets: its world is the sandbox, its clients speak raw bytes.
//!
//! Pods have loopback addresses of their own (127.0.0.2 and up), and the daemon is told that only 127.0.0.1 is the
//! node's: so the peer address is a real witness without a network namespace.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and run in real time"
)]

mod app;
mod bytes;
mod choices;
mod client;
mod events;
mod limits;
mod outages;
mod roles;
mod slow;
mod waiting;
