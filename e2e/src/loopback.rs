//! Loopback addresses that nobody else uses.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

/// An address of 127.0.0.0/8 for the caller alone.
///
/// A port of 127.0.0.1 that is free now may be taken before it is bound, and above all while a server that is to
/// come back on it is down: each outgoing connection on loopback takes one. Those come from 127.0.0.1, whatever
/// they go to, so a port of another address stays free. There are sixteen million to choose from.
pub fn own_address() -> Ipv4Addr {
    Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255))
}

/// What was given out: a port is free again for the kernel until its new owner binds it.
static GIVEN: Mutex<BTreeSet<(Ipv4Addr, u16)>> = Mutex::new(BTreeSet::new());

/// A port that is free at an [`own_address`], and stays so until the caller binds it, again and again. No port is given
/// out twice.
pub fn free_port(address: Ipv4Addr) -> Result<u16> {
    loop {
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("bind a port of {address}"))?;
        let port = listener.local_addr()?.port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert((address, port)) {
            return Ok(port);
        }
    }
}
