//! From settings that were typed to settings that are valid together: what every program checks and shows alike.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;

use crate::{admin, value::ListenAddress};

/// Longest path of a Unix socket (107 bytes), less the suffix that it carries until it is ready.
const MAX_SOCKET_PATH: usize = 96;

/// Longest that a drain may be asked to take.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {given}: {remedy}")]
pub struct Mistake {
    /// The flag, or the variable that has no flag.
    pub flag: &'static str,
    /// What was given, quoted where it is text.
    pub given: String,
    /// What is wrong with it and what to do.
    pub remedy: String,
}

/// What was found so far, in the order of the checks.
#[derive(Debug, Default)]
pub struct Checked {
    pub mistakes: Vec<Mistake>,
    /// What is allowed but should be known.
    pub warnings: Vec<String>,
}

impl Checked {
    /// Notes a mistake unless it `holds`.
    pub fn that(&mut self, holds: bool, flag: &'static str, given: impl fmt::Debug, remedy: &str) {
        if !holds {
            self.mistake(flag, format!("{given:?}"), remedy);
        }
    }

    pub fn mistake(&mut self, flag: &'static str, given: String, remedy: impl Into<String>) {
        self.mistakes.push(Mistake { flag, given, remedy: remedy.into() });
    }

    /// The admin doors: health over TCP is for this machine alone, the socket's path is one that the kernel takes.
    pub fn admin(
        &mut self,
        listen: ListenAddress,
        socket: PathBuf,
        metrics_listen: Option<SocketAddr>,
    ) -> admin::Config {
        if let Some(address) = listen.address() {
            self.that(
                address.ip().is_loopback(),
                "--admin-listen",
                address,
                "give a loopback address, such as 127.0.0.1:9910, or off; probes use the Unix socket, Prometheus \
                 --metrics-listen",
            );
        }
        self.socket("--admin-socket", &socket, "/run/rolecall/admin.sock");
        admin::Config { listen: listen.address(), socket, metrics_listen }
    }

    /// The path of a Unix socket; `example` is a good one.
    pub fn socket(&mut self, flag: &'static str, path: &Path, example: &str) {
        let is_good =
            path.is_absolute() && path.file_name().is_some() && path.as_os_str().len() <= MAX_SOCKET_PATH;
        let remedy = format!("give an absolute path of at most {MAX_SOCKET_PATH} bytes, such as {example}");
        self.that(is_good, flag, path, &remedy);
    }

    /// That no two listeners want one port, each with its flag.
    pub fn listeners(&mut self, all: impl IntoIterator<Item = (&'static str, SocketAddr)>) {
        let mut earlier: Vec<(&'static str, SocketAddr)> = Vec::new();
        for (flag, address) in all {
            if let Some((other, held)) = earlier.iter().find(|(_, held)| is_conflict(*held, address)) {
                let remedy = format!("{other} {held} has this port already; give each its own");
                self.mistake(flag, address.to_string(), remedy);
            }
            earlier.push((flag, address));
        }
    }

    /// How long a part of the drain may take.
    pub fn drain(&mut self, flag: &'static str, time: Duration, remedy: &str) -> Duration {
        self.that(time <= LONGEST_DRAIN, flag, time, remedy);
        time
    }
}

/// Whether the kernel would refuse the second of two listeners. Port 0 is any free port.
fn is_conflict(a: SocketAddr, b: SocketAddr) -> bool {
    let same_port = a.port() == b.port() && a.port() != 0;
    same_port && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Writes settings as the flags that would bring them about, one a line.
///
/// # Errors
/// As `f`.
pub fn write(f: &mut fmt::Formatter<'_>, settings: &[(&'static str, String)]) -> fmt::Result {
    for (index, (flag, value)) in settings.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        write!(f, "{separator}{flag}={value}")?;
    }
    Ok(())
}

/// A list as it is typed; `None` where it is empty.
pub fn joined(values: impl Iterator<Item = String>) -> Option<String> {
    let values: Vec<String> = values.collect();
    if values.is_empty() { None } else { Some(values.join(",")) }
}

/// An address as a [`ListenAddress`] is typed.
pub fn address_or_off(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// One of several words as it is typed.
pub fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_conflict(a: &str, b: &str, expect: bool) {
        let mut checked = Checked::default();
        checked.listeners([("--a", a.parse().unwrap()), ("--b", b.parse().unwrap())]);
        let told: Vec<String> = checked.mistakes.iter().map(ToString::to_string).collect();
        let message = format!("--b {b}: --a {a} has this port already; give each its own");
        assert_eq!(told, if expect { vec![message] } else { Vec::new() });
    }

    #[test]
    fn no_two_listeners_want_one_port() {
        check_conflict("127.0.0.1:80", "127.0.0.1:80", true);
        check_conflict("0.0.0.0:80", "127.0.0.1:80", true);
        check_conflict("127.0.0.1:80", "[::]:80", true);
        check_conflict("127.0.0.1:80", "127.0.0.2:80", false);
        check_conflict("127.0.0.1:80", "127.0.0.1:81", false);
        check_conflict("127.0.0.1:0", "127.0.0.1:0", false);
    }

    #[track_caller]
    fn check_socket(path: &str, expect: bool) {
        let mut checked = Checked::default();
        checked.socket("--socket", Path::new(path), "/run/it.sock");
        assert_eq!(checked.mistakes.is_empty(), expect, "{path}: {:?}", checked.mistakes);
    }

    #[test]
    fn the_kernel_can_bind_every_socket_path_that_is_taken() {
        check_socket("/run/it.sock", true);
        check_socket(&format!("/{}", "s".repeat(MAX_SOCKET_PATH - 1)), true);
        check_socket(&format!("/{}", "s".repeat(MAX_SOCKET_PATH)), false);
        check_socket("it.sock", false);
        check_socket("/", false);
        check_socket("", false);
    }
}
