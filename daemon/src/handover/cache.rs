//! The warm cache as it travels: the one form of credentials beside the reply to their pod.
//!
//! What has these types lives in sealed memory or in a socket between two processes of root, and nowhere else. They
//! have no `Debug`, and are wiped when they go.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::error::Category;
use zeroize::Zeroizing;

use super::message::WireKey;
use crate::credentials::{CredentialKey, Credentials, FetchError, Inherited, Issued, Outcome};

/// An [`Outcome`] as it travels.
#[derive(Serialize, Deserialize)]
pub(super) enum WireOutcome {
    Issued(WireCredentials),
    Failed(WireFailure),
}

/// [`Credentials`] as they travel. Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
pub(super) struct WireCredentials {
    access_key_id: String,
    secret_access_key: Secret,
    session_token: Secret,
    issued_at: u64,
    expires_at: u64,
    account_id: String,
    request_id: Option<String>,
}

/// What STS said in place of credentials.
#[derive(Serialize, Deserialize)]
pub(super) struct WireFailure {
    kind: FailureKind,
    code: String,
    message: String,
    request_id: Option<String>,
}

/// [`Inherited`] as it travels. Spans are milliseconds.
#[derive(Serialize, Deserialize)]
struct WireInherited {
    key: WireKey,
    is_under_way: bool,
    credentials: Option<WireCredentials>,
    is_best: bool,
    refresh_at: u64,
    failure: Option<WireFailure>,
    remembered: Option<(WireFailure, u64)>,
    failures: u32,
    refusals: u32,
    retry_in: u64,
    due_in: Option<u64>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum FailureKind {
    Denied,
    TokenRefused,
    Throttled,
    Unreachable,
}

/// A text that is wiped from memory.
struct Secret(Zeroizing<String>);

/// The cache has a line that is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("read line {line} of the cache")]
pub struct UnreadableCache {
    line: usize,
    source: Unreadable,
}

/// What is wrong with a document, and where. What serde says may quote it, and with it a secret.
#[derive(Debug, thiserror::Error)]
#[error("{what} at byte {column}")]
pub struct Unreadable {
    what: &'static str,
    column: usize,
}

/// Longest line of the cache: a reply is shorter than 8000 bytes, and each of two failures than 16 KiB.
const MAX_LINE: usize = 64 * 1024;

/// One line per key.
pub(super) fn write(inherited: &[Inherited]) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    // Two passes, so that the buffer never grows: what it grew out of would stay in memory.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    let mut length = 0;
    for inherited in inherited {
        line.clear();
        serde_json::to_writer(&mut *line, &WireInherited::of(inherited))?;
        length += line.len() + 1;
    }
    let mut all = Zeroizing::new(Vec::with_capacity(length));
    for inherited in inherited {
        serde_json::to_writer(&mut *all, &WireInherited::of(inherited))?;
        all.push(b'\n');
    }
    Ok(all)
}

/// What [`write`] wrote. Keys that this daemon could not use are left out.
///
/// # Errors
/// When it was not written by [`write`].
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Inherited>, UnreadableCache> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate();
    let read = lines.map(|(index, line)| {
        let wire: WireInherited = serde_json::from_slice(line)
            .map_err(|error| UnreadableCache { line: index + 1, source: error.into() })?;
        Ok(wire.read())
    });
    read.filter_map(Result::transpose).collect()
}

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Io => "cannot be written",
            Category::Syntax => "no JSON",
            Category::Data => "not what is said here",
            Category::Eof => "cut off",
        };
        Self { what, column: error.column() }
    }
}

impl WireOutcome {
    /// `None` for what says nothing of STS: the other daemon had better see for itself.
    pub(super) fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Ok(credentials) => Some(Self::Issued(WireCredentials::of(credentials))),
            Err(error) => WireFailure::of(error).map(Self::Failed),
        }
    }

    /// `None` where it is of no use any more.
    pub(super) fn read(self, key: &CredentialKey) -> Option<Outcome> {
        match self {
            Self::Issued(wire) => wire.read(key).map(Ok),
            Self::Failed(wire) => Some(Err(wire.read())),
        }
    }
}

impl WireCredentials {
    fn of(credentials: &Credentials) -> Self {
        let secret = |text: &str| Secret(Zeroizing::new(text.to_owned()));
        Self {
            access_key_id: credentials.access_key_id().to_owned(),
            secret_access_key: secret(credentials.expose_secret_access_key()),
            session_token: secret(credentials.expose_session_token()),
            issued_at: unix_millis(credentials.issued_at()),
            expires_at: unix_millis(credentials.expires_at()),
            account_id: credentials.account_id().to_owned(),
            request_id: credentials.request_id().map(str::to_owned),
        }
    }

    fn read(self, key: &CredentialKey) -> Option<Arc<Credentials>> {
        let issued = Issued {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key.0,
            session_token: self.session_token.0,
            expires_at: at_millis(self.expires_at)?,
            assumed_role_arn: None,
            request_id: self.request_id,
        };
        let issued_at = at_millis(self.issued_at)?;
        Credentials::in_account(issued, &key.role, self.account_id, issued_at).ok().map(Arc::new)
    }
}

impl WireFailure {
    fn of(error: &FetchError) -> Option<Self> {
        let (kind, code, message, request_id) = match error {
            FetchError::Denied { code, message, request_id } => {
                (FailureKind::Denied, code, message, request_id)
            }
            FetchError::TokenRefused { code, message, request_id } => {
                (FailureKind::TokenRefused, code, message, request_id)
            }
            FetchError::Throttled { code, message, request_id } => {
                (FailureKind::Throttled, code, message, request_id)
            }
            FetchError::Unreachable { cause } => (FailureKind::Unreachable, cause, cause, &None),
            FetchError::TokenMissing | FetchError::TokenUnusable(_) | FetchError::PodGone => return None,
        };
        let (code, message) = (code.as_ref().to_owned(), message.as_ref().to_owned());
        Some(Self { kind, code, message, request_id: request_id.as_deref().map(str::to_owned) })
    }

    fn read(self) -> FetchError {
        let (code, message) = (self.code.into(), self.message.into());
        let request_id = self.request_id.map(Into::into);
        match self.kind {
            FailureKind::Denied => FetchError::Denied { code, message, request_id },
            FailureKind::TokenRefused => FetchError::TokenRefused { code, message, request_id },
            FailureKind::Throttled => FetchError::Throttled { code, message, request_id },
            FailureKind::Unreachable => FetchError::Unreachable { cause: message },
        }
    }
}

impl WireInherited {
    fn of(inherited: &Inherited) -> Self {
        let remembered = inherited.remembered.as_ref();
        Self {
            key: WireKey::from(&inherited.key),
            is_under_way: inherited.is_under_way,
            credentials: inherited.credentials.as_deref().map(WireCredentials::of),
            is_best: inherited.is_best,
            refresh_at: unix_millis(inherited.refresh_at),
            failure: inherited.failure.as_ref().and_then(WireFailure::of),
            remembered: remembered.and_then(|(error, left)| Some((WireFailure::of(error)?, millis(*left)))),
            failures: inherited.failures,
            refusals: inherited.refusals,
            retry_in: millis(inherited.retry_in),
            due_in: inherited.due_in.map(millis),
        }
    }

    fn read(self) -> Option<Inherited> {
        let key = self.key.read()?;
        Some(Inherited {
            is_under_way: self.is_under_way,
            credentials: self.credentials.and_then(|wire| wire.read(&key)),
            is_best: self.is_best,
            refresh_at: at_millis(self.refresh_at)?,
            failure: self.failure.map(WireFailure::read),
            remembered: self.remembered.map(|(wire, left)| (wire.read(), Duration::from_millis(left))),
            failures: self.failures,
            refusals: self.refusals,
            retry_in: Duration::from_millis(self.retry_in),
            due_in: self.due_in.map(Duration::from_millis),
            key,
        })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Zeroizing::new(String::deserialize(deserializer)?)))
    }
}

fn unix_millis(at: SystemTime) -> u64 {
    millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn at_millis(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests;
