//! The forms of values on the command line: times, addresses, paths.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::builder::{OsStringValueParser, TypedValueParser};
use jiff::SignedDuration;

/// An address to listen on, or the decision not to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddress {
    Off,
    At(SocketAddr),
}

impl ListenAddress {
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            Ok(Self::Off)
        } else {
            socket_address(text).map(Self::At).map_err(|e| e + ", or off")
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// A path that may be empty, which stands for none: a Go program takes it so.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// An address of this machine with a port.
///
/// # Errors
/// What to write instead.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.trim()
        .parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

/// A time with units, as here or as Go writes it; a bare number is seconds.
///
/// # Errors
/// What to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| "this is longer than time".to_owned());
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "write a time such as 700ms, 20s or 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        for (text, milliseconds) in [
            ("700ms", 700),
            ("0", 0),
            ("3600", 3_600_000),
            (" 20s ", 20_000),
            ("1.5s", 1500),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("2m 5s", 125_000),
            ("1m0s", 60_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "ms", "0.7", "-1s", "-1", "1x", "99999999999999999999", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_port() {
        assert!(socket_address("[fd00:ec2::23]:80").is_ok());
        for bad in ["", "169.254.170.23", "fd00:ec2::23:80", ":80", "localhost:80", "1.2.3.4:65536", "off"] {
            assert!(socket_address(bad).is_err(), "{bad}");
        }
        assert_eq!("off".parse(), Ok(ListenAddress::Off));
        assert!("no".parse::<ListenAddress>().is_err_and(|error| error.ends_with(", or off")));
    }
}
