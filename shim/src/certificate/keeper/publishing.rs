//! What the API server is told to trust, and what may be served because it does.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use rolecall_process::time::rfc3339;
use tokio::time::Instant;
use tracing::info;

use super::{
    super::{
        bundle::Standing,
        stored::{Authority, Stored},
    },
    BELIEVED_AFTER, Error, FIELD_MANAGER, Keeper, TICK,
    published::Published,
};

impl Keeper {
    /// Sees to it that `caBundle` holds every authority that may be served with now.
    pub(super) async fn publish(&mut self, stored: &Stored) -> Result<(), Error> {
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
    pub(super) fn serve(&mut self, stored: &Stored) -> Result<(), Error> {
        let authority = stored.authority.to_authority();
        let published_for = self.published_for(&authority);
        let served = self.serving.facts();
        let has_begun = stored.serving.facts.begins <= self.clock.now();
        let may_be_served = match &served {
            None => true,
            Some(_) if !has_begun => false,
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
        if published_for.is_some_and(|published| BELIEVED_AFTER <= published) {
            self.trusted = None;
        }
        Ok(())
    }

    pub(super) fn published_for(&self, authority: &Authority) -> Option<Duration> {
        self.published_since.get(&authority.facts.der).map(Instant::elapsed)
    }

    /// When every API server believes what this replica serves, if it waits for nothing else.
    pub(super) fn believed_at(&self) -> Option<Instant> {
        let authority = self.served_by.as_ref().filter(|_| self.trusted.is_some())?;
        let at = *self.published_since.get(&authority.facts.der)? + BELIEVED_AFTER;
        // What is past was seen by the step after it.
        (Instant::now() < at).then_some(at)
    }
}

/// How long what is superfluous to this replica stays in `caBundle`. Another may still serve with it: it swaps its
/// certificate once the new authority has settled and a tick has come.
fn prune_after(settle: Duration) -> Duration {
    settle * 2 + TICK * 2
}
