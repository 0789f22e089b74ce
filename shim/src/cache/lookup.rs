//! Finds a pod's ServiceAccount, and waits a moment for one that was made just before its pod.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client, api::PartialObjectMeta};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_process::drain;
use tokio::time::timeout;
use tracing::warn;

use super::{
    answers::{ASKED_FOR, Key},
    pace::Pace,
    service_accounts::ServiceAccounts,
};
use crate::{annotations, binding::ServiceAccountFacts, kubernetes::told};

/// How often the API server is asked for ServiceAccounts that the watch has not shown: a second, and at once.
const PACE: (u32, u32) = (20, 40);

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How long a ServiceAccount is waited for; zero for not at all.
    pub grace: Duration,
}

/// Finds ServiceAccounts. Cloning is cheap.
#[derive(Clone)]
pub struct Lookup(Arc<Inner>);

/// What lookups show.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    waited: Counter,
    asked: Counter,
    missing: Counter,
}

struct Inner {
    config: Config,
    table: ServiceAccounts,
    client: Client,
    compatibility_prefix: Option<String>,
    pace: Pace,
    tasks: drain::Tasks,
    metrics: Metrics,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "shim_service_account_waits",
            "Pods that waited for their ServiceAccount to be known",
            metrics.waited.clone(),
        );
        registry.register(
            "shim_service_account_lookups",
            "ServiceAccounts that were asked for at the API server",
            metrics.asked.clone(),
        );
        registry.register(
            "shim_service_accounts_missing",
            "Pods whose ServiceAccount was not known in the end",
            metrics.missing.clone(),
        );
        metrics
    }
}

impl Lookup {
    pub fn new(
        config: Config,
        table: ServiceAccounts,
        client: Client,
        compatibility_prefix: Option<String>,
        tasks: drain::Tasks,
        metrics: Metrics,
    ) -> Self {
        let pace = Pace::new(PACE.0, PACE.1);
        Self(Arc::new(Inner { config, table, client, compatibility_prefix, pace, tasks, metrics }))
    }

    /// Whether the first list of ServiceAccounts has been read.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.0.table.synced()
    }

    /// What is known of a ServiceAccount without waiting.
    #[must_use]
    pub fn known(&self, namespace: &str, name: &str) -> Option<ServiceAccountFacts> {
        let inner = &self.0;
        inner.table.get(namespace, name).or_else(|| inner.table.answers().get(namespace, name))
    }

    /// What is known of a ServiceAccount. One that is not known is asked for once, and waited for up to the grace
    /// period, but not longer than `patience`.
    pub async fn find(&self, namespace: &str, name: &str, patience: Duration) -> Option<ServiceAccountFacts> {
        if let Some(facts) = self.known(namespace, name) {
            return Some(facts);
        }
        let grace = self.0.config.grace.min(patience);
        let found = if grace.is_zero() {
            None
        } else {
            self.0.metrics.waited.inc();
            // Subscribed before asking, so that the answer is not missed.
            let mut changes = self.0.table.changes();
            self.ask(namespace, name);
            let wait = async {
                loop {
                    if let Some(facts) = self.known(namespace, name) {
                        return facts;
                    }
                    if changes.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            timeout(grace, wait).await.ok()
        };
        if found.is_none() {
            self.0.metrics.missing.inc();
        }
        found
    }

    /// Asks the API server, unless somebody else just has, or too much was asked for lately. The watch may bring the
    /// answer as well.
    fn ask(&self, namespace: &str, name: &str) {
        // What is asked for becomes a part of a path, and a review can say anything.
        if !is_name(namespace) || !is_name(name) {
            return;
        }
        let key: Key = (namespace.into(), name.into());
        if !self.0.table.answers().begin(&key) || !self.0.pace.take() {
            return;
        }
        self.0.metrics.asked.inc();
        let inner = self.0.clone();
        // A task of its own: the review that asked may give up, others wait for the same answer.
        self.0.tasks.spawn("service account lookup", async move {
            let api: Api<ServiceAccount> = Api::namespaced(inner.client.clone(), &key.0);
            match timeout(ASKED_FOR, api.get_metadata_opt(&key.1)).await {
                Ok(Ok(Some(object))) => {
                    let facts = facts_of(object, inner.compatibility_prefix.as_deref());
                    inner.table.answers().take(key, facts);
                    inner.table.announce();
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    let (namespace, name) = (&key.0, &key.1);
                    warn!(namespace, name, error = told(&error), "cannot ask for a ServiceAccount");
                }
                Err(_elapsed) => {
                    let (namespace, name) = (&key.0, &key.1);
                    warn!(namespace, name, "the API server is slow to tell of a ServiceAccount");
                }
            }
        });
    }
}

fn facts_of(
    object: PartialObjectMeta<ServiceAccount>,
    compatibility_prefix: Option<&str>,
) -> ServiceAccountFacts {
    let annotations = object.metadata.annotations.unwrap_or_default().into_iter();
    let annotations = annotations.filter(|(key, _)| annotations::is_relevant(key, compatibility_prefix));
    ServiceAccountFacts { annotations: annotations.collect() }
}

fn is_name(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.bytes().all(is_part)
}

#[cfg(test)]
mod tests;
