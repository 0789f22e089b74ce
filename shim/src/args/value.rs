//! The forms of values: times, addresses.

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
            socket_address(text).map(Self::At).map_err(|error| error + ", or off")
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
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.trim()
        .parse()
        .map_err(|_| "write an IP address and a port, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
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
    fn a_time_is_written_as_here_or_as_in_go() {
        for (text, milliseconds) in
            [("700ms", 700), ("0", 0), ("1m0s", 60_000), ("1h30m", 5_400_000), ("1.5s", 1500), ("60", 60_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "0.7", "-1s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
