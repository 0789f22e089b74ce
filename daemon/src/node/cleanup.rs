//! Removes from the node what a daemon leaves on it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    firewall::{Backend, Programs},
    loopback,
};
use rolecall_process::{socket, telemetry::chain};

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Addresses that may be of a daemon on a kernel that keeps no marks.
    pub addresses: Vec<IpAddr>,
    /// Where daemons of this node took over from each other.
    pub handover_socket: Option<PathBuf>,
    pub programs: Programs,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was there and is not any more, in words.
    pub removed: Vec<String>,
    /// What could not be looked for or removed, in words.
    pub failed: Vec<String>,
}

/// Removes the rules, the addresses and the hand-over socket.
/// What is not there is none of its business, so it may be run again.
///
/// The rules go last: as long as the rest of it runs, pods do not reach the node's credentials.
pub async fn run(config: Config) -> Report {
    let mut report = Report::default();
    match loopback::remove(&config.addresses).await {
        Ok(removed) => report.removed.extend(removed.iter().map(|address| format!("{address} from lo"))),
        Err(error) => report.failed.push(chain(&error).to_string()),
    }
    if let Some(path) = &config.handover_socket {
        remove_socket(path, &mut report);
    }
    for backend in Backend::all(&config.programs) {
        match backend.remove().await {
            Ok(removed) => report.removed.extend(removed),
            Err(error) => report.failed.push(chain(&error).to_string()),
        }
    }
    report
}

fn remove_socket(path: &Path, report: &mut Report) {
    match socket::remove_stale(path) {
        Ok(removed) => report.removed.extend(removed.iter().map(|path| path.display().to_string())),
        Err(error) => report.failed.push(format!("remove the hand-over socket {}: {error}", path.display())),
    }
}
