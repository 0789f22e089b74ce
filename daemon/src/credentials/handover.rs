//! What passes between the credentials of two daemons of one node, when the one takes over from the other.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

use super::{CredentialKey, Credentials, FetchError};

/// How an exchange ended, as far as the other daemon can use it.
pub type Outcome = Result<Arc<Credentials>, FetchError>;

/// All that the next daemon has to know of a key so that it repeats no exchange. Spans count from when it was told.
#[derive(Clone)]
pub struct Inherited {
    pub key: CredentialKey,
    /// An exchange is out, whose result follows.
    pub is_under_way: bool,
    pub credentials: Option<Arc<Credentials>>,
    /// STS had nothing that lasts longer.
    pub is_best: bool,
    pub refresh_at: SystemTime,
    /// Why the last exchange failed.
    pub failure: Option<FetchError>,
    /// What requests are told at once, and for how long yet.
    pub remembered: Option<(FetchError, Duration)>,
    /// Failures in a row that may pass.
    pub failures: u32,
    /// Refusals in a row.
    pub refusals: u32,
    /// The soonest that a waiting request may have the next exchange.
    pub retry_in: Duration,
    /// When the next exchange is due unasked; `None` for at once.
    pub due_in: Option<Duration>,
}

/// Which of the other daemons of the node: with two hand-overs in a row, there is one on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbor {
    /// The one that this daemon took over from.
    Before,
    /// The one that takes over from this daemon.
    Next,
}

/// The other daemons of the node, as far as they are known.
#[derive(Default)]
pub(super) struct Neighbors {
    pub(super) before: Option<Arc<dyn Counterpart>>,
    pub(super) next: Option<Arc<dyn Counterpart>>,
}

/// The other daemon of a hand-over, as far as exchanges go.
pub trait Counterpart: Send + Sync {
    /// What comes of `key` over there; `None` where the other will not say, and the exchange is ours to make. Whoever
    /// asks for the same exchange is told the same.
    fn fetch(&self, key: &CredentialKey) -> BoxFuture<'static, Option<Outcome>>;

    /// These of our exchanges are out, and it waits for them: how each has [`ended`](Self::ended) follows.
    fn awaits(&self, _: Vec<CredentialKey>) {}

    /// An exchange of ours has ended; with `None`, without a result that is of use over there.
    fn ended(&self, key: &CredentialKey, outcome: Option<&Outcome>);
}

impl Neighbors {
    pub(super) fn get(&self, which: Neighbor) -> Option<Arc<dyn Counterpart>> {
        match which {
            Neighbor::Before => self.before.clone(),
            Neighbor::Next => self.next.clone(),
        }
    }
}
