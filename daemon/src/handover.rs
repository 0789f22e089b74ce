//! Lets the next daemon of the node take over: every listening socket and the warm cache, without a request lost.
//!
//! # Layout
//! What is said ([`message`]) and how the cache travels (`cache`, in sealed `memory`); the steps of the daemon that
//! serves (`giving`) and of the one that takes over (`taking`), which are pure; the edges around them ([`Giver`],
//! [`ask`]), over a `connection`; what each is to the other's credentials (`counterpart`); and who has stepped down
//! for good ([`SteppedDown`]).

mod cache;
mod connection;
mod counterpart;
mod giver;
mod giving;
mod memory;
mod message;
mod metrics;
mod stepped_down;
mod taker;
mod taking;

pub use self::{
    cache::UnreadableCache,
    connection::Error as ConnectionError,
    giver::Giver,
    message::{Door, Origin},
    metrics::{Metrics, Result},
    stepped_down::SteppedDown,
    taker::{Asked, Estate, Link, NotGiven, Offer, ask, is_somebody_there},
};

#[cfg(test)]
mod tests;
