//! The steps of the daemon that takes over: a pure function from what happens to what is to be done.

use super::message::Message;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// It has asked.
    Asked,
    /// The offer is there and is looked at.
    Adopting,
    /// It has everything and waits to be told to serve.
    Committed,
    /// The other ended in the middle; is it gone, or does it serve on?
    Wondering,
    /// It serves.
    Serving,
    /// Nothing was taken; what was offered is dropped.
    Ended,
}

/// What happens.
pub(super) enum Event<'a> {
    Received(&'a Message),
    /// Everything that was offered and that is needed is there.
    Adopted,
    /// The connection is over, however, or the other did what it must not.
    Closed,
    /// The other has taken too long for a step.
    GaveUp,
    /// Nobody listens where the other did.
    OtherIsGone,
    /// Somebody does.
    OtherLives,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Adopt,
    Commit,
    /// Accept connections and make exchanges.
    Serve,
    /// See whether the other still lives.
    Look,
    /// Keep for later what the other has told of its exchanges, or wants.
    Note,
    /// Drop everything, and begin anew.
    StartOver,
}

pub(super) fn step(state: State, event: Event<'_>) -> (State, Step) {
    match (state, event) {
        (State::Asked, Event::Received(Message::Offer { .. })) => (State::Adopting, Step::Adopt),
        (State::Adopting, Event::Adopted) => (State::Committed, Step::Commit),
        (State::Committed, Event::Received(Message::Release)) => (State::Serving, Step::Serve),
        (
            State::Adopting | State::Committed | State::Serving,
            Event::Received(Message::Ended { .. } | Message::Want { .. }),
        ) => (state, Step::Note),
        // With the sockets in hand the end of the other is no end: nobody else may be left to serve.
        (State::Adopting | State::Committed, Event::Closed) => (State::Wondering, Step::Look),
        (State::Wondering, Event::OtherIsGone) => (State::Serving, Step::Serve),
        (State::Wondering, Event::OtherLives | Event::GaveUp) => (State::Ended, Step::StartOver),
        (State::Serving, _) => (State::Serving, Step::Wait),
        (State::Ended, _) => (State::Ended, Step::Wait),
        (State::Asked | State::Adopting | State::Committed, Event::GaveUp | Event::Received(_)) => {
            (State::Ended, Step::StartOver)
        }
        (State::Asked, Event::Closed) => (State::Ended, Step::StartOver),
        (
            State::Asked | State::Adopting | State::Committed,
            Event::Adopted | Event::OtherIsGone | Event::OtherLives,
        )
        | (State::Wondering, Event::Received(_) | Event::Adopted | Event::Closed) => (state, Step::Wait),
    }
}
