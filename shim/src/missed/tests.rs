//! Tests in paused time, with an API server that is a function.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Method, Request, Response};
use kube::client::Body;
use rolecall_process::drain;
use serde_json::{Value, json};
use tokio::{sync::mpsc::UnboundedSender, time::sleep};

use super::*;
use crate::cache::{
    latest::Latest,
    lookup::{self, Lookup},
    service_accounts::{ServiceAccounts, Writer},
};

/// Longer than anything takes that follows from what just happened, and shorter than until the next sweep.
const A_WHILE: Duration = Duration::from_secs(600);

/// A continue token, or its absence.
type Token = Option<&'static str>;

/// What the API server has.
#[derive(Default)]
struct Server {
    pods: BTreeMap<String, Value>,
    /// The pages of the list, by the token that asks for each: names, the next token.
    pages: BTreeMap<Token, (Vec<String>, Token)>,
    /// The tokens that are refused once, with the status and the token to go on with.
    refused: BTreeMap<Token, (u16, Token)>,
    events: Vec<String>,
    events_refused: bool,
    /// The labels of every namespace.
    labels: BTreeMap<&'static str, &'static str>,
    /// The namespaceSelector and the objectSelector of the webhook's configuration.
    selectors: (Value, Value),
    selectors_refused: bool,
    requests: Vec<String>,
}

struct Fixture {
    server: Arc<Mutex<Server>>,
    watch: UnboundedSender<watcher::Result<watcher::Event<PodObject>>>,
    accounts: Writer,
    metrics: Metrics,
    trigger: drain::Trigger,
}

impl Fixture {
    /// The task that finds, beside `server`, whose watch has brought an empty list.
    async fn start(server: Server) -> Self {
        let server = Arc::new(Mutex::new(server));
        let shared = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let shared = shared.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap_or_default();
                let (status, body) = shared.lock().unwrap().answer(&parts.method, &parts.uri, &body);
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        let client = Client::new(service, "default");
        let (trigger, _) = drain::new();
        let (table, accounts) = ServiceAccounts::new(None);
        let config = lookup::Config { grace: Duration::ZERO };
        let metrics = lookup::Metrics::default();
        let service_accounts = Lookup::new(config, table, client.clone(), None, trigger.tasks(), metrics);
        let known = Known { service_accounts, config_map: Latest::default(), identities: Latest::default() };
        let metrics = Metrics::default();
        let clock = Clock::following_tokio(rolecall_process::time::from_unix_seconds(1_800_000_000));
        let configuration = "rolecall-shim".to_owned();
        let missed = Missed::new(known, Policy::default(), configuration, client, clock, metrics.clone());
        let (watch, mut events) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |context| events.poll_recv(context));
        let mut fixture = Self { server, watch, accounts, metrics, trigger };
        fixture.give_role("orders");
        fixture.trigger.tasks().spawn("missed injections", missed.run(stream));
        for event in [watcher::Event::Init, watcher::Event::InitDone] {
            fixture.watch.send(Ok(event)).unwrap();
        }
        sleep(A_WHILE).await;
        fixture
    }

    /// The pods of this ServiceAccount have a role from now on.
    fn give_role(&mut self, name: &str) {
        self.give_role_by("rolecall.dev/role-arn", name);
    }

    fn give_role_by(&mut self, annotation: &str, name: &str) {
        let role = (annotation.to_owned(), "arn:aws:iam::111122223333:role/orders".to_owned());
        let object = kube::core::ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            annotations: Some([role].into()),
            ..Default::default()
        };
        self.accounts
            .apply(watcher::Event::Apply(kube::core::PartialObjectMetaExt::into_response_partial(object)));
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    /// The API server removes the pod; the watch, which shows those that have not started, is silent.
    fn remove(&self, name: &str) -> Value {
        self.server().pods.remove(name).unwrap()
    }

    fn send(&self, event: fn(PodObject) -> watcher::Event<PodObject>, pod: &Value) {
        self.watch.send(Ok(event(serde_json::from_value(pod.clone()).unwrap()))).unwrap();
    }

    #[track_caller]
    fn check(&self, missed: i64, found: u64, events: &[&str]) {
        let server = self.server();
        let counted = (self.metrics.missed.get(), self.metrics.found.get());
        assert_eq!(counted, (missed, found), "{:?}", server.requests);
        assert_eq!(server.events, events);
    }

    fn lists(&self) -> usize {
        self.server().requests.iter().filter(|request| request.starts_with("GET /api/v1/pods?")).count()
    }
}

impl Server {
    fn with(pods: &[Value]) -> Self {
        let pods: BTreeMap<_, _> = pods.iter().map(|pod| (name_of(pod), pod.clone())).collect();
        let pages = [(None, (pods.keys().cloned().collect(), None))].into();
        Self { pods, pages, ..Self::default() }
    }

    fn answer(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> (u16, Value) {
        self.requests.push(format!("{method} {uri}"));
        let status = |code: u16, next: Token| {
            let reasons = [(403, "Forbidden"), (404, "NotFound"), (409, "AlreadyExists"), (410, "Expired")];
            let reason =
                reasons.iter().find(|(of, _)| *of == code).map_or("InternalError", |(_, reason)| *reason);
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": reason, "message": "no", "metadata": {"continue": next.unwrap_or_default()}}),
            )
        };
        let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        match (method, &path[..]) {
            (&Method::GET, ["api", "v1", "pods"]) => {
                let query = uri.query().unwrap_or_default();
                assert!(
                    query.contains("limit=200") && query.contains("status.phase%21%3DSucceeded"),
                    "{query}"
                );
                let token = query.split('&').find_map(|pair| pair.strip_prefix("continue="));
                let token = self.pages.keys().copied().find(|known| *known == token).unwrap();
                if let Some((code, next)) = self.refused.remove(&token) {
                    return status(code, next);
                }
                let (names, next) = &self.pages[&token];
                let items: Vec<&Value> = names.iter().filter_map(|name| self.pods.get(name)).collect();
                let next = next.unwrap_or_default();
                (
                    200,
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": next}, "items": items}),
                )
            }
            (&Method::GET, ["api", "v1", "namespaces", name]) => (
                200,
                json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"name": name, "labels": self.labels},
                }),
            ),
            (
                &Method::GET,
                [.., "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", name],
            ) => {
                assert_eq!(*name, "rolecall-shim");
                if self.selectors_refused {
                    return status(403, None);
                }
                let (namespaces, objects) = &self.selectors;
                let webhook = json!({
                    "name": "pods.rolecall.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                    "clientConfig": {}, "namespaceSelector": namespaces, "objectSelector": objects,
                });
                (200, json!({"metadata": {"name": name}, "webhooks": [webhook]}))
            }
            (&Method::GET, ["api", "v1", "namespaces", "shop", "pods", name]) => {
                self.pods.get(*name).map_or_else(|| status(404, None), |pod| (200, pod.clone()))
            }
            (&Method::POST, ["apis", "events.k8s.io", "v1", "namespaces", "shop", "events"]) => {
                if self.events_refused {
                    return status(403, None);
                }
                let event: Value = serde_json::from_slice(body).unwrap();
                let name = name_of(&event);
                if self.events.contains(&name) {
                    return status(409, None);
                }
                self.events.push(name);
                (201, event)
            }
            _ => panic!("{method} {uri}"),
        }
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// A pod of this ServiceAccount that runs and was not injected.
fn pod(name: &str, service_account: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("uid-of-{name}"),
            "creationTimestamp": "2027-01-15T07:59:00Z",
        },
        "spec": {"serviceAccountName": service_account, "containers": [{"name": "main", "image": "x"}]},
        "status": {"phase": "Running"},
    })
}

#[tokio::test(start_paused = true)]
async fn all_pages_are_turned_at_the_start_and_only_what_lacks_something_is_fetched() {
    let pods: Vec<Value> = (0..4).map(|index| pod(&format!("p{index}"), "orders")).collect();
    let mut injected = pods[0].clone();
    injected["spec"]["containers"][0]["env"] =
        json!([{"name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": "x"}]);
    let mut server = Server::with(&[injected, pods[1].clone(), pod("p2", "nobody"), pods[3].clone()]);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    server.pages =
        [(None, (names(&["p0", "p1"]), Some("two"))), (Some("two"), (names(&["p2", "p3"]), None))].into();
    let fixture = Fixture::start(server).await;
    fixture.check(2, 2, &["p1.uid-of-p1", "p3.uid-of-p3"]);
    assert_eq!((fixture.lists(), fixture.metrics.swept.get(), fixture.metrics.errors.get()), (2, 4, 0));
    let fetched = |name: &str| {
        let path = format!("GET /api/v1/namespaces/shop/pods/{name}");
        fixture.server().requests.contains(&path)
    };
    assert_eq!(["p0", "p1", "p2", "p3"].map(fetched), [false, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_fails_is_asked_for_again_and_a_list_that_expired_is_gone_on_with() {
    let mut server = Server::with(&[pod("p0", "orders"), pod("p1", "orders"), pod("p2", "orders")]);
    server.pages = [
        (None, (vec!["p0".to_owned()], Some("two"))),
        (Some("two"), (vec!["p1".to_owned()], Some("old"))),
        (Some("old"), (Vec::new(), None)),
        (Some("new"), (vec!["p2".to_owned()], None)),
    ]
    .into();
    server.refused = [(Some("two"), (500, None)), (Some("old"), (410, Some("new")))].into();
    let fixture = Fixture::start(server).await;
    fixture.check(3, 3, &["p0.uid-of-p0", "p1.uid-of-p1", "p2.uid-of-p2"]);
    assert_eq!((fixture.lists(), fixture.metrics.errors.get()), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pod_counts_no_more_once_it_is_gone_although_no_watch_tells() {
    let fixture = Fixture::start(Server::with(&[pod("p0", "orders")])).await;
    fixture.check(1, 1, &["p0.uid-of-p0"]);
    fixture.remove("p0");
    sleep(Duration::from_secs(60)).await;
    fixture.check(0, 1, &["p0.uid-of-p0"]);
    assert_eq!(fixture.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_watch_shows_a_pod_that_is_missed_while_the_shim_runs_and_its_end() {
    let fixture = Fixture::start(Server::with(&[])).await;
    let late = pod("late", "orders");
    fixture.server().pods.insert("late".to_owned(), late.clone());
    fixture.send(watcher::Event::Apply, &late);
    sleep(Duration::from_secs(5)).await;
    fixture.check(1, 1, &["late.uid-of-late"]);
    // It has started, which the watch shows as the end of what it watches.
    fixture.send(watcher::Event::Delete, &late);
    sleep(Duration::from_secs(5)).await;
    fixture.check(1, 1, &["late.uid-of-late"]);
    fixture.remove("late");
    fixture.send(watcher::Event::Delete, &late);
    sleep(Duration::from_secs(5)).await;
    fixture.check(0, 1, &["late.uid-of-late"]);
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_watch_brings_a_sweep_and_so_does_the_hour() {
    let mut fixture = Fixture::start(Server::with(&[])).await;
    assert_eq!(fixture.lists(), 1);
    {
        let mut server = fixture.server();
        server.pods.insert("p0".to_owned(), pod("p0", "orders"));
        server.pods.insert("p1".to_owned(), pod("p1", "later"));
        server.pages = [(None, (vec!["p0".to_owned(), "p1".to_owned()], None))].into();
    }
    for event in [watcher::Event::Init, watcher::Event::InitDone] {
        fixture.watch.send(Ok(event)).unwrap();
    }
    sleep(A_WHILE).await;
    fixture.check(1, 1, &["p0.uid-of-p0"]);
    assert_eq!(fixture.lists(), 2);
    fixture.give_role("later");
    sleep(Duration::from_secs(2 * 3600)).await;
    // The second is of an age at which nobody looks for news of it.
    fixture.check(2, 2, &["p0.uid-of-p0"]);
}

#[tokio::test(start_paused = true)]
async fn pods_count_though_nothing_may_be_told_and_are_told_once_it_may() {
    let mut server = Server::with(&[pod("p0", "orders"), pod("p1", "orders")]);
    server.events_refused = true;
    let fixture = Fixture::start(server).await;
    fixture.check(2, 2, &[]);
    fixture.server().events_refused = false;
    sleep(Duration::from_secs(60)).await;
    fixture.check(2, 2, &["p0.uid-of-p0", "p1.uid-of-p1"]);
    let told = || fixture.server().requests.iter().filter(|request| request.starts_with("POST")).count();
    let before = told();
    sleep(A_WHILE).await;
    assert_eq!(told(), before);
}

#[tokio::test(start_paused = true)]
async fn the_label_that_ships_leaves_a_namespace_out_where_the_webhooks_configuration_may_not_be_read() {
    for (label, missed) in [(("rolecall.dev/webhook", "disabled"), 0), (("rolecall.dev/webhook", "on"), 1)] {
        let mut server = Server::with(&[pod("p0", "orders")]);
        server.labels = [label].into();
        server.selectors_refused = true;
        let fixture = Fixture::start(server).await;
        assert_ne!(fixture.metrics.errors.get(), 0);
        fixture.check(missed, missed.unsigned_abs(), &["p0.uid-of-p0"][..usize::from(missed == 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_pods_that_the_webhook_itself_is_not_asked_about_are_missed_by_nobody() {
    let not_in = |key: &str, value: &str| json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]});
    for (selectors, missed) in [
        ((not_in("kubernetes.io/metadata.name", "shop"), json!({})), 0),
        ((json!({}), not_in("app", "orders")), 0),
        ((not_in("kubernetes.io/metadata.name", "other"), not_in("app", "other")), 1),
    ] {
        let mut late = pod("p0", "orders");
        late["metadata"]["labels"] = json!({"app": "orders"});
        let mut server = Server::with(&[late]);
        server.labels = [("kubernetes.io/metadata.name", "shop")].into();
        server.selectors = selectors;
        let fixture = Fixture::start(server).await;
        fixture.check(missed, missed.unsigned_abs(), &["p0.uid-of-p0"][..usize::from(missed == 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_the_webhook_leaves_out_from_now_on_is_known_to_be_within_a_minute() {
    let mut server = Server::with(&[pod("p0", "orders")]);
    server.labels = [("kubernetes.io/metadata.name", "shop")].into();
    let fixture = Fixture::start(server).await;
    fixture.check(1, 1, &["p0.uid-of-p0"]);
    let leaves_out = json!({"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["shop"]},
    ]});
    fixture.server().selectors = (leaves_out, json!({}));
    sleep(Duration::from_secs(61)).await;
    let late = pod("p1", "orders");
    fixture.server().pods.insert("p1".to_owned(), late.clone());
    fixture.send(watcher::Event::Apply, &late);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(fixture.server().events, ["p0.uid-of-p0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_which_one_container_alone_has_a_role_is_missed_too() {
    let mut fixture = Fixture::start(Server::with(&[])).await;
    let containers = json!([{"name": "main", "image": "x"}]);
    for (name, list, role_of, missed) in
        [("a", "containers", "main", 1), ("b", "initContainers", "main", 2), ("c", "containers", "absent", 2)]
    {
        fixture.give_role_by(&format!("rolecall.dev/role-arn.{role_of}"), name);
        let mut late = pod(name, name);
        late["spec"]["containers"] = json!([{"name": "other", "image": "x"}]);
        late["spec"][list] = containers.clone();
        fixture.server().pods.insert(name.to_owned(), late.clone());
        fixture.send(watcher::Event::Apply, &late);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.metrics.missed.get(), missed, "{name}");
    }
}
