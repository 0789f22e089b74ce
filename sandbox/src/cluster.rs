//! A kube-apiserver as far as Rolecall sees it: pods listed and watched over HTTP, the issuer's documents, Events.

mod api;
mod continuation;
pub mod pod;
mod selector;
mod status;
mod store;
mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::clock;
use crate::gate::{Gate, Turnstile};
use crate::issuer::Issuer;
use crate::listener::Listener;
use store::Store;
use watch::Signals;

/// Of the loopback interface.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A running API server. Pods are created and changed through its methods, read through HTTP.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    state: Arc<State>,
    listener: Listener,
    /// Whose certificate it has, where it speaks TLS.
    authority: Option<Authority>,
}

/// What the methods and the HTTP side share.
struct State {
    issuer: Issuer,
    store: Store,
    signals: Signals,
    board: Mutex<Board>,
    /// Number of changes on the board, so that those who wait look again.
    changes: tokio::sync::watch::Sender<u64>,
}

/// What clients did, and how they are treated.
#[derive(Default)]
struct Board {
    requests: Vec<String>,
    events: Vec<Value>,
    watches: usize,
    bearer: Option<String>,
    /// Path prefixes whose requests queue.
    held: Vec<(String, Turnstile)>,
}

impl Cluster {
    /// Listens on a free loopback port and answers until the last handle is dropped.
    pub async fn start(issuer: &Issuer) -> io::Result<Self> {
        Self::start_at(issuer, ANY_PORT).await
    }

    /// The same at an address of the caller's.
    pub async fn start_at(issuer: &Issuer, address: SocketAddr) -> io::Result<Self> {
        Self::serve(issuer, address, None).await
    }

    /// Listens on a free loopback port and speaks TLS, with a certificate of this authority. [`Self::kubeconfig`] has
    /// its reader trust that.
    pub async fn start_with_tls(issuer: &Issuer, authority: &Authority) -> io::Result<Self> {
        Self::serve(issuer, ANY_PORT, Some(authority.clone())).await
    }

    async fn serve(issuer: &Issuer, address: SocketAddr, authority: Option<Authority>) -> io::Result<Self> {
        let state = Arc::new(State {
            issuer: issuer.clone(),
            store: Store::default(),
            signals: Signals::default(),
            board: Mutex::default(),
            changes: tokio::sync::watch::Sender::default(),
        });
        let serving = state.clone();
        let handler = move |request| api::answer(serving.clone(), request);
        let listener = Listener::start(address, authority.as_ref(), handler).await?;
        Ok(Self(Arc::new(Inner { state, listener, authority })))
    }

    /// The API server's URL, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        self.0.listener.url()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.0.listener.port()
    }

    /// A kubeconfig for this API server, with the bearer token if one is required.
    pub fn kubeconfig(&self) -> String {
        let user = match &self.0.state.board().bearer {
            Some(token) => json!({ "token": token }),
            None => json!({}),
        };
        let mut cluster = json!({ "server": self.url() });
        if let Some(authority) = &self.0.authority {
            cluster["certificate-authority-data"] = STANDARD.encode(authority.pem()).into();
        }
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "sandbox", "cluster": cluster }],
            "users": [{ "name": "sandbox", "user": user }],
            "contexts": [{ "name": "sandbox", "context": { "cluster": "sandbox", "user": "sandbox" } }],
            "current-context": "sandbox",
        });
        format!("{config:#}\n")
    }

    // Pods.

    /// Creates a pod, or replaces the one of the same name, and returns it as stored: with a uid, a creation time
    /// and a resource version. A pod with another uid than the one of that name takes its place: a deletion, then a
    /// creation.
    pub fn apply(&self, pod: Value) -> Value {
        self.0.state.store.apply(pod)
    }

    /// Deletes a pod at once, as with a grace period of zero. Returns its last state, if it was there.
    pub fn delete(&self, namespace: &str, name: &str) -> Option<Value> {
        self.0.state.store.delete(namespace, name)
    }

    /// Begins a graceful deletion: sets `deletionTimestamp`.
    pub fn terminate(&self, namespace: &str, name: &str) -> Option<Value> {
        let deletion = json!({
            "metadata": { "deletionTimestamp": clock::iso8601(clock::now()), "deletionGracePeriodSeconds": 30 }
        });
        self.patch(namespace, name, &deletion)
    }

    /// Replaces a pod's status.
    pub fn set_status(&self, namespace: &str, name: &str, status: Value) -> Option<Value> {
        self.0.state.store.update(namespace, name, |pod| pod["status"] = status)
    }

    /// Changes a pod by a JSON merge patch (RFC 7386).
    pub fn patch(&self, namespace: &str, name: &str, patch: &Value) -> Option<Value> {
        self.0.state.store.update(namespace, name, |pod| store::merge(pod, patch))
    }

    /// Binds a pod to a node, as the scheduler does.
    pub fn bind(&self, namespace: &str, name: &str, node: &str) -> Option<Value> {
        self.patch(namespace, name, &json!({ "spec": { "nodeName": node } }))
    }

    /// Gives a pod its address and lets it run, in one event as the kubelet reports both.
    pub fn set_running(&self, namespace: &str, name: &str, addresses: &[&str]) -> Option<Value> {
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": { "phase": "Running", "podIP": addresses.first(), "podIPs": ips } });
        self.patch(namespace, name, &status)
    }

    /// Sets a pod's phase and nothing else.
    pub fn set_phase(&self, namespace: &str, name: &str, phase: &str) -> Option<Value> {
        self.patch(namespace, name, &json!({ "status": { "phase": phase } }))
    }

    /// A pod as stored.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Value> {
        self.0.state.store.get(namespace, name)
    }

    /// The resource version of the latest change.
    pub fn resource_version(&self) -> u64 {
        self.0.state.store.version()
    }

    // Faults.

    /// Closes every connection and refuses new ones, or listens again on the same port. Done when it returns.
    pub async fn set_outage(&self, outage: bool) -> io::Result<()> {
        self.0.listener.set_outage(outage).await
    }

    /// Forgets the history, as etcd's compaction does: whoever asks for a resource version of before gets 410.
    /// Watches that are up to date go on; with [`Self::close_watches`] they come back with a version too old.
    pub fn compact(&self) {
        self.0.state.store.compact();
    }

    /// Ends every watch in order, as a watch's timeout does, without a bookmark.
    pub fn close_watches(&self) {
        self.0.state.signals.close();
    }

    /// Ends every watch with the `ERROR` event of an expired resource version.
    pub fn expire_watches(&self) {
        self.0.state.signals.expire();
    }

    /// Sends a bookmark with the latest resource version on every watch that allows bookmarks.
    pub fn send_bookmarks(&self) {
        self.0.state.signals.bookmark();
    }

    /// Requires this bearer token from now on, or none.
    pub fn require_bearer(&self, token: Option<&str>) {
        self.0.state.board().bearer = token.map(str::to_owned);
    }

    /// Makes requests whose path begins with `prefix` queue from now on, until the gate lets them through.
    #[must_use = "a dropped gate is open"]
    pub fn hold(&self, prefix: &str) -> Gate {
        let (gate, turnstile) = Gate::closed();
        self.0.state.board().held.push((prefix.to_owned(), turnstile));
        gate
    }

    // The record.

    /// Every request so far, in order: method, path and query, such as `GET /api/v1/pods?watch=true`.
    pub fn requests(&self) -> Vec<String> {
        self.0.state.board().requests.clone()
    }

    /// Waits until the record of requests is as `condition` says.
    pub async fn wait_for_requests(&self, mut condition: impl FnMut(&[String]) -> bool) {
        self.0.state.wait_until(|| condition(&self.requests())).await;
    }

    /// Number of watches open now.
    pub fn watches(&self) -> usize {
        self.0.state.board().watches
    }

    /// Waits until exactly this many watches are open.
    pub async fn wait_for_watches(&self, count: usize) {
        self.0.state.wait_until(|| self.watches() == count).await;
    }

    /// Every Event posted so far, each in its latest state.
    pub fn events(&self) -> Vec<Value> {
        self.0.state.board().events.clone()
    }

    /// Waits until the Events are as `condition` says.
    pub async fn wait_for_events(&self, mut condition: impl FnMut(&[Value]) -> bool) {
        self.0.state.wait_until(|| condition(&self.events())).await;
    }
}

impl State {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the board and tells those who wait.
    fn note<R>(&self, change: impl FnOnce(&mut Board) -> R) -> R {
        let result = change(&mut self.board());
        self.changes.send_modify(|changes| *changes += 1);
        result
    }

    /// Waits until `condition` holds; it is asked again after each change of the board.
    async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let mut changes = self.changes.subscribe();
        while !condition() {
            changes.changed().await.expect("the sender lives in self");
        }
    }
}
