//! What two daemons of a node say to each other, one JSON document after another.

use rolecall_contract::{RoleArn, SessionDuration};
use serde::{Deserialize, Serialize};

use super::cache::WireOutcome;
use crate::credentials::CredentialKey;

/// The version of everything here, of the meaning of each step, and of the cache's form. Two daemons understand each
/// other only where it is the same; the forms of `Hello` and `Refuse` never change, so that they can say so.
pub(super) const PROTOCOL: u32 = 1;

/// Longest message, in bytes; the cache does not travel in one.
pub(super) const MAX_LENGTH: usize = 64 * 1024;

/// A message. `new` and `old` say who sends it: the daemon that takes over, or the one that serves.
///
/// Not tagged inside of the document: serde would keep copies of secrets while it looks for the tag.
#[derive(Serialize, Deserialize)]
pub(super) enum Message {
    /// new: I can serve; hand over to me.
    Hello { protocol: u32, version: String, origin: Origin },
    /// old: no, and why.
    Refuse { reason: String },
    /// old: here are my listening sockets, in this order, and the cache after them, where it is good for you.
    Offer { version: String, doors: Vec<Door>, has_cache: bool },
    /// new: I have it all and serve as soon as you say so.
    Commit,
    /// old: serve. I make no exchange any more, and take no connection once you say that you do.
    Release,
    /// new: I serve.
    Serving,
    /// old: an exchange has ended that was under way when I offered; without an outcome, it is yours to make.
    Ended { key: WireKey, outcome: Option<WireOutcome> },
    /// old: a request waits here for these credentials.
    Want { id: u64, key: WireKey },
    /// new: this is what came of it; without an outcome, see for yourself.
    Given { id: u64, outcome: Option<WireOutcome> },
}

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Door {
    Endpoint,
    Admin,
    Metrics,
}

/// Where credentials come from, beside what their key says. Credentials of another origin are of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub fips: bool,
    pub dual_stack: bool,
    /// Whom the pods' tokens are for.
    pub audience: String,
}

/// A [`CredentialKey`] as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireKey {
    pod: String,
    role: String,
    session_name: String,
    seconds: u32,
}

impl From<&CredentialKey> for WireKey {
    fn from(key: &CredentialKey) -> Self {
        Self {
            pod: key.pod.to_string(),
            role: key.role.as_str().to_owned(),
            session_name: key.session_name.to_string(),
            seconds: key.duration.as_seconds(),
        }
    }
}

impl WireKey {
    /// The key, where each part of it is one.
    pub(super) fn read(&self) -> Option<CredentialKey> {
        Some(CredentialKey {
            pod: self.pod.parse().ok()?,
            role: self.role.parse::<RoleArn>().ok()?,
            session_name: self.session_name.parse().ok()?,
            duration: SessionDuration::from_seconds(self.seconds).ok()?,
        })
    }
}
