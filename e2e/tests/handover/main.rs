//! One daemon takes over from another, as they ship: under load, again and again, with deaths at every step.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a node")]

mod between;
mod deaths;
mod load;
mod node;
mod old_dies;
mod peer;
mod takeovers;
