//! A certificate in files that somebody else renews, such as cert-manager: read again when they change.

use std::{path::PathBuf, time::Duration};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_process::{drain, readiness::Latch, telemetry::chain};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::serving::{LoadError, Serving};
use crate::file;

/// How often the files are read. They are small, and their names lead through links that are exchanged, of which no
/// notification tells.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Where the certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why the files are not served.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read --tls-cert {}", path.display())]
    Certificate { path: PathBuf, source: file::Error },
    #[error("read --tls-key {}", path.display())]
    Key { path: PathBuf, source: file::Error },
    #[error("serve --tls-cert {} with --tls-key {}", certificate.display(), key.display())]
    Load { certificate: PathBuf, key: PathBuf, source: LoadError },
}

/// Follows the files until the drain begins; `loaded` is dropped once they were good for the first time. What was
/// last good is served on while they are not.
pub async fn follow(
    config: FilesConfig,
    serving: Serving,
    errors: Counter,
    loaded: Latch,
    drain: drain::Watch,
) {
    let mut loaded = Some(loaded);
    let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
    let mut trouble = None;
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = drain.begun() => return,
        }
        match read(&config).await {
            Ok(read) if last.as_ref() == Some(&read) => trouble = None,
            Ok(read) => match serving.load(&read.0, &read.1) {
                Ok(facts) => {
                    let names = facts.names.into_iter().collect::<Vec<_>>().join(", ");
                    info!(names, "serve the certificate of the files");
                    (last, trouble) = (Some(read), None);
                    drop(loaded.take());
                }
                Err(source) => {
                    let FilesConfig { certificate, key } = config.clone();
                    say(&mut trouble, &errors, &Error::Load { certificate, key, source });
                }
            },
            Err(error) => say(&mut trouble, &errors, &error),
        }
    }
}

/// Registers the counter of failures.
pub fn errors(registry: &mut Registry) -> Counter {
    let errors = Counter::default();
    registry.register(
        "shim_certificate_errors",
        "Failures to read or load the certificate's files; each is tried again",
        errors.clone(),
    );
    errors
}

async fn read(config: &FilesConfig) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let path = config.certificate.clone();
    let certificate = file::read(path.clone()).await.map_err(|source| Error::Certificate { path, source })?;
    let path = config.key.clone();
    let key = file::read(path.clone()).await.map_err(|source| Error::Key { path, source })?;
    Ok((certificate, key))
}

/// Logs a trouble when it is a new one.
fn say(last: &mut Option<String>, errors: &Counter, error: &Error) {
    errors.inc();
    let text = chain(error).to_string();
    if last.as_ref() != Some(&text) {
        error!("{text}; trying on");
        *last = Some(text);
    }
}
