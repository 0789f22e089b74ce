//! The slow answer: begun in time, kept alive with white space, ended by the credentials or by a reset.
//!
//! Many SDKs give up after 1.0 s of silence, and few retry a 503 for long. An answer that has begun defeats every
//! timeout between two reads, and leading white space is no part of a JSON document (RFC 8259, section 2).
//! Measured with 20 clients and credentials that took 10 s: 18 succeeded so, 8 in silence, 1 with a 503.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// Guzzle (PHP) retries when its own timer of 1.0 s fires and fails for good when it is reset before; so nothing
/// younger is reset.
const RESET_NOT_BEFORE: Duration = Duration::from_millis(1100);

/// When a slow answer is begun, fed and given up; both ends count from the request's arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Until then a request is held in silence: what is decided by then has its true status.
    pub hold: Duration,
    /// Time between two spaces.
    pub interval: Duration,
    /// When waiting for credentials ends.
    pub give_up_after: Duration,
    pub mode: Mode,
}

/// What follows the hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Begin the answer and drip white space.
    Drip,
    /// Go on in silence.
    Hold,
}

/// The body of every answer.
pub enum ReplyBody {
    Full(Option<Bytes>),
    Drip(Drips),
}

/// Spaces, and at last the document.
pub type Drips = Pin<Box<dyn Stream<Item = Result<Bytes, GivenUp>> + Send>>;

/// A begun answer that will not be finished; the connection is reset.
#[derive(Debug, thiserror::Error)]
#[error("give up an answer that was begun")]
pub struct GivenUp;

/// Says that a connection is to end with a TCP reset. Cloning is cheap.
///
/// A plain close would look like a complete answer to some clients, and the JavaScript SDK v2 waits for ever on
/// one.
#[derive(Debug, Clone, Default)]
pub struct ResetSwitch(Arc<AtomicBool>);

/// Drips spaces until `outcome` is there. `Err` from it, or its absence at the end of the time, resets the
/// connection; `give_up` is called in the latter case.
pub fn drip(
    outcome: impl Future<Output = Result<Bytes, GivenUp>> + Send + 'static,
    arrived: Instant,
    timing: Timing,
    reset: ResetSwitch,
) -> ReplyBody {
    // From now on whatever ends the connection in the middle, a drain's deadline too, must look like a reset.
    reset.press();
    let state = Drip { outcome: Box::pin(outcome), arrived, next_space: Instant::now(), reset };
    let stream = stream::unfold(Some(state), move |state| async move {
        let mut state = state?;
        tokio::select! {
            biased;
            outcome = &mut state.outcome => match outcome {
                Ok(document) => {
                    state.reset.release();
                    Some((Ok(document), None))
                }
                Err(given_up) => Some((Err(state.reset(given_up).await), None)),
            },
            () = until(state.next_space) => {
                state.next_space += timing.interval;
                Some((Ok(Bytes::from_static(b" ")), Some(state)))
            }
        }
    });
    ReplyBody::Drip(Box::pin(stream))
}

/// Waits until `at`; where that has come, without the millisecond to which the timer rounds.
async fn until(at: Instant) {
    if Instant::now() < at {
        sleep_until(at).await;
    }
}

struct Drip<O> {
    outcome: Pin<Box<O>>,
    arrived: Instant,
    next_space: Instant,
    reset: ResetSwitch,
}

impl<O> Drip<O> {
    async fn reset(self, given_up: GivenUp) -> GivenUp {
        sleep_until(self.arrived + RESET_NOT_BEFORE).await;
        given_up
    }
}

impl ResetSwitch {
    pub fn is_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on.
    pub fn press(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn release(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Drip(stream) => {
                stream.as_mut().poll_next(context).map(|item| item.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Drip(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::StreamExt;

    use super::*;

    const TIMING: Timing = Timing {
        hold: Duration::from_millis(500),
        interval: Duration::from_millis(400),
        give_up_after: Duration::from_secs(20),
        mode: Mode::Drip,
    };

    /// What comes, with the milliseconds since the request arrived; the drip begins after the hold.
    async fn collect(
        outcome: impl Future<Output = Result<Bytes, GivenUp>> + Send + 'static,
        take: usize,
    ) -> (Vec<(u128, Option<String>)>, bool) {
        let arrived = Instant::now();
        tokio::time::sleep(TIMING.hold).await;
        let reset = ResetSwitch::default();
        let ReplyBody::Drip(stream) = drip(outcome, arrived, TIMING, reset.clone()) else {
            panic!("no drip")
        };
        let items = stream
            .take(take)
            .map(|item| {
                (arrived.elapsed().as_millis(), item.ok().map(|b| String::from_utf8(b.to_vec()).unwrap()))
            })
            .collect()
            .await;
        (items, reset.is_pressed())
    }

    fn space(at: u128) -> (u128, Option<String>) {
        (at, Some(" ".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_space_at_once_and_one_every_interval() {
        let (items, reset) = collect(pending(), 4).await;
        assert_eq!(items, [space(500), space(900), space(1300), space(1700)]);
        assert!(reset, "what cuts it off now resets it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_document_ends_it_at_once() {
        let outcome = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(Bytes::from_static(b"{}"))
        };
        let (items, reset) = collect(outcome, 9).await;
        assert_eq!(items, [space(500), space(900), (1000, Some("{}".into()))]);
        assert!(!reset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_request_is_not_reset_but_kept_in_silence() {
        let outcome = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(GivenUp)
        };
        let (items, reset) = collect(outcome, 9).await;
        assert_eq!(items, [space(500), (1100, None)], "the space due at 900 is not sent");
        assert!(reset);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_request_is_reset_at_once() {
        let outcome = async {
            tokio::time::sleep(Duration::from_millis(900)).await;
            Err(GivenUp)
        };
        let (items, reset) = collect(outcome, 9).await;
        assert_eq!(items, [space(500), space(900), space(1300), (1400, None)]);
        assert!(reset);
    }
}
