//! Keeps the shared Secret, the published `caBundle` and the served certificate right, beside other replicas.

mod published;

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_process::{drain, readiness::Latch, telemetry::chain};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use self::published::Published;
use super::{
    bundle::Standing,
    mint::Names,
    plan::{self, Due, Lifetimes, StepError},
    serving::Serving,
    stored::{self, Authority, Stored},
};
use crate::kubernetes::told;
use rolecall_process::time::{Clock, rfc3339};

/// How often it is looked whether something is due, and a step that failed is tried again.
const TICK: Duration = Duration::from_secs(5);

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
    Load { namespace: String, name: String, source: super::serving::LoadError },
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

    /// Does what is due to the Secret; what it holds then is the last that was good, even where this fails.
    async fn keep(&mut self) -> Result<Option<Stored>, Error> {
        let Some(stored) = self.shared().await? else { return Ok(None) };
        self.last_good = Some(stored.clone());
        let now = self.clock.now();
        let next_published_for =
            stored.next.as_ref().and_then(|next| self.published_for(&next.to_authority()));
        if let Some(due) =
            plan::due(Some(&stored), &self.config.names, next_published_for, now, &self.config.lifetimes)
        {
            let after = plan::step(due, Some(&stored), &self.config.names, now, &self.config.lifetimes)?;
            if let Some(written) = self.write(&after, due.as_str()).await? {
                self.last_good = Some(written.clone());
                return Ok(Some(written));
            }
        }
        Ok(Some(stored))
    }

    /// What the Secret holds; makes or restores it where it holds nothing good. `None` until it is known.
    async fn shared(&mut self) -> Result<Option<Stored>, Error> {
        let Some(secret) = &self.secret else { return Ok(None) };
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let is_empty = data.is_none_or(|data| data.values().all(|value| value.0.is_empty()));
        match Stored::read(|key| Some(data?.get(key)?.0.as_slice())) {
            Ok(stored) => return Ok(Some(stored)),
            Err(error) if !is_empty => {
                if self.last_good.is_none() && !secret.as_ref().is_some_and(is_ours) {
                    return Err(Error::Foreign {
                        namespace: self.config.namespace.clone(),
                        name: self.config.secret.clone(),
                    });
                }
                warn!(secret = self.config.secret, error = %chain(&error), "the shared certificates are broken");
            }
            Err(_) => {}
        }
        // What this replica knew is what the others serve with: better than to begin anew.
        let (stored, what) = match &self.last_good {
            Some(known) => (known.clone(), "write the shared certificates back"),
            None => {
                let now = self.clock.now();
                let due = Due::Create;
                (plan::step(due, None, &self.config.names, now, &self.config.lifetimes)?, due.as_str())
            }
        };
        self.write(&stored, what).await
    }

    /// Writes the Secret against the version that was read. `None` if another replica was faster; the watch brings
    /// what it wrote.
    async fn write(&mut self, stored: &Stored, what: &'static str) -> Result<Option<Stored>, Error> {
        let data = stored.to_data().into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = &self.config.secret;
        let result = match self.secret.iter().flatten().next() {
            Some(old) => {
                let secret = Secret { data: Some(data), ..old.clone() };
                self.secrets.replace(name, &params, &secret).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                self.secrets.create(&params, &secret).await
            }
        };
        match result {
            Ok(written) => {
                self.metrics.steps.inc();
                info!(secret = name, "{what}");
                self.secret = Some(Some(written));
                Ok(Some(stored.clone()))
            }
            // Created or changed by another meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            // Deleted by another meanwhile: it is to be created next.
            Err(kube::Error::Api(status)) if status.code == 404 && self.secret != Some(None) => {
                self.secret = Some(None);
                Ok(None)
            }
            Err(source) => Err(Error::Write {
                namespace: self.config.namespace.clone(),
                name: name.clone(),
                source: Box::new(source),
            }),
        }
    }

    /// Sees to it that `caBundle` holds every authority that may be served with now.
    async fn publish(&mut self, stored: &Stored) -> Result<(), Error> {
        let Some(published) = &self.published else { return Ok(()) };
        // While the Secret was exchanged by hand, this replica still serves with what it had before.
        let required: Vec<Authority> = stored.authorities().chain(self.served_by.clone()).collect();
        let now = Instant::now();
        let due = match published.standing(&required) {
            Standing::Exact => {
                self.more_since = None;
                false
            }
            // Another replica may still serve with what is superfluous here.
            Standing::More => {
                let since = *self.more_since.get_or_insert(now);
                prune_after(self.config.lifetimes.settle) <= now.duration_since(since)
            }
            Standing::Less => true,
        };
        let mut patched = Ok(());
        if due {
            let params =
                PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            let keep_more = published.standing(&required) == Standing::Less;
            let patch = Patch::Strategic(published.patch(&required, keep_more));
            let name = &self.config.webhook_configuration;
            patched = match self.configurations.patch(name, &params, &patch).await {
                Ok(configuration) => {
                    self.metrics.bundle_repairs.inc();
                    info!(configuration = name, "put caBundle right");
                    self.published = Some(Published::of(&configuration, &self.config));
                    self.more_since = None;
                    Ok(())
                }
                // Changed (409) or deleted (404) meanwhile: the watch brings what it is now.
                Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
                Err(source) => Err(Error::Patch { name: name.clone(), source: Box::new(source) }),
            };
        }
        let seen = self.published.as_ref();
        self.published_since = required
            .iter()
            .filter(|authority| seen.is_some_and(|seen| seen.trusts(authority)))
            .map(|authority| {
                let der = authority.facts.der.clone();
                let since = self.published_since.get(&der).copied().unwrap_or(now);
                (der, since)
            })
            .collect();
        patched
    }

    /// Serves the shared certificate once its authority is trusted; anything is better than nothing to serve.
    fn serve(&mut self, stored: &Stored) -> Result<(), Error> {
        let authority = stored.authority.to_authority();
        let published_for = self.published_for(&authority);
        let served = self.serving.facts();
        let may_be_served = match &served {
            None => true,
            Some(facts) if facts.issuer == stored.serving.facts.issuer => true,
            // Not every API server knows on the spot what was published.
            Some(_) => published_for.is_some_and(|published| self.config.lifetimes.settle <= published),
        };
        let is_served = served.as_ref().is_some_and(|facts| facts.der == stored.serving.facts.der);
        if !is_served && may_be_served {
            let pair = &stored.serving.pair;
            let facts =
                self.serving.load(pair.certificate.as_bytes(), pair.key.as_bytes()).map_err(|source| {
                    Error::Load {
                        namespace: self.config.namespace.clone(),
                        name: self.config.secret.clone(),
                        source,
                    }
                })?;
            self.served_by = Some(authority);
            let expires = rfc3339(facts.expires);
            info!(expires, "serve the certificate of the Secret");
            self.loaded = None;
        }
        if published_for.is_some() {
            self.trusted = None;
        }
        Ok(())
    }

    fn published_for(&self, authority: &Authority) -> Option<Duration> {
        self.published_since.get(&authority.facts.der).map(Instant::elapsed)
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

/// Whether a Secret whose content is broken was written by the shim once, by this replica or another.
fn is_ours(secret: &Secret) -> bool {
    let mut managers = secret.metadata.managed_fields.iter().flatten();
    let has_key = |data: &BTreeMap<_, _>| data.contains_key(stored::OWN_KEY);
    secret.data.as_ref().is_some_and(has_key)
        || managers.any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
}

/// How long what is superfluous to this replica stays in `caBundle`. Another may still serve with it: it swaps its
/// certificate once the new authority has settled and a tick has come.
fn prune_after(settle: Duration) -> Duration {
    settle * 2 + TICK * 2
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
