//! Every ServiceAccount of the cluster, less what nobody reads: its name and a few annotations.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rolecall_process::readiness::Latch;
use tokio::sync::watch;
use tracing::{info, warn};

use super::answers::Answers;
use crate::{
    annotations,
    binding::ServiceAccountFacts,
    kubernetes::{PAGE, told},
};

/// A ServiceAccount as the watch sends it.
pub type Object = PartialObjectMeta<ServiceAccount>;

/// The ServiceAccounts that are known. Cloning is cheap.
#[derive(Clone, Default)]
pub struct ServiceAccounts(Arc<Shared>);

/// The only one that changes them.
pub struct Writer {
    shared: Arc<Shared>,
    compatibility_prefix: Option<String>,
}

/// What the watch shows.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    known: Gauge,
    synced: Gauge,
    errors: Counter,
}

#[derive(Default)]
struct Shared {
    table: RwLock<Table>,
    changed: watch::Sender<()>,
    /// What was asked for beside the watch.
    answers: Answers,
}

#[derive(Default)]
struct Table {
    namespaces: HashMap<Box<str>, HashMap<Box<str>, Entry>>,
    /// The keys of annotations, each once: there are a handful, on thousands of ServiceAccounts.
    keys: HashSet<Arc<str>>,
    count: usize,
    synced: bool,
    /// Which list an entry was last in: what is not in the newest has gone.
    generation: u32,
}

struct Entry {
    generation: u32,
    annotations: Box<[(Arc<str>, Box<str>)]>,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("shim_service_accounts", "ServiceAccounts that are known", metrics.known.clone());
        registry.register(
            "shim_service_accounts_synced",
            "Whether every ServiceAccount is known (1) or the first list is not read yet (0)",
            metrics.synced.clone(),
        );
        registry.register(
            "shim_service_account_watch_errors",
            "Failures of the watch of ServiceAccounts; each is retried",
            metrics.errors.clone(),
        );
        metrics
    }
}

impl ServiceAccounts {
    /// None known yet, and the one that will tell.
    #[must_use]
    pub fn new(compatibility_prefix: Option<String>) -> (Self, Writer) {
        let accounts = Self::default();
        let writer = Writer { shared: accounts.0.clone(), compatibility_prefix };
        (accounts, writer)
    }

    /// What is known of one.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<ServiceAccountFacts> {
        let table = self.0.read();
        let entry = table.namespaces.get(namespace)?.get(name)?;
        let annotations =
            entry.annotations.iter().map(|(key, value)| ((**key).to_owned(), (**value).to_owned()));
        Some(ServiceAccountFacts { annotations: annotations.collect() })
    }

    /// What was asked for beside the watch; what the watch tells of is dropped from it.
    pub(super) fn answers(&self) -> &Answers {
        &self.0.answers
    }

    /// Whether the first list has been read.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.0.read().synced
    }

    /// Tells of changes to come.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Lets everyone who waits look again.
    pub(super) fn announce(&self) {
        self.0.changed.send_replace(());
    }
}

impl Writer {
    /// Takes in what the watch says.
    pub fn apply(&mut self, event: watcher::Event<Object>) {
        let mut table = self.shared.table.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            watcher::Event::Init => table.generation = table.generation.wrapping_add(1),
            watcher::Event::InitApply(object) => table.insert(object, self.compatibility_prefix.as_deref()),
            watcher::Event::InitDone => {
                table.forget_older();
                self.shared.answers.forget_all();
            }
            watcher::Event::Apply(object) => {
                self.shared.answers.forget(&object.metadata);
                table.insert(object, self.compatibility_prefix.as_deref());
            }
            watcher::Event::Delete(object) => {
                self.shared.answers.forget(&object.metadata);
                table.remove(&object);
            }
        }
        drop(table);
        self.shared.changed.send_replace(());
    }

    fn count(&self) -> usize {
        self.shared.read().count
    }
}

/// The ServiceAccounts of the whole cluster, their metadata alone, retried for ever with growing pauses.
pub fn stream(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<Object>>> {
    // Of this type, the API server sends metadata alone.
    let api: Api<Object> = Api::all(client);
    watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff()
}

/// Feeds `stream` into the table; `synced` is dropped once the first list is read.
pub async fn run(
    stream: impl Stream<Item = watcher::Result<watcher::Event<Object>>>,
    mut writer: Writer,
    metrics: Metrics,
    synced: Latch,
) {
    let mut stream = pin!(stream);
    let mut synced = Some(synced);
    let mut lost = false;
    while let Some(item) = stream.next().await {
        let event = match item {
            Ok(event) => event,
            Err(error) => {
                metrics.errors.inc();
                if !std::mem::replace(&mut lost, true) {
                    warn!(
                        error = told(&error),
                        "cannot watch ServiceAccounts (the shim needs list and watch for them); trying on"
                    );
                }
                continue;
            }
        };
        if std::mem::replace(&mut lost, false) {
            info!("watching ServiceAccounts again");
        }
        let is_done = matches!(event, watcher::Event::InitDone);
        writer.apply(event);
        metrics.known.set(i64::try_from(writer.count()).unwrap_or(i64::MAX));
        if is_done {
            metrics.synced.set(1);
            if let Some(synced) = synced.take() {
                info!(count = writer.count(), "the ServiceAccounts are known");
                drop(synced);
            }
        }
    }
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, object: Object, compatibility_prefix: Option<&str>) {
        let (Some(namespace), Some(name)) = (object.metadata.namespace, object.metadata.name) else { return };
        let mut kept = Vec::new();
        for (key, value) in object.metadata.annotations.unwrap_or_default() {
            if annotations::is_relevant(&key, compatibility_prefix) {
                kept.push((self.key(&key), value.into_boxed_str()));
            }
        }
        let entry = Entry { generation: self.generation, annotations: kept.into_boxed_slice() };
        let names = match self.namespaces.get_mut(namespace.as_str()) {
            Some(names) => names,
            None => self.namespaces.entry(namespace.into_boxed_str()).or_default(),
        };
        if names.insert(name.into_boxed_str(), entry).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, object: &Object) {
        let (Some(namespace), Some(name)) = (&object.metadata.namespace, &object.metadata.name) else {
            return;
        };
        let Some(names) = self.namespaces.get_mut(namespace.as_str()) else { return };
        if names.remove(name.as_str()).is_some() {
            self.count -= 1;
        }
        if names.is_empty() {
            self.namespaces.remove(namespace.as_str());
        }
    }

    /// A list is complete: what it did not bring is gone, though no deletion was seen.
    fn forget_older(&mut self) {
        let generation = self.generation;
        self.namespaces.retain(|_, names| {
            names.retain(|_, entry| entry.generation == generation);
            !names.is_empty()
        });
        self.count = self.namespaces.values().map(HashMap::len).sum();
        self.synced = true;
    }

    fn key(&mut self, key: &str) -> Arc<str> {
        if let Some(known) = self.keys.get(key) {
            return known.clone();
        }
        let key: Arc<str> = key.into();
        self.keys.insert(key.clone());
        key
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectMeta, PartialObjectMetaExt};

    use super::*;

    fn object(name: &str, role: Option<&str>) -> Object {
        let role = role.map(|role| ("eks.amazonaws.com/role-arn".to_owned(), role.to_owned()));
        let other = ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "{}".to_owned());
        ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            annotations: Some(role.into_iter().chain([other]).collect()),
            ..ObjectMeta::default()
        }
        .into_response_partial()
    }

    #[track_caller]
    fn check(accounts: &ServiceAccounts, name: &str, expect: Option<&[&str]>) {
        let found = accounts.get("shop", name).map(|facts| facts.annotations);
        let values = found.as_ref().map(|found| found.values().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(values.as_deref(), expect, "{name}");
    }

    fn listed(objects: &[Object]) -> (ServiceAccounts, Writer) {
        let (accounts, mut writer) = ServiceAccounts::new(Some("eks.amazonaws.com".to_owned()));
        list(&mut writer, objects);
        (accounts, writer)
    }

    fn list(writer: &mut Writer, objects: &[Object]) {
        writer.apply(watcher::Event::Init);
        objects.iter().for_each(|object| writer.apply(watcher::Event::InitApply(object.clone())));
        writer.apply(watcher::Event::InitDone);
    }

    #[test]
    fn one_without_annotations_of_ours_is_known_all_the_same() {
        let (accounts, _writer) = listed(&[object("orders", Some("role")), object("plain", None)]);
        check(&accounts, "orders", Some(&["role"]));
        check(&accounts, "plain", Some(&[]));
        check(&accounts, "absent", None);
    }

    #[test]
    fn what_a_new_list_does_not_bring_is_gone_and_nothing_is_before_it_is_complete() {
        let (accounts, mut writer) = listed(&[object("a", Some("1")), object("b", Some("2"))]);
        writer.apply(watcher::Event::Init);
        writer.apply(watcher::Event::InitApply(object("b", Some("3"))));
        check(&accounts, "a", Some(&["1"]));
        check(&accounts, "b", Some(&["3"]));
        writer.apply(watcher::Event::InitDone);
        check(&accounts, "a", None);
        assert_eq!(writer.count(), 1);
    }

    #[test]
    fn a_change_and_a_deletion_are_followed() {
        let (accounts, mut writer) = listed(&[object("a", Some("1"))]);
        writer.apply(watcher::Event::Apply(object("a", None)));
        check(&accounts, "a", Some(&[]));
        writer.apply(watcher::Event::Apply(object("b", Some("2"))));
        writer.apply(watcher::Event::Delete(object("a", None)));
        check(&accounts, "a", None);
        check(&accounts, "b", Some(&["2"]));
        assert_eq!(writer.count(), 1);
    }
}
