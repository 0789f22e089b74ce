//! Hands over to the next daemon that asks: the edge around the steps of `giving`.

use std::{
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use rolecall_process::{
    drain::Watch,
    socket::{self, SocketFile},
    telemetry::chain,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    cache,
    connection::{self, Error, Reader, Writer},
    counterpart::Successor,
    giving::{Event, State, Step, step},
    memory,
    message::{Door, Message, Origin},
    metrics::{Metrics, Result as Counted},
    stepped_down::SteppedDown,
    taker::lives_on,
};
use crate::credentials::CredentialManager;

/// Longest time from one step of the other to its next. While it lasts, nothing is refreshed here.
const STEP_WITHIN: Duration = Duration::from_secs(10);

/// Pause after a failure to accept, which is about this process and would come again at once.
const BACK_OFF: Duration = Duration::from_millis(200);

/// The daemon that serves, as far as there is something to hand over.
pub struct Giver {
    pub credentials: CredentialManager,
    pub listeners: Vec<(Door, TcpListener)>,
    pub origin: Origin,
    /// Set from the moment that the other may serve.
    pub mark: SteppedDown,
    pub metrics: Metrics,
}

/// One connection with a daemon that would take over.
struct Meeting<'a> {
    giver: &'a Giver,
    reader: Reader,
    writer: Writer,
    state: State,
    /// When the other has taken too long.
    until: Instant,
    /// From the offer on.
    successor: Option<(Arc<Successor>, UnboundedReceiver<Message>)>,
}

impl Giver {
    /// Waits at `listener` for a daemon to take over, until `drain`; then calls `on_handed_over`, which must see to it
    /// that nothing is accepted any more, and helps the other until it is gone, or until after `end` it has been told of
    /// every exchange that it waits for.
    pub async fn run(
        self,
        mut listener: UnixListener,
        mut file: SocketFile,
        drain: Watch,
        end: Watch,
        on_handed_over: impl FnOnce(),
    ) {
        let meeting = loop {
            let accepted = tokio::select! {
                () = drain.begun() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match self.meet(stream, &drain).await {
                    Some(meeting) => break meeting,
                    None => {
                        if let Some(anew) = listen_anew(&file).await {
                            (listener, file) = anew;
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "accept a daemon that would take over");
                    sleep(BACK_OFF).await;
                }
            }
        };
        on_handed_over();
        file.leave();
        drop(listener);
        self.metrics.gave(Counted::Done);
        let Meeting { reader, writer, successor, .. } = meeting;
        // The sockets are the other's alone now: were they kept, nobody could bind them after it.
        drop(self.listeners);
        tracing::info!("handed over to the next daemon; what is under way is finished here");
        if let Some((successor, messages)) = successor {
            help(&successor, reader, writer, messages, &self.origin, &end).await;
        }
    }

    /// Goes through the steps with one other daemon, up to its serving.
    async fn meet(&self, stream: UnixStream, drain: &Watch) -> Option<Meeting<'_>> {
        let (reader, writer) = match connection::trusted(stream) {
            Ok(halves) => halves,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "refuse to hand over");
                self.metrics.gave(Counted::Refused);
                return None;
            }
        };
        let until = Instant::now() + STEP_WITHIN;
        let mut meeting = Meeting { giver: self, reader, writer, state: State::Met, until, successor: None };
        while meeting.state != State::Retired {
            if let Err(error) = meeting.go_on(drain).await {
                tracing::warn!(error = %chain(&error), "cannot hand over; serving on");
                meeting.happens(Event::Closed).await;
            }
            if meeting.state == State::Ended {
                return None;
            }
        }
        Some(meeting)
    }
}

impl Meeting<'_> {
    /// Waits for what happens next, and does what it asks for.
    async fn go_on(&mut self, drain: &Watch) -> Result<(), Error> {
        let passed_on = async {
            match &mut self.successor {
                Some((_, messages)) => messages.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = self.reader.receive() => match received? {
                Some(message) => self.happens(Event::Received(&message)).await,
                None => self.happens(Event::Closed).await,
            },
            Some(message) = passed_on => self.send(&message, &[]).await?,
            () = sleep_until(self.until), if self.state != State::Released => {
                tracing::warn!("the daemon that would take over does not go on; serving on");
                self.happens(Event::GaveUp).await;
            }
            // Later on the other goes on better with what it asked for.
            () = drain.begun(), if self.state == State::Met => self.happens(Event::GaveUp).await,
        }
        Ok(())
    }

    async fn happens(&mut self, event: Event<'_>) {
        let mut event = Some(event);
        // Doing a step may bring about the next event.
        while let Some(happened) = event.take() {
            let (state, step) = step(self.state, happened, &self.giver.origin);
            self.state = state;
            self.until = Instant::now() + STEP_WITHIN;
            event = match step {
                Step::Wait | Step::End | Step::Retire | Step::TakeGiven => None,
                Step::Refuse(refusal) => {
                    tracing::warn!(reason = %refusal, "refuse to hand over");
                    self.giver.metrics.gave(Counted::Refused);
                    let _ = self.send(&Message::Refuse { reason: refusal.to_string() }, &[]).await;
                    None
                }
                Step::Offer { has_cache } => self.offer(has_cache).await.err().map(|error| {
                    tracing::warn!(error = %chain(&error), "cannot offer to hand over");
                    Event::Closed
                }),
                Step::Release => {
                    // Were it set later, a crash in between would let this pod take over back.
                    if let Err(error) = self.giver.mark.set() {
                        tracing::warn!(%error, "mark this pod as one that has handed over");
                    }
                    Some(match self.send(&Message::Release, &[]).await {
                        Ok(()) => Event::Sent,
                        Err(_) => Event::Closed,
                    })
                }
                Step::ServeOn => {
                    if let Err(error) = self.giver.mark.clear() {
                        tracing::warn!(%error, "take away the mark of a hand-over that did not come about");
                    }
                    self.giver.credentials.thaw();
                    if let Some((successor, _)) = self.successor.take() {
                        successor.is_gone();
                    }
                    self.giver.metrics.gave(Counted::Failed);
                    tracing::warn!("the hand-over did not come about; serving on");
                    None
                }
            };
        }
    }

    async fn offer(&mut self, has_cache: bool) -> Result<(), Error> {
        let (sender, messages) = unbounded_channel();
        let successor = Arc::new(Successor::new(sender));
        self.successor = Some((successor.clone(), messages));
        let inherited = self.giver.credentials.freeze(successor);
        tracing::info!(keys = inherited.len(), has_cache, "offer to hand over");
        let cache: Option<OwnedFd> = if has_cache {
            let written = cache::write(&inherited).map_err(|error| Error::Malformed(error.into()))?;
            Some(memory::sealed(&written)?)
        } else {
            None
        };
        let doors = self.giver.listeners.iter().map(|(door, _)| *door).collect();
        let listeners = self.giver.listeners.iter().map(|(_, listener)| listener.as_fd());
        let descriptors: Vec<BorrowedFd<'_>> = listeners.chain(cache.as_ref().map(AsFd::as_fd)).collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.send(&Message::Offer { version, doors, has_cache }, &descriptors).await
    }

    /// Sends `message` within the time of this step. What was cut off half way is no message to the other.
    async fn send(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let sent = self.writer.send(message, descriptors);
        match self.state {
            // It may make exchanges by now, however slow it is: only its end is an end.
            State::Released => sent.await,
            State::Met | State::Offered | State::Releasing | State::Retired | State::Ended => {
                timeout_at(self.until, sent).await.unwrap_or(Err(Error::Stuck))
            }
        }
    }
}

/// Listens again at the place of `file`, where a daemon that died just before it served had put its own socket.
async fn listen_anew(file: &SocketFile) -> Option<(UnixListener, SocketFile)> {
    if file.is_in_place() || lives_on(file.path()).await {
        return None;
    }
    let listening = socket::replace(file.path())
        .and_then(|(listener, file)| Ok((UnixListener::from_std(listener)?, file)));
    listening.inspect_err(|error| tracing::error!(%error, "the next daemon will start cold")).ok()
}

/// Tells the daemon that serves now how exchanges of ours end, and asks it for what is still waited for here.
async fn help(
    successor: &Successor,
    mut reader: Reader,
    mut writer: Writer,
    mut messages: UnboundedReceiver<Message>,
    origin: &Origin,
    end: &Watch,
) {
    let receive = async {
        while let Ok(Some(message)) = reader.receive().await {
            match (step(State::Retired, Event::Received(&message), origin).1, message) {
                (Step::TakeGiven, Message::Given { id, outcome }) => successor.given(id, outcome),
                _other_step => return,
            }
        }
    };
    let told_all = async {
        end.begun().await;
        // Were they cut off, it would have to make them again, and pods would wait for STS twice.
        tracing::info!(
            exchanges = successor.awaited(),
            "end with the exchanges that the next daemon waits for"
        );
        successor.is_told_all().await;
    };
    let send = async {
        let mut told_all = pin!(told_all);
        loop {
            let message = tokio::select! {
                // What is to be said is said before the end.
                biased;
                message = messages.recv() => message,
                () = &mut told_all => None,
            };
            let Some(message) = message else { return };
            if let Err(error) = writer.send(&message, &[]).await {
                tracing::debug!(error = %chain(&error), "the daemon that took over is gone");
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
    successor.is_gone();
}

#[cfg(test)]
mod tests;
