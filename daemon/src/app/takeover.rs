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
    time::{Instant, sleep},
};

use super::{
    StartError,
    sockets::{Sockets, Wanted, is_taken},
};
use crate::{
    config::Config,
    handover::{self, Asked, Estate, NotGiven, Origin, SteppedDown, is_somebody_there},
    pods::PodTable,
};

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

    /// Takes over from the daemon that serves once the pods of the node are known, or binds once there is none.
    pub(super) async fn run(
        self,
        table: &PodTable,
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
        let mut pause = RETRY_IN;
        loop {
            serving.broken("the daemon before it serves until the pods of the node are known");
            while is_somebody_there(path).await {
                tokio::select! {
                    () = synced(table) => break,
                    () = sleep(LOOK_EVERY) => {}
                }
            }
            let why = match self.attempt(path).await? {
                Ok(got) => {
                    serving.restored();
                    return Ok(got);
                }
                Err(why) => why,
            };
            serving.broken(&why);
            said.say(why);
            let until = Instant::now() + pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
            sleep(RETRY_IN).await;
            while Instant::now() < until && is_somebody_there(path).await {
                sleep(RETRY_IN).await;
            }
        }
    }

    /// The sockets, or why they are not to be had yet.
    async fn attempt(&self, path: &Path) -> Result<Result<(Sockets, Option<Estate>), String>, StartError> {
        let mut offer = match handover::ask(path, &self.origin).await {
            Asked::Offered(offer) => offer,
            Asked::NotGiven(why) => return Ok(Err(self.not_given(&why))),
            Asked::Nobody => {
                return match Sockets::bind(&self.wanted) {
                    Ok(sockets) => Ok(Ok((sockets, None))),
                    Err(error) if is_taken(&error) => Ok(Err(format!(
                        "{error}; if it is a daemon that does not hand over at --handover-socket, this one serves \
                         once that has ended"
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

impl Said {
    fn say(&mut self, why: String) {
        let is_new = self.0.as_ref().is_none_or(|(said, at)| *said != why || LOG_EVERY <= at.elapsed());
        if is_new {
            tracing::warn!(reason = why, "cannot take over yet; trying on");
            self.0 = Some((why, Instant::now()));
        }
    }
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
