//! How this daemon comes to serve its node: alone, or from the daemon that serves.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rolecall_process::{
    readiness::Condition,
    socket::{self, SocketFile},
    telemetry::chain,
};
use tokio::{
    net::UnixListener,
    time::{Instant, sleep, timeout},
};

use super::{
    StartError,
    sockets::{Sockets, Wanted, is_taken},
};
use crate::{
    config::Config,
    handover::{self, Asked, Estate, NotGiven, Origin, SteppedDown, is_somebody_there},
    pods::PodTable,
    token::verify::Verifier,
};

/// How long a daemon that is alone on its node waits for the list of its pods before it listens.
///
/// Whoever connects before the list is there waits in silence, which costs it its read timeout, of a second with most
/// SDKs, where a refused connection is tried again. Without the API server there is no list; then requests are to be told so.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// Pause before the sockets are asked for or bound again.
const RETRY_IN: Duration = Duration::from_millis(200);

/// Longest pause while another daemon serves: asking costs it the exchanges that it does not begin meanwhile, and
/// lines of its log.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often it is looked whether the other daemon is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the reason for not serving yet is logged while it stays the same.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What it takes to get the sockets.
pub(super) struct Takeover {
    pub(super) wanted: Wanted,
    /// Where daemons of a node meet; `None` for a daemon that knows of no other.
    pub(super) socket: Option<PathBuf>,
    pub(super) origin: Origin,
    pub(super) mark: SteppedDown,
    pub(super) metrics: handover::Metrics,
}

/// What was said last of why it does not serve yet, and when.
#[derive(Default)]
struct Said(Option<(String, Instant)>);

impl Takeover {
    /// Lets the pods of the node be known before it listens, where no other daemon is in the way; not for long.
    pub(super) async fn pods_if_alone(&self, table: &PodTable) {
        let is_alone = match &self.socket {
            Some(path) => !is_somebody_there(path).await,
            None => true,
        };
        if is_alone {
            known(table).await;
        }
    }

    /// The sockets, bound at once, where no other daemon is in the way; `None` where one is.
    pub(super) async fn sockets_if_alone(&self) -> Result<Option<Sockets>, StartError> {
        let Some(path) = &self.socket else { return Sockets::bind(&self.wanted).map(Some) };
        if is_somebody_there(path).await {
            return Ok(None);
        }
        match Sockets::bind(&self.wanted) {
            Ok(sockets) => Ok(Some(sockets)),
            Err(error) if is_taken(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over from the daemon that serves once the pods of the node are known and the cluster was asked for its
    /// keys, or binds once there is none.
    pub(super) async fn run(
        self,
        table: &PodTable,
        verifier: &Verifier,
        serving: &Condition,
    ) -> Result<(Sockets, Option<Estate>), StartError> {
        let Some(path) = &self.socket else { return Ok((Sockets::bind(&self.wanted)?, None)) };
        if self.mark.is_set() && is_somebody_there(path).await {
            serving.broken("this pod has handed over; it stands by for the daemon that took over");
            tracing::warn!(
                "this pod has handed over to another, which serves; standing by until that is gone"
            );
            while is_somebody_there(path).await {
                sleep(LOOK_EVERY).await;
            }
        }
        let mut said = Said::default();
        let attempt = async || {
            serving.broken("the daemon before it serves until the pods of the node are known and the cluster was asked for its keys");
            while is_somebody_there(path).await {
                tokio::select! {
                    ((), ()) = async { tokio::join!(synced(table), verifier.keys_asked_for()) } => break,
                    () = sleep(LOOK_EVERY) => {}
                }
            }
            self.attempt(path, table).await
        };
        let on_failure = |why: String| {
            serving.broken(&why);
            said.say(why);
        };
        let got = until_done(attempt, async || is_somebody_there(path).await, on_failure).await?;
        serving.restored();
        Ok(got)
    }

    /// The sockets, or why they are not to be had yet.
    async fn attempt(
        &self,
        path: &Path,
        table: &PodTable,
    ) -> Result<Result<(Sockets, Option<Estate>), String>, StartError> {
        let mut offer = match handover::ask(path, &self.origin).await {
            Asked::Offered(offer) => offer,
            Asked::NotGiven(why) => return Ok(Err(self.not_given(&why))),
            Asked::Nobody => {
                known(table).await;
                return match Sockets::bind(&self.wanted) {
                    Ok(sockets) => Ok(Ok((sockets, None))),
                    Err(error) if is_taken(&error) => Ok(Err(format!(
                        "{}; if it is a daemon that does not hand over at --handover-socket, this one serves once that \
                         has ended",
                        chain(&error)
                    ))),
                    Err(error) => Err(error),
                };
            }
        };
        let sockets = match Sockets::take(&self.wanted, std::mem::take(&mut offer.listeners)) {
            Ok(sockets) => sockets,
            Err(error) => {
                self.metrics.took(handover::Result::Failed);
                return Ok(Err(chain(&error).to_string()));
            }
        };
        let version = offer.version.clone();
        match offer.accept(path).await {
            Ok(estate) => {
                self.metrics.took(handover::Result::Done);
                tracing::info!(version, keys = estate.inherited.len(), "took over from the daemon before");
                Ok(Ok((sockets, Some(estate))))
            }
            Err(why) => Ok(Err(self.not_given(&why))),
        }
    }

    fn not_given(&self, why: &NotGiven) -> String {
        let result = match why {
            NotGiven::Refused(_) => handover::Result::Refused,
            NotGiven::Withdrawn | NotGiven::Silent | NotGiven::Connection(_) | NotGiven::Cache(_) => {
                handover::Result::Failed
            }
        };
        self.metrics.took(result);
        chain(why).to_string()
    }
}

/// Calls `attempt` until it is done or fails for good, ever more rarely while `is_somebody_there`, and hands each
/// reason why not to `on_failure`.
async fn until_done<T, E>(
    attempt: impl AsyncFn() -> Result<Result<T, String>, E>,
    is_somebody_there: impl AsyncFn() -> bool,
    mut on_failure: impl FnMut(String),
) -> Result<T, E> {
    let mut pause = RETRY_IN;
    loop {
        match attempt().await? {
            Ok(done) => return Ok(done),
            Err(why) => on_failure(why),
        }
        let until = Instant::now() + pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
        sleep(RETRY_IN).await;
        while Instant::now() < until && is_somebody_there().await {
            sleep(RETRY_IN).await;
        }
    }
}

impl Said {
    fn say(&mut self, why: String) {
        let is_new = self.0.as_ref().is_none_or(|(said, at)| *said != why || LOG_EVERY <= at.elapsed());
        if is_new {
            tracing::warn!(reason = why, "cannot take over yet; trying on");
            self.0 = Some((why, Instant::now()));
        }
    }
}

/// Completes once the pods of the node are known, or have been waited for long enough.
async fn known(table: &PodTable) {
    let _ = timeout(KNOWN_WITHIN, synced(table)).await;
}

/// Completes once the pods of the node are known.
pub(super) async fn synced(table: &PodTable) {
    let mut changes = table.changes();
    while !table.synced() && changes.changed().await.is_ok() {}
}

/// Where this daemon's credentials come from.
pub(super) fn origin(config: &Config) -> Origin {
    Origin {
        region: config.sts.region.clone(),
        endpoint: config.sts.endpoint.as_ref().map(ToString::to_string),
        fips: config.sts.fips,
        dual_stack: config.sts.dual_stack,
        audience: config.tokens.verify.audience.clone(),
    }
}

/// Listens for the next daemon.
///
/// One that has taken over serves even where it cannot: it is the only one, and what fails is the next hand-over.
pub(super) fn listen(
    path: &Path,
    has_taken_over: bool,
) -> Result<Option<(UnixListener, SocketFile)>, StartError> {
    // The daemon before may not have closed it yet.
    let bound = if has_taken_over { socket::replace(path) } else { socket::bind(path) };
    let listening = bound.and_then(|(listener, file)| Ok((UnixListener::from_std(listener)?, file)));
    match listening {
        Ok(listening) => Ok(Some(listening)),
        Err(source) => {
            let error = StartError::Handover { path: path.to_owned(), source };
            if !has_taken_over {
                return Err(error);
            }
            tracing::error!(error = %chain(&error), "the next daemon will start cold");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// When attempts were made, in milliseconds, of which the one numbered `done_at` succeeds; the other daemon is
    /// gone from `gone_at` on.
    async fn attempts(done_at: usize, gone_at: Duration) -> (Vec<u128>, usize) {
        let began = Instant::now();
        let made = RefCell::new(Vec::new());
        let failures = Cell::new(0);
        let attempt = async || {
            made.borrow_mut().push(began.elapsed().as_millis());
            let is_done = made.borrow().len() == done_at;
            Ok::<_, StartError>(if is_done { Ok(()) } else { Err("not yet".to_owned()) })
        };
        let is_there = async || began.elapsed() < gone_at;
        let done = until_done(attempt, is_there, |_| failures.set(failures.get() + 1)).await;
        assert!(done.is_ok());
        (made.into_inner(), failures.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_hand_over_is_asked_ever_more_rarely_but_every_ten_seconds() {
        let (made, failures) = attempts(10, Duration::MAX).await;
        assert_eq!(made, [0, 200, 600, 1400, 3000, 6200, 12_600, 22_600, 32_600, 42_600]);
        assert_eq!(failures, 9);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_daemon_leaves_that_has_gone_is_taken_at_once() {
        // It goes in the middle of the pause of 6.4 s.
        let (made, _) = attempts(9, Duration::from_secs(7)).await;
        assert_eq!(made[5..], [6200, 7000, 7200, 7400]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_mended_ends_it() {
        let ended = until_done::<(), _>(async || Err("for good"), async || true, |_| {}).await;
        assert_eq!(ended, Err("for good"));
    }
}
