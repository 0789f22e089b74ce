//! The record of the calls, in the order of their arrival.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::query::Query;
use crate::{clock, ids};

/// One request to STS, as it came.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it had arrived with its whole body.
    pub at: SystemTime,
    /// `x-amzn-RequestId` of the answer.
    pub request_id: String,
    /// `Action`, empty if there was none.
    pub action: String,
    /// `RoleArn`.
    pub role_arn: Option<String>,
    /// `RoleSessionName`.
    pub session_name: Option<String>,
    /// `DurationSeconds`, if it was a number.
    pub duration: Option<Duration>,
    /// What the web identity token claims as its subject, verified or not.
    pub subject: Option<String>,
    /// When the web identity token claims to have been issued, in seconds since 1970, verified or not.
    pub token_issued_at: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No answer yet.
    Pending,
    /// Answered: with the credentials that have this id, or to the caller who has them.
    Granted {
        /// The access key id.
        access_key_id: String,
    },
    /// Answered with an error.
    Refused {
        /// AWS's code for it.
        code: &'static str,
    },
    /// Answered with something that is no answer of STS.
    Garbled,
    /// The server broke the connection.
    HungUp,
    /// The client broke the connection before it was answered.
    Abandoned,
}

#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    /// Number of changes, so that those who wait look again.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Book {
    calls: Vec<Call>,
    in_flight: usize,
    peak_in_flight: usize,
}

/// A call under way. It ends when it is told to, or as abandoned when it is dropped.
pub(super) struct Entry {
    ledger: Ledger,
    index: usize,
    request_id: String,
}

impl Outcome {
    /// Whether the call got what it asked for.
    pub fn is_granted(&self) -> bool {
        matches!(self, Self::Granted { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Granted { access_key_id } => write!(f, "granted {access_key_id}"),
            Self::Refused { code } => write!(f, "refused {code}"),
            Self::Garbled => f.write_str("garbled"),
            Self::HungUp => f.write_str("hung up"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

impl Ledger {
    pub(super) fn arrived(&self, query: &Query) -> Entry {
        let request_id = ids::uuid();
        let call = Call {
            at: clock::now(),
            request_id: request_id.clone(),
            action: query.get("Action").unwrap_or_default().to_owned(),
            role_arn: query.role_arn().map(str::to_owned),
            session_name: query.get("RoleSessionName").map(str::to_owned),
            duration: query
                .get("DurationSeconds")
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            subject: query.claimed_subject(),
            token_issued_at: query.claimed_issue(),
            outcome: Outcome::Pending,
        };
        let index = {
            let mut book = self.book();
            book.calls.push(call);
            book.in_flight += 1;
            book.peak_in_flight = book.peak_in_flight.max(book.in_flight);
            book.calls.len() - 1
        };
        self.changed();
        Entry { ledger: self.clone(), index, request_id }
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.book().calls.clone()
    }

    pub(super) fn look<T>(&self, at: impl FnOnce(&[Call]) -> T) -> T {
        at(&self.book().calls)
    }

    pub(super) fn count(&self) -> usize {
        self.book().calls.len()
    }

    pub(super) fn peak_in_flight(&self) -> usize {
        self.book().peak_in_flight
    }

    /// Waits until `condition` holds; it is asked again after each change of the record.
    pub(super) async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let mut changes = self.0.changes.subscribe();
        while !condition() {
            changes.changed().await.expect("the sender lives in self");
        }
    }

    fn end(&self, index: usize, outcome: Outcome) {
        {
            let mut book = self.book();
            let call = &mut book.calls[index];
            if call.outcome != Outcome::Pending {
                return;
            }
            call.outcome = outcome;
            book.in_flight -= 1;
        }
        self.changed();
    }

    fn changed(&self) {
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.ledger.end(self.index, outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ended(Outcome::Abandoned);
    }
}
