//! Takes over from the daemon that serves: the edge around the steps of `taking`.

use std::{
    io::{self, ErrorKind},
    net::TcpListener,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rolecall_process::{drain::Tasks, telemetry::chain};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    sync::mpsc::unbounded_channel,
    time::{sleep, timeout},
};

use super::{
    cache::{self, UnreadableCache, WireOutcome},
    connection::{self, Error, Reader, Writer},
    counterpart::Predecessor,
    memory,
    message::{Door, Message, Origin, PROTOCOL, WireKey},
    taking::{Event, State, Step, step},
};
use crate::credentials::{Counterpart, CredentialKey, CredentialManager, Inherited, SessionRequest};

/// Longest time from one step to the next.
const STEP_WITHIN: Duration = Duration::from_secs(10);

/// How long a connection stays open that nobody will accept: a process that dies is gone long before.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// How long the other may wait for credentials here before it has to ask again: as long as a request waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What came of asking.
pub enum Asked {
    /// Nobody serves.
    Nobody,
    /// Somebody serves and does not hand over.
    NotGiven(NotGiven),
    Offered(Box<Offer>),
}

/// Why nothing was taken. It may be asked for again.
#[derive(Debug, thiserror::Error)]
pub enum NotGiven {
    #[error("the daemon that serves refuses: {0}")]
    Refused(String),
    #[error("the daemon that serves has gone on by itself")]
    Withdrawn,
    #[error("the daemon that serves gives no answer within {STEP_WITHIN:?}")]
    Silent,
    #[error(transparent)]
    Connection(#[from] Error),
    #[error(transparent)]
    Cache(#[from] UnreadableCache),
}

/// All that the other daemon has. It serves on until [`Offer::accept`] is done; dropping this changes nothing for it.
pub struct Offer {
    /// Its listening sockets.
    pub listeners: Vec<(Door, TcpListener)>,
    /// Its version.
    pub version: String,
    inherited: Vec<Inherited>,
    predecessor: Arc<Predecessor>,
    reader: Reader,
    writer: Writer,
    state: State,
    wants: Vec<(u64, WireKey)>,
}

/// What was taken: it is ours to serve.
pub struct Estate {
    pub inherited: Vec<Inherited>,
    pub predecessor: Arc<dyn Counterpart>,
    pub link: Link,
}

/// The connection to the daemon before, which has exchanges and requests to bring to their end.
pub struct Link {
    reader: Reader,
    writer: Writer,
    predecessor: Arc<Predecessor>,
    wants: Vec<(u64, WireKey)>,
}

/// Whether a daemon listens at `path`.
pub async fn is_somebody_there(path: &Path) -> bool {
    UnixStream::connect(path).await.is_ok()
}

/// Asks whoever serves at `path` to hand over.
pub async fn ask(path: &Path, origin: &Origin) -> Asked {
    let stream = match connect(path).await {
        Ok(Some(stream)) => stream,
        Ok(None) => return Asked::Nobody,
        Err(error) => return Asked::NotGiven(Error::from(error).into()),
    };
    match timeout(STEP_WITHIN, hear_offer(stream, origin)).await {
        Ok(Ok(offer)) => Asked::Offered(Box::new(offer)),
        Ok(Err(why)) => Asked::NotGiven(why),
        Err(_) => Asked::NotGiven(NotGiven::Silent),
    }
}

/// `None` where nobody listens.
async fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the daemon that has closed a connection lives.
///
/// A process that dies closes one file after another: for a moment it can still be connected to although nobody will
/// accept that, and the connection ends when the listening socket does. One that lives waits for what is said.
pub(super) async fn lives_on(path: &Path) -> bool {
    let is_gone = async {
        while let Ok(Some(mut stream)) = connect(path).await {
            let _ = stream.read(&mut [0]).await;
        }
        connect(path).await.is_ok_and(|stream| stream.is_none())
    };
    !timeout(LOOK_FOR, is_gone).await.unwrap_or(false)
}

async fn hear_offer(stream: UnixStream, origin: &Origin) -> Result<Offer, NotGiven> {
    let (mut reader, mut writer) = connection::trusted(stream)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    writer.send(&Message::Hello { protocol: PROTOCOL, version, origin: origin.clone() }, &[]).await?;
    let message = reader.receive().await?.ok_or(NotGiven::Withdrawn)?;
    let (state, step) = step(State::Asked, Event::Received(&message));
    match (step, message) {
        (Step::Adopt, Message::Offer { version, doors, has_cache }) => {
            let mut descriptors = reader.descriptors(doors.len() + usize::from(has_cache))?;
            let inherited = match has_cache.then(|| descriptors.pop()).flatten() {
                Some(cache) => cache::read(&memory::read(cache).map_err(Error::from)?)?,
                None => Vec::new(),
            };
            let listeners: Vec<(Door, TcpListener)> =
                doors.into_iter().zip(descriptors.into_iter().map(TcpListener::from)).collect();
            for (_, listener) in &listeners {
                listener.set_nonblocking(true).map_err(Error::from)?;
            }
            let predecessor = Arc::new(Predecessor::new(&inherited));
            let wants = Vec::new();
            Ok(Offer { listeners, version, inherited, predecessor, reader, writer, state, wants })
        }
        (_, Message::Refuse { reason }) => Err(NotGiven::Refused(reason)),
        _other_step => Err(NotGiven::Withdrawn),
    }
}

impl Offer {
    /// Tells the other that everything is here, and waits until it is ours to serve. `path` is where the other
    /// listens as long as it lives and serves.
    ///
    /// # Errors
    /// When the other serves on. What it offered is dropped.
    pub async fn accept(mut self, path: &Path) -> Result<Estate, NotGiven> {
        let mut step = self.step(Event::Adopted);
        loop {
            let received = match step {
                Step::Serve => return Ok(self.estate()),
                Step::StartOver => return Err(NotGiven::Withdrawn),
                Step::Commit => match timeout(STEP_WITHIN, self.writer.send(&Message::Commit, &[])).await {
                    Err(_) => Err(Event::GaveUp),
                    Ok(Ok(())) => self.receive().await,
                    Ok(Err(_)) => Err(Event::Closed),
                },
                Step::Look => Err(if lives_on(path).await { Event::OtherLives } else { Event::OtherIsGone }),
                Step::Wait | Step::Adopt | Step::Note => self.receive().await,
            };
            step = match received {
                Err(event) => self.step(event),
                Ok(message) => {
                    let step = self.step(Event::Received(&message));
                    if step == Step::Note {
                        self.note(message);
                    }
                    step
                }
            };
        }
    }

    fn step(&mut self, event: Event<'_>) -> Step {
        let (state, step) = step(self.state, event);
        self.state = state;
        step
    }

    async fn receive(&mut self) -> Result<Message, Event<'static>> {
        match timeout(STEP_WITHIN, self.reader.receive()).await {
            Err(_) => Err(Event::GaveUp),
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None) | Err(_)) => Err(Event::Closed),
        }
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::Ended { key, outcome } => self.predecessor.ended(&key, outcome),
            Message::Want { id, key } => self.wants.push((id, key)),
            Message::Hello { .. }
            | Message::Refuse { .. }
            | Message::Offer { .. }
            | Message::Commit
            | Message::Release
            | Message::Serving
            | Message::Given { .. } => {}
        }
    }

    fn estate(self) -> Estate {
        let Self { inherited, predecessor, reader, writer, wants, .. } = self;
        let link = Link { reader, writer, predecessor: predecessor.clone(), wants };
        Estate { inherited, predecessor, link }
    }
}

impl Link {
    /// Tells the other that connections are accepted here, which is to be so by now; then hears of its exchanges,
    /// and answers what it wants, until it ends. `wanted` makes the request for a key that is good here as well.
    pub async fn run(
        self,
        credentials: CredentialManager,
        wanted: impl Fn(&CredentialKey) -> Option<SessionRequest>,
        tasks: Tasks,
    ) {
        let Self { mut reader, mut writer, predecessor, wants } = self;
        // Where the other is gone, reading says so.
        let _ = writer.send(&Message::Serving, &[]).await;
        let (answer, mut answers) = unbounded_channel();
        let want = |id, key: &WireKey| {
            let request = key.read().and_then(|key| wanted(&key).filter(|request| request.key == key));
            let (credentials, answer) = (credentials.clone(), answer.clone());
            tasks.spawn("hand-over request", async move {
                let outcome = match request {
                    Some(request) => outcome_of(&credentials, request).await,
                    None => None,
                };
                // The other may have ended meanwhile.
                let _ = answer.send(Message::Given { id, outcome });
            });
        };
        for (id, key) in wants {
            want(id, &key);
        }
        let receive = async {
            loop {
                match reader.receive().await {
                    Ok(Some(Message::Ended { key, outcome })) => predecessor.ended(&key, outcome),
                    Ok(Some(Message::Want { id, key })) => want(id, &key),
                    Ok(None) => return,
                    Ok(Some(_)) => {
                        tracing::warn!("the daemon before this one says what it must not");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "lost the daemon before this one");
                        return;
                    }
                }
            }
        };
        let send = async {
            while let Some(message) = answers.recv().await {
                if writer.send(&message, &[]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = send => {}
        }
        predecessor.is_gone();
        tracing::info!("the daemon before this one is gone");
    }
}

async fn outcome_of(credentials: &CredentialManager, request: SessionRequest) -> Option<WireOutcome> {
    let mut pending = credentials.request(request).ok()?;
    tokio::select! {
        outcome = pending.outcome() => WireOutcome::of(&outcome),
        () = sleep(ANSWER_WITHIN) => None,
    }
}
