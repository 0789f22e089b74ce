//! Addresses to listen on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

/// What to bind for `address`: `[::]` stands for every address of this machine, and where it has no IPv6 these are all
/// of IPv4.
#[must_use]
pub fn on_this_machine(address: SocketAddr) -> SocketAddr {
    // A machine may have the family and no address of it but `::`, or be without the family.
    let has_ipv6 = || UdpSocket::bind(("::1", 0)).is_ok() || UdpSocket::bind("[::]:0").is_ok();
    if address.is_ipv6() && address.ip().is_unspecified() && !has_ipv6() {
        return (Ipv4Addr::UNSPECIFIED, address.port()).into();
    }
    address
}

/// Why an address is not to be had, and what to do about it as a sentence of its own: behind the cause, with which a
/// chain of errors ends. The kind stays.
#[must_use]
pub fn with_remedy(cause: io::Error, remedy: &str) -> io::Error {
    io::Error::new(cause.kind(), format!("{cause}. {remedy}"))
}
