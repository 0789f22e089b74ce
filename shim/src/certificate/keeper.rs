//! Keeps the shared Secret, the published `caBundle` and the served certificate right, beside other replicas.

mod published;
mod publishing;
mod sharing;

use std::{collections::HashMap, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt, future::OptionFuture};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_process::{drain, readiness::Latch, time::Clock};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, warn};

use self::published::Published;
use super::{
    mint::Names,
    plan::{Lifetimes, StepError},
    serving::{LoadError, Serving},
    stored::{Authority, Stored},
};
use crate::kubernetes::told;

/// How often it is looked whether something is due, and a step that failed is tried again.
const TICK: Duration = Duration::from_secs(5);

/// How long an API server may go on with the `caBundle` that it had: in tests it took about a second.
const BELIEVED_AFTER: Duration = Duration::from_secs(2);

/// Who changes objects, as the API server records it.
const FIELD_MANAGER: &str = "rolecall-shim";

/// What is kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfManagedConfig {
    /// Of the Secret and of the Service.
    pub namespace: String,
    pub secret: String,
    /// Whose endpoints the replicas are.
    pub service: String,
    /// The MutatingWebhookConfiguration whose `caBundle` is kept.
    pub webhook_configuration: String,
    pub names: Names,
    pub lifetimes: Lifetimes,
}

/// What the certificates show.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    steps: Counter,
    errors: Counter,
    bundle_repairs: Counter,
}

/// The one task that keeps them.
pub struct Keeper {
    config: SelfManagedConfig,
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    serving: Serving,
    clock: Clock,
    metrics: Metrics,
    /// What was last seen at the API server; `None` before the first answer.
    secret: Option<Option<Secret>>,
    published: Option<Published>,
    /// The shared state that was last good, to be written back if the Secret is lost.
    last_good: Option<Stored>,
    /// The authority of the certificate that is served.
    served_by: Option<Authority>,
    /// Since when each authority that is needed has been seen in `caBundle`, by its certificate.
    published_since: HashMap<CertificateDer<'static>, Instant>,
    /// Since when `caBundle` has held more than it has to.
    more_since: Option<Instant>,
    loaded: Option<Latch>,
    trusted: Option<Latch>,
    configuration_is_known: bool,
    /// What was last said to be awaited.
    awaited: Option<&'static str>,
    /// The trouble that was last logged, so that it is said once and not each [`TICK`].
    trouble: Option<String>,
}

/// What came to be known.
enum Seen {
    Secret(watcher::Result<Option<Secret>>),
    Configuration(watcher::Result<Option<MutatingWebhookConfiguration>>),
    Tick,
    Drain,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "write the Secret {namespace}/{name}; the shim needs get, list, watch and update for it, and create for secrets where it is not there"
    )]
    Write { namespace: String, name: String, source: Box<kube::Error> },
    #[error(
        "leave the Secret {namespace}/{name} alone, which holds what is not the shim's; name another one by --tls-secret, empty this one, or mount it and use --certificate=files if it is kept by cert-manager or the like"
    )]
    Foreign { namespace: String, name: String },
    #[error(
        "patch caBundle of the MutatingWebhookConfiguration {name}; the shim needs get, list, watch and patch for it"
    )]
    Patch { name: String, source: Box<kube::Error> },
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("serve the certificate of the Secret {namespace}/{name}")]
    Load { namespace: String, name: String, source: LoadError },
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "shim_certificate_steps",
            "Changes of the shared certificates that this replica made",
            metrics.steps.clone(),
        );
        registry.register(
            "shim_certificate_errors",
            "Failures to make, share, publish or load certificates; each is tried again",
            metrics.errors.clone(),
        );
        registry.register(
            "shim_ca_bundle_repairs",
            "Times that this replica put caBundle right",
            metrics.bundle_repairs.clone(),
        );
        metrics
    }
}

impl Keeper {
    /// `loaded` is dropped once there is a certificate, `trusted` once its authority is seen in `caBundle`.
    pub fn new(
        client: Client,
        config: SelfManagedConfig,
        serving: Serving,
        clock: Clock,
        metrics: Metrics,
        (loaded, trusted): (Latch, Latch),
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &config.namespace),
            configurations: Api::all(client),
            config,
            serving,
            clock,
            metrics,
            secret: None,
            published: None,
            last_good: None,
            served_by: None,
            published_since: HashMap::new(),
            more_since: None,
            loaded: Some(loaded),
            trusted: Some(trusted),
            configuration_is_known: false,
            awaited: None,
            trouble: None,
        }
    }

    /// Keeps them until the drain is over.
    pub async fn run(mut self, drain: drain::Watch) {
        let mut secrets = pin!(followed(self.secrets.clone(), &self.config.secret).map(Seen::Secret));
        let mut configurations = pin!(
            followed(self.configurations.clone(), &self.config.webhook_configuration)
                .map(Seen::Configuration)
        );
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let seen = tokio::select! {
                Some(seen) = secrets.next() => seen,
                Some(seen) = configurations.next() => seen,
                _ = ticks.tick() => Seen::Tick,
                Some(()) = OptionFuture::from(self.believed_at().map(sleep_until)) => Seen::Tick,
                () = drain.begun() => Seen::Drain,
            };
            match seen {
                Seen::Secret(Ok(secret)) => self.secret = Some(secret),
                Seen::Configuration(Ok(configuration)) => {
                    self.published = configuration.map(|found| Published::of(&found, &self.config));
                    self.configuration_is_known = true;
                    self.say_what_is_awaited();
                }
                Seen::Secret(Err(error)) => {
                    self.failed(format!("watch the Secret {}: {}", self.config.secret, told(&error)));
                    continue;
                }
                Seen::Configuration(Err(error)) => {
                    let name = &self.config.webhook_configuration;
                    let text = format!("watch the MutatingWebhookConfiguration {name}: {}", told(&error));
                    self.failed(text);
                    continue;
                }
                Seen::Tick => {}
                Seen::Drain => return,
            }
            match self.act().await {
                Ok(true) => self.trouble = None,
                Ok(false) => {}
                Err(error) => self.failed(told(&error)),
            }
        }
    }

    /// Does what is due. Says whether there was something to judge.
    async fn act(&mut self) -> Result<bool, Error> {
        let kept = self.keep().await;
        let stored = match (&kept, &self.last_good) {
            (Ok(Some(stored)), _) | (_, Some(stored)) => stored.clone(),
            (Ok(None) | Err(_), None) => return kept.map(|_| false),
        };
        // What cannot be written now is still to be served and trusted as it was.
        let published = self.publish(&stored).await;
        let served = self.serve(&stored);
        let is_known = kept?.is_some();
        published.and(served).map(|()| is_known)
    }

    /// Says once what keeps `caBundle` from being put right.
    fn say_what_is_awaited(&mut self) {
        let name = &self.config.webhook_configuration;
        let awaited = match (&self.published, self.configuration_is_known) {
            (_, false) => None,
            (None, true) => Some("it is not there"),
            (Some(published), true) if published.is_empty() => Some("no webhook of it leads to this Service"),
            (Some(_), true) => None,
        };
        if awaited != self.awaited {
            if let Some(why) = awaited {
                let service = format!("{}/{}", self.config.namespace, self.config.service);
                warn!(
                    configuration = name,
                    service, "caBundle of the MutatingWebhookConfiguration waits: {why}"
                );
            }
            self.awaited = awaited;
        }
    }

    fn failed(&mut self, text: String) {
        self.metrics.errors.inc();
        if self.trouble.as_ref() != Some(&text) {
            error!("{text}; trying on");
            self.trouble = Some(text);
        }
    }
}

/// One object by its name, for ever.
fn followed<K>(api: Api<K>, name: &str) -> impl Stream<Item = watcher::Result<Option<K>>> + use<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher::watch_object(api, name).default_backoff()
}

#[cfg(test)]
mod tests;
