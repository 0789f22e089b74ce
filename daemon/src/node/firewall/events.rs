//! Hears of changes to nftables, those of `iptables-nft` included, from the kernel.

use std::io;

use nix::errno::Errno;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

/// The bit of `NFNLGRP_NFTABLES`, which is group 7.
const GROUP: u32 = 1 << 6;

/// Larger than one message of the kernel.
const BUFFER: usize = 64 * 1024;

/// What the kernel tells of nftables in this network namespace.
pub(super) struct Events(TokioSocket);

impl Events {
    pub(super) fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUP))?;
        Ok(Self(socket))
    }

    /// Waits for a change that touches one of `tables`. A future that is dropped has lost nothing that it was to
    /// tell.
    pub(super) async fn touched(&mut self, tables: &[&str]) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer).await {
                Ok(()) if touches(&buffer, tables) => return Ok(()),
                Ok(()) => {}
                // More happened than the socket could hold: nobody knows what.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether one of the messages is about one of `tables`.
///
/// Each begins with `nlmsghdr` (16 bytes, its length first) and `nfgenmsg` (4 bytes); in all that are about a
/// table, chain, rule or set, the attribute of type 1 is the table's name.
fn touches(mut messages: &[u8], tables: &[&str]) -> bool {
    while let Some(length) = number(messages, 0, 4) {
        let end = length.min(messages.len());
        if length < 20 {
            return false;
        }
        if table(messages.get(20..end).unwrap_or_default()).is_some_and(|name| tables.contains(&name)) {
            return true;
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn table(mut attributes: &[u8]) -> Option<&str> {
    while let (Some(length), Some(kind)) = (number(attributes, 0, 2), number(attributes, 2, 2)) {
        let value = attributes.get(4..length)?;
        if kind == 1 {
            return std::str::from_utf8(value.strip_suffix(b"\0")?).ok();
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The number of `size` bytes at `at`, in the machine's byte order.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + size)?;
    match size {
        2 => Some(usize::from(u16::from_ne_bytes(bytes.try_into().ok()?))),
        _ => usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; 16];
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(4 + body.len()).unwrap();
        [length.to_ne_bytes().to_vec(), body].concat()
    }

    #[test]
    fn a_message_tells_the_table_it_is_about() {
        let ours = message(&[(2, b"x"), (1, b"rolecall\0")]);
        let other = message(&[(1, b"kube-proxy\0"), (2, b"rolecall\0")]);
        assert!(touches(&ours, &["raw", "rolecall"]));
        assert!(!touches(&other, &["rolecall"]));
        assert!(touches(&[other.clone(), ours.clone()].concat(), &["rolecall"]));
        assert!(!touches(&[other.clone(), other].concat(), &["rolecall"]));
        assert!(!touches(&message(&[(1, b"rolecall2\0")]), &["rolecall"]));
    }

    proptest::proptest! {
        #[test]
        fn no_message_is_too_broken(bytes in proptest::collection::vec(0u8..24, 0..200)) {
            touches(&bytes, &["rolecall"]);
        }
    }
}
