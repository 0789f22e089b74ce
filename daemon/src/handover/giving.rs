//! The steps of the daemon that serves and hands over: a pure function from what happens to what is to be done.

use super::message::{Message, Origin, PROTOCOL};

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// Somebody has connected.
    Met,
    /// The sockets and the cache are on their way; no exchange is begun any more. It serves on.
    Offered,
    /// The other has it all, and is about to be told that it serves.
    Releasing,
    /// The other was told to serve, and has not said yet that it does. Both accept; no exchange is begun here.
    Released,
    /// The other serves.
    Retired,
    /// The connection is over.
    Ended,
}

/// What happens.
pub(super) enum Event<'a> {
    Received(&'a Message),
    /// The last message has left.
    Sent,
    /// The connection is over, however.
    Closed,
    /// The other has taken too long for a step, or this daemon is to end.
    GaveUp,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// Say why not, and end the connection.
    Refuse(Refusal),
    /// Begin no exchange any more, and offer.
    Offer {
        has_cache: bool,
    },
    /// Tell the other to serve, and say whether that has left.
    Release,
    /// Accept no connection any more.
    Retire,
    /// Take the answer to what was wanted.
    TakeGiven,
    /// Begin exchanges again, and end the connection.
    ServeOn,
    /// End the connection; nothing has changed.
    End,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The two daemons would not understand each other.
    Protocol { theirs: u32 },
}

pub(super) fn step(state: State, event: Event<'_>, origin: &Origin) -> (State, Step) {
    match (state, event) {
        (State::Met, Event::Received(Message::Hello { protocol, .. })) if *protocol != PROTOCOL => {
            (State::Ended, Step::Refuse(Refusal::Protocol { theirs: *protocol }))
        }
        (State::Met, Event::Received(Message::Hello { origin: theirs, .. })) => {
            (State::Offered, Step::Offer { has_cache: theirs == origin })
        }
        (State::Offered, Event::Received(Message::Commit)) => (State::Releasing, Step::Release),
        (State::Releasing, Event::Sent) => (State::Released, Step::Wait),
        // It could die or stop before it does what it was told: until it says so, connections are accepted here too.
        (State::Released, Event::Received(Message::Serving)) => (State::Retired, Step::Retire),
        // It may make exchanges by now, however slow it is.
        (State::Released, Event::GaveUp) => (State::Released, Step::Wait),
        (State::Retired, Event::Received(Message::Given { .. })) => (State::Retired, Step::TakeGiven),
        (State::Retired, Event::Closed | Event::GaveUp | Event::Received(_)) => (State::Ended, Step::End),
        (State::Met, Event::Received(_) | Event::Closed | Event::GaveUp) => (State::Ended, Step::End),
        (State::Offered | State::Releasing, Event::Received(_) | Event::Closed | Event::GaveUp)
        | (State::Released, Event::Received(_) | Event::Closed) => (State::Ended, Step::ServeOn),
        (State::Met | State::Offered | State::Released | State::Retired, Event::Sent) => (state, Step::Wait),
        (State::Ended, _) => (State::Ended, Step::Wait),
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Protocol { theirs } => write!(
                f,
                "the hand-over's version is {PROTOCOL} in the daemon that serves and {theirs} in the new one; the new one \
                 starts cold once the old one has ended"
            ),
        }
    }
}
