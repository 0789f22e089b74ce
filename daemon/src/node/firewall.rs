//! Keeps pods from the instance metadata service, whose answers hold the node's own credentials.

mod backend;
mod events;
mod iptables;
mod keeper;
mod nftables;
mod program;
mod ruleset;

use std::path::PathBuf;

pub use self::{
    backend::{Backend, Family, Programs},
    keeper::{Firewall, Metrics},
    nftables::ReadError,
    program::ProgramError,
    ruleset::{Ruleset, Verdict},
};

/// How the rules are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub mode: Mode,
    pub programs: Programs,
}

/// What keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
    Off,
}

/// The rules are not in force, or nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is not to be found: install it, choose another --metadata-firewall, or turn it off", .0.display())]
    Missing(PathBuf),
    #[error(
        "the right to change the firewall is missing: {0}; give the daemon CAP_NET_ADMIN (and CAP_NET_RAW for iptables-legacy), or turn the blocking off by --metadata-firewall=off"
    )]
    Right(#[source] ProgramError),
    #[error("block the metadata service; choose another --metadata-firewall, or turn it off")]
    Program(#[source] ProgramError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the rules were accepted, but are not there: {0}")]
    NotVerified(String),
}

impl From<ProgramError> for Error {
    fn from(error: ProgramError) -> Self {
        if error.is_missing()
            && let ProgramError::Start { program, .. } = error
        {
            return Self::Missing(program);
        }
        // EPERM in the words of nft, of iptables-nft and of iptables-legacy.
        let denials = ["Operation not permitted", "you must be root", "Permission denied"];
        if denials.iter().any(|words| error.complaint().contains(words)) {
            return Self::Right(error);
        }
        Self::Program(error)
    }
}
