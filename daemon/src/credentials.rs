//! The credentials of every pod of the node: fetched before they are asked for, fresh, one exchange for many.
//!
//! # Layout
//! In reading order: what is asked of STS ([`CredentialKey`], [`SessionName`]) and what it answers ([`Sts`],
//! [`Credentials`]); when to ask again (`policy`), in which order ([`Urgency`], `queue`) and how fast (`pace`); who holds what
//! (`table`); the handle of the request path ([`CredentialManager`]) and the one task that talks to STS
//! ([`Worker`]).
//!
//! When one daemon takes over from another, their tables and workers speak as `handover` says.
//!
//! The table decides and does nothing else: no clock, no file, no `async`. Handles write wishes into it and read
//! from it, the worker carries the wishes out.

mod exchange;
mod fetch;
mod handover;
mod issued;
mod manager;
mod metrics;
mod pace;
mod policy;
mod queue;
mod session_name;
mod table;
mod urgency;
mod worker;

use std::{sync::Arc, time::Duration};

use rolecall_contract::{RoleArn, SessionDuration};

pub use self::{
    exchange::{FetchError, Issued, Sts, StsError},
    handover::{Counterpart, Inherited, Outcome},
    issued::{Credentials, MalformedAnswer},
    manager::{CredentialManager, Found, Mark, Pending, TooManyRoles},
    metrics::Metrics,
    session_name::{SessionName, SessionNameError, SessionNameTemplate, SessionNameValues},
    urgency::{Need, Urgency},
    worker::Worker,
};
use crate::{
    identity::{PodIdentity, PodUid},
    token::volume::TokenVolume,
};

/// Everything that changes what STS answers, and nothing else: never the token, which rotates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialKey {
    pub pod: PodUid,
    pub role: RoleArn,
    pub session_name: SessionName,
    pub duration: SessionDuration,
}

/// What it takes to fetch the credentials of a key. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct SessionRequest {
    pub key: CredentialKey,
    /// The pod of the key, as people name it.
    pub pod: PodIdentity,
    /// Where its token lies.
    pub volumes: Arc<[TokenVolume]>,
    /// Its place among those that are to be warmed.
    pub urgency: Urgency,
}

/// The settings of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Most exchanges with STS at a time.
    pub concurrency: usize,
    /// Most of these that are younger than a second; throttling lowers it for a while.
    pub burst: usize,
    /// How long STS may be silent before a second attempt runs beside the first.
    pub hedge_after: Duration,
    /// Most keys that one pod may ask for; its own role is never refused for it.
    pub roles_per_pod: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { concurrency: 512, burst: 16, hedge_after: Duration::from_secs(3), roles_per_pod: 16 }
    }
}
