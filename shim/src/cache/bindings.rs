//! Follows the ConfigMap of bindings.

use std::pin::pin;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rolecall_process::{readiness::Latch, telemetry::chain};
use tracing::{error, info, warn};

use super::latest::Latest;
use crate::{
    config_map::{ConfigMapBindings, DATA_KEY, NAME, parse_config_map},
    kubernetes::told,
};

/// What the ConfigMap says that binds nothing.
const EMPTY: &str = "{}";

/// What the ConfigMap shows.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    entries: Gauge,
    bad_entries: Gauge,
    errors: Counter,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "shim_config_map_entries",
            "Bindings of the ConfigMap in force",
            metrics.entries.clone(),
        );
        registry.register(
            "shim_config_map_bad_entries",
            "Entries of the ConfigMap that are malformed; 1 too if all of it is",
            metrics.bad_entries.clone(),
        );
        registry.register(
            "shim_config_map_watch_errors",
            "Failures of the watch of the ConfigMap; each is retried",
            metrics.errors.clone(),
        );
        metrics
    }
}

/// The ConfigMap of `namespace`, retried for ever with growing pauses.
pub fn stream(
    client: Client,
    namespace: &str,
) -> impl Stream<Item = watcher::Result<Option<ConfigMap>>> + use<> {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    watcher::watch_object(api, NAME).default_backoff()
}

/// Feeds `stream` into `latest`; `known` is dropped once the ConfigMap was seen to be there or not.
pub async fn run(
    stream: impl Stream<Item = watcher::Result<Option<ConfigMap>>>,
    latest: Latest<ConfigMapBindings>,
    metrics: Metrics,
    known: Latch,
) {
    let mut stream = pin!(stream);
    let mut known = Some(known);
    let mut lost = false;
    while let Some(item) = stream.next().await {
        match item {
            Ok(config_map) => {
                lost = false;
                take(config_map, &latest, &metrics);
                drop(known.take());
            }
            Err(error) => {
                metrics.errors.inc();
                if !std::mem::replace(&mut lost, true) {
                    warn!(
                        error = told(&error),
                        "cannot watch the ConfigMap {NAME} (the shim needs list and watch for it); trying on"
                    );
                }
            }
        }
    }
}

fn take(config_map: Option<ConfigMap>, latest: &Latest<ConfigMapBindings>, metrics: &Metrics) {
    let text = match config_map {
        Some(map) => map.data.and_then(|mut data| data.remove(DATA_KEY)).unwrap_or_default(),
        None => EMPTY.to_owned(),
    };
    if text.trim().is_empty() {
        // More likely a slip of the pen than the wish to take every role away.
        error!(
            "ConfigMap {NAME}: the key {DATA_KEY} is missing or empty; what it held before goes on counting, \
             and {EMPTY} would clear it"
        );
        metrics.bad_entries.set(1);
        return;
    }
    match parse_config_map(&text) {
        Ok((bindings, mistakes)) => {
            for mistake in &mistakes {
                error!("ConfigMap {NAME}: {}; if it was good before, that goes on counting", chain(mistake));
            }
            metrics.bad_entries.set(i64::try_from(mistakes.len()).unwrap_or(i64::MAX));
            let bindings = bindings.keeping_last_good(&latest.get(), &mistakes);
            info!(entries = bindings.len(), malformed = mistakes.len(), "read the ConfigMap {NAME}");
            metrics.entries.set(i64::try_from(bindings.len()).unwrap_or(i64::MAX));
            latest.set(bindings);
        }
        Err(mistake) => {
            // The source of this error may repeat what was written, roles at most.
            error!("ConfigMap {NAME}: {}; what it held before goes on counting", chain(&mistake));
            metrics.bad_entries.set(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(text: &str) -> Option<ConfigMap> {
        let data = [(DATA_KEY.to_owned(), text.to_owned())].into();
        Some(ConfigMap { data: Some(data), ..ConfigMap::default() })
    }

    #[test]
    fn what_was_good_stays_until_it_is_deleted() {
        let (latest, metrics) = (Latest::<ConfigMapBindings>::default(), Metrics::default());
        let role = |name: &str| latest.get().find("shop", name).map(|entry| entry.role_arn.clone());
        take(config_map(r#"{"shop/a":{"RoleARN":"1"},"shop/b":{"RoleARN":"2"}}"#), &latest, &metrics);
        take(config_map(r#"{"shop/a":{"RoleARN":3},"shop/b":{"RoleARN":"4"}}"#), &latest, &metrics);
        assert_eq!((role("a").as_deref(), role("b").as_deref()), (Some("1"), Some("4")));
        assert_eq!(metrics.bad_entries.get(), 1);
        take(config_map("{"), &latest, &metrics);
        assert_eq!((role("a").as_deref(), role("b").as_deref()), (Some("1"), Some("4")));
        take(None, &latest, &metrics);
        assert_eq!((role("a"), role("b"), metrics.entries.get()), (None, None, 0));
    }

    #[test]
    fn without_its_key_the_config_map_stays_as_it_was_and_an_empty_object_clears_it() {
        let (latest, metrics) = (Latest::<ConfigMapBindings>::default(), Metrics::default());
        let other = [("other".to_owned(), "{}".to_owned())].into();
        let other = Some(ConfigMap { data: Some(other), ..ConfigMap::default() });
        for without in [Some(ConfigMap::default()), other, config_map(""), config_map(" \n")] {
            take(config_map(r#"{"shop/a":{"RoleARN":"1"}}"#), &latest, &metrics);
            assert_eq!(metrics.bad_entries.get(), 0);
            take(without, &latest, &metrics);
            assert_eq!((latest.get().len(), metrics.entries.get(), metrics.bad_entries.get()), (1, 1, 1));
        }
        take(config_map("{}"), &latest, &metrics);
        assert_eq!((latest.get().len(), metrics.entries.get(), metrics.bad_entries.get()), (0, 0, 0));
    }
}
