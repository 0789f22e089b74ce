//! Follows the file of identities.

use std::{io, path::PathBuf, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rolecall_process::{drain, readiness::Latch, telemetry::chain};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::latest::Latest;
use crate::{
    file,
    identities::{Identities, IdentitiesError, parse_identities},
};

/// How often the file is read. In a ConfigMap's volume its name leads through a link that is exchanged, of which no
/// notification of the file tells.
const READ_EVERY: Duration = Duration::from_secs(3);

/// What the file shows.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    identities: Gauge,
    errors: Counter,
}

/// Why the file is not in force.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Read(#[from] file::Error),
    #[error("it is no UTF-8")]
    NotText,
    #[error(transparent)]
    Parse(#[from] IdentitiesError),
}

impl Error {
    fn is_absence(&self) -> bool {
        matches!(self, Self::Read(file::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("shim_identities", "Identities of the file in force", metrics.identities.clone());
        registry.register(
            "shim_identities_errors",
            "Failures to read the file of identities; each is tried again",
            metrics.errors.clone(),
        );
        metrics
    }
}

/// Follows the file until the drain begins; `known` is dropped once it was good for the first time, or is not there:
/// then there are no identities yet, and nobody else has to wait for them. What was last good stays in force while the
/// file is not.
pub async fn run(
    path: PathBuf,
    latest: Latest<Identities>,
    metrics: Metrics,
    known: Latch,
    drain: drain::Watch,
) {
    let mut known = Some(known);
    let mut last = None;
    let mut trouble = None;
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = drain.begun() => return,
        }
        match read(&path, last.as_deref()).await {
            Ok(None) => trouble = None,
            Ok(Some((content, identities))) => {
                info!(path = %path.display(), identities = identities.len(), "read the identities");
                metrics.identities.set(i64::try_from(identities.len()).unwrap_or(i64::MAX));
                latest.set(identities);
                (last, trouble) = (Some(content), None);
                drop(known.take());
            }
            Err(error) => {
                metrics.errors.inc();
                if error.is_absence() {
                    drop(known.take());
                }
                let text = chain(&error).to_string();
                if trouble.as_ref() != Some(&text) {
                    let path = path.display();
                    error!("--watch-container-credentials-config {path}: {text}; what it held before counts");
                    trouble = Some(text);
                }
            }
        }
    }
}

/// The content and what it says, unless it is the same as `last`.
async fn read(path: &std::path::Path, last: Option<&[u8]>) -> Result<Option<(Vec<u8>, Identities)>, Error> {
    let content = file::read(path.to_owned()).await?;
    if last == Some(content.as_slice()) {
        return Ok(None);
    }
    let text = std::str::from_utf8(&content).map_err(|_| Error::NotText)?;
    let identities = parse_identities(text)?;
    Ok(Some((content, identities)))
}
