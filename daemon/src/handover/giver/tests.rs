//! A process on the other side that stands still and takes nothing in, on paused time.

use std::{
    io::{ErrorKind, Write},
    os::unix::net::UnixStream as StdStream,
};

use rolecall_process::{drain, time::Clock};
use tokio::time::timeout;

use super::*;
use crate::{
    credentials::{self, Issued, SessionRequest, Sts, StsError},
    handover::cache::tests::key,
    token::{Token, volume::TokenSource},
};

struct NoSts;

impl Sts for NoSts {
    async fn assume_role_with_web_identity(&self, _: &SessionRequest, _: &Token) -> Result<Issued, StsError> {
        Err(StsError::unreachable("there is none"))
    }
}

fn origin() -> Origin {
    Origin { region: None, endpoint: None, fips: false, dual_stack: false, audience: "a".to_owned() }
}

fn giver(dir: &tempfile::TempDir) -> Giver {
    let tokens = TokenSource::new(dir.path().to_owned());
    let config = credentials::Config::default();
    let metrics = credentials::Metrics::default();
    let (credentials, _worker) = CredentialManager::new(config, NoSts, tokens, Clock::system(), metrics);
    let mark = SteppedDown::beside(&dir.path().join("admin.sock"));
    Giver { credentials, listeners: Vec::new(), origin: origin(), mark, metrics: Metrics::default() }
}

/// A meeting in `state` over a connection that is full, and the other end of it.
fn stuck(giver: &Giver, state: State) -> (Meeting<'_>, StdStream) {
    let (mut stream, other) = StdStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    for piece in [&[0; 4096][..], &[0]] {
        while stream.write(piece).map_err(|error| error.kind()) != Err(ErrorKind::WouldBlock) {}
    }
    let (reader, writer) = connection::trusted(UnixStream::from_std(stream).unwrap()).unwrap();
    let until = Instant::now() + STEP_WITHIN;
    (Meeting { giver, reader, writer, state, until, successor: None }, other)
}

/// As after the offer, with something to pass on.
fn with_news(mut meeting: Meeting<'_>) -> Meeting<'_> {
    let (sender, messages) = unbounded_channel();
    let successor = Arc::new(Successor::new(sender));
    let _answer = credentials::Counterpart::fetch(&*successor, &key());
    meeting.successor = Some((successor, messages));
    meeting
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_is_not_taken_in_is_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let giver = giver(&dir);
    let (mut meeting, _other) = stuck(&giver, State::Met);
    let began = Instant::now();
    let hello = Message::Hello {
        protocol: super::super::message::PROTOCOL,
        version: String::new(),
        origin: origin(),
    };
    meeting.happens(Event::Received(&hello)).await;
    assert_eq!(began.elapsed(), STEP_WITHIN);
    assert!(meeting.state == State::Ended && meeting.successor.is_none(), "it serves on");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_not_taken_in_leaves_the_old_daemon_serving() {
    let dir = tempfile::tempdir().unwrap();
    let giver = giver(&dir);
    let (mut meeting, _other) = stuck(&giver, State::Offered);
    meeting.happens(Event::Received(&Message::Commit)).await;
    assert!(meeting.state == State::Ended && !giver.mark.is_set());
}

#[tokio::test(start_paused = true)]
async fn news_that_are_not_taken_in_end_the_meeting_with_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let giver = giver(&dir);
    let (_trigger, drain) = drain::new();
    let (meeting, _other) = stuck(&giver, State::Offered);
    let began = Instant::now();
    let error = with_news(meeting).go_on(&drain).await.err().unwrap();
    assert!(matches!(error, Error::Stuck), "{error}");
    assert_eq!(began.elapsed(), STEP_WITHIN);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_may_serve_already_is_waited_for_however_still_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let giver = giver(&dir);
    let (_trigger, drain) = drain::new();
    let (meeting, _other) = stuck(&giver, State::Released);
    let mut meeting = with_news(meeting);
    assert!(timeout(360 * STEP_WITHIN, meeting.go_on(&drain)).await.is_err());
    assert_eq!(meeting.state, State::Released);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_gone_ends_the_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let giver = giver(&dir);
    let (_trigger, drain) = drain::new();
    let (meeting, other) = stuck(&giver, State::Released);
    let mut meeting = with_news(meeting);
    drop(other);
    assert!(meeting.go_on(&drain).await.is_err() || meeting.state == State::Ended);
}

/// Ends the daemon that helps, and says what the other heard before the connection closed.
async fn heard_until_the_end(exchanges_out: usize) -> Vec<Message> {
    let (stream, other) = UnixStream::pair().unwrap();
    let (reader, writer) = connection::trusted(stream).unwrap();
    let (mut hears, _says) = connection::trusted(other).unwrap();
    let (sender, messages) = unbounded_channel();
    let successor = Successor::new(sender);
    credentials::Counterpart::awaits(&successor, vec![key(); exchanges_out]);
    let (trigger, end) = drain::new();
    trigger.begin();
    let origin = origin();
    let ending = async {
        if 0 < exchanges_out {
            sleep(Duration::from_secs(20)).await;
            credentials::Counterpart::ended(&successor, &key(), None);
        }
    };
    let helping = async {
        help(&successor, reader, writer, messages, &origin, &end).await;
    };
    tokio::join!(ending, helping);
    let mut heard = Vec::new();
    while let Some(message) = hears.receive().await.unwrap() {
        heard.push(message);
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_to_end_says_first_how_its_exchanges_have_ended() {
    let began = Instant::now();
    let heard = heard_until_the_end(1).await;
    assert!(matches!(&heard[..], [Message::Ended { outcome: None, .. }]), "{} messages", heard.len());
    assert_eq!(began.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_without_an_exchange_that_is_out_ends_at_once() {
    let began = Instant::now();
    assert!(heard_until_the_end(0).await.is_empty());
    assert_eq!(began.elapsed(), Duration::ZERO);
}
