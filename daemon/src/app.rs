//! The wiring: binds every socket, then starts the parts, and ends them in order.

use std::sync::Arc;

use crate::{
    admin,
    config::Config,
    drain::{self, EssentialTaskEnded},
    liveness::Liveness,
    metrics,
    readiness::Readiness,
    signal::Signals,
    telemetry::LogLevel,
};

/// Why the daemon did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the system has to give was not to be had.
    #[error("{0:#}")]
    Boot(anyhow::Error),
    /// A part without which the daemon is of no use ended.
    #[error(transparent)]
    EssentialTask(#[from] EssentialTaskEnded),
    /// A second signal came before the drain was over.
    #[error("{0} during the drain: ended at once")]
    Interrupted(&'static str),
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// When it cannot start, an essential part dies, or a second signal cuts the drain short.
pub async fn run(config: Config, log_level: LogLevel) -> Result<(), Error> {
    let mut signals = Signals::catch().map_err(|error| Error::Boot(error.into()))?;
    let liveness = Liveness::default();
    let readiness = Readiness::default();
    let bound = admin::Bound::bind(config.admin).map_err(|error| Error::Boot(error.into()))?;
    let (trigger, watch) = drain::new();
    let heart = liveness.heart("data plane");
    trigger
        .tasks()
        .spawn_essential("heartbeat", heart.keep_beating(watch));
    let registry = Arc::new(metrics::registry());
    let admin = bound
        .serve(admin::State {
            liveness,
            readiness,
            log_level,
            registry,
        })
        .map_err(|error| Error::Boot(error.into()))?;

    let result = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "the drain begins");
            Ok(())
        }
        ended = trigger.essential_task_ended() => Err(ended.into()),
    };
    let left = tokio::select! {
        left = trigger.finish(config.drain_deadline) => left,
        name = signals.next() => return Err(Error::Interrupted(name)),
    };
    for left in left {
        tracing::warn!(
            task = left.name,
            count = left.count,
            "cut off at the end of the drain"
        );
    }
    drop(admin);
    result
}
