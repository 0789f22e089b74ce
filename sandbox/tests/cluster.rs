//! The cluster as a Kubernetes client, unmodified, finds it; and its answers line by line.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::pin::pin;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use rolecall_sandbox::{Algorithm, Authority, Cluster, Issuer, PodBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ISSUER: &str = "https://kubernetes.default.svc";

async fn cluster() -> Cluster {
    Cluster::start(&Issuer::new(ISSUER, Algorithm::Es256)).await.unwrap()
}

async fn client(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::all(client(cluster).await)
}

fn pod(name: &str) -> PodBuilder {
    PodBuilder::new("demo", name).node("node-a")
}

async fn get(cluster: &Cluster, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get_json(cluster: &Cluster, path: &str) -> (u16, Value) {
    let (status, body) = get(cluster, path).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// What a watch says in all, one word an event; the request sets a timeout of no time.
async fn watch_to_its_end(cluster: &Cluster, query: &str) -> Vec<String> {
    let path = format!("/api/v1/pods?watch=true&timeoutSeconds=0&{query}");
    let (status, body) = get(cluster, &path).await;
    assert_eq!(status, 200, "{body}");
    let lines = body.split("\r\n").filter(|line| line.starts_with('{'));
    lines
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            let object = &event["object"];
            let name = object["metadata"]["name"].as_str().or(object["reason"].as_str());
            format!("{} {}", event["type"].as_str().unwrap(), name.unwrap_or("-"))
        })
        .collect()
}

fn word(event: &watcher::Event<Pod>) -> String {
    match event {
        watcher::Event::Apply(pod) => format!("apply {}", pod.name_any()),
        watcher::Event::Delete(pod) => format!("delete {}", pod.name_any()),
        watcher::Event::Init => "init".to_owned(),
        watcher::Event::InitApply(pod) => format!("init {}", pod.name_any()),
        watcher::Event::InitDone => "done".to_owned(),
    }
}

/// The next events of a watcher, errors left out: those it recovers from by itself.
async fn next<S>(stream: &mut S, count: usize) -> Vec<String>
where
    S: futures_util::Stream<Item = watcher::Result<watcher::Event<Pod>>> + Unpin,
{
    let events = stream.filter_map(async |event| event.ok().as_ref().map(word));
    events.take(count).collect().await
}

fn follow(
    api: Api<Pod>,
    config: watcher::Config,
) -> impl futures_util::Stream<Item = watcher::Result<watcher::Event<Pod>>> {
    watcher(api, config.fields("spec.nodeName=node-a"))
}

// Watching.

async fn check_a_watcher_follows(config: watcher::Config) {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    cluster.apply(pod("b").node("node-b").build());
    let mut stream = pin!(follow(pods(&cluster).await, config));
    assert_eq!(next(&mut stream, 3).await, ["init", "init a", "done"]);

    cluster.apply(PodBuilder::new("demo", "c").build());
    cluster.bind("demo", "c", "node-a").unwrap();
    cluster.set_running("demo", "c", &["10.0.0.3", "fd00::3"]).unwrap();
    cluster.bind("demo", "b", "node-c").unwrap();
    cluster.terminate("demo", "a").unwrap();
    cluster.delete("demo", "a").unwrap();
    assert_eq!(next(&mut stream, 4).await, ["apply c", "apply c", "apply a", "delete a"]);
}

#[tokio::test]
async fn a_watcher_follows_by_list_and_watch() {
    check_a_watcher_follows(watcher::Config::default()).await;
}

#[tokio::test]
async fn a_watcher_follows_by_streaming_lists() {
    check_a_watcher_follows(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn a_watcher_pages_through_a_long_list() {
    let cluster = cluster().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.apply(pod(name).build());
    }
    let mut stream = pin!(follow(pods(&cluster).await, watcher::Config::default().page_size(2)));
    let events = next(&mut stream, 7).await;
    assert_eq!(events, ["init", "init a", "init b", "init c", "init d", "init e", "done"]);
    let lists = cluster.requests().iter().filter(|request| request.contains("limit=2")).count();
    assert_eq!(lists, 3);
}

#[tokio::test]
async fn a_closed_watch_is_resumed_without_a_new_list() {
    let cluster = cluster().await;
    let mut stream = pin!(follow(pods(&cluster).await, watcher::Config::default()));
    assert_eq!(next(&mut stream, 2).await, ["init", "done"]);
    cluster.apply(pod("a").build());
    assert_eq!(next(&mut stream, 1).await, ["apply a"]);
    cluster.close_watches();
    cluster.apply(pod("b").build());
    assert_eq!(next(&mut stream, 1).await, ["apply b"]);
    let lists = cluster.requests().iter().filter(|request| !request.contains("watch=true")).count();
    assert_eq!(lists, 1, "{:?}", cluster.requests());
}

#[tokio::test]
async fn a_watcher_lists_anew_after_a_compaction() {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    let mut stream = pin!(follow(pods(&cluster).await, watcher::Config::default()));
    assert_eq!(next(&mut stream, 3).await, ["init", "init a", "done"]);
    cluster.apply(pod("b").build());
    assert_eq!(next(&mut stream, 1).await, ["apply b"]);

    cluster.delete("demo", "a").unwrap();
    cluster.compact();
    cluster.close_watches();
    // The old watch may or may not have told of the deletion before it ended.
    let mut events = next(&mut stream, 1).await;
    if events == ["delete a"] {
        events = next(&mut stream, 1).await;
    }
    assert_eq!(events, ["init"]);
    assert_eq!(next(&mut stream, 2).await, ["init b", "done"]);
}

#[tokio::test]
async fn an_expired_watch_makes_a_watcher_list_anew() {
    let cluster = cluster().await;
    let mut stream = pin!(follow(pods(&cluster).await, watcher::Config::default()));
    assert_eq!(next(&mut stream, 2).await, ["init", "done"]);
    // The watch begins when its stream is asked for the next event.
    let mut after = Box::pin(next(&mut stream, 2));
    tokio::select! {
        events = &mut after => panic!("{events:?}"),
        () = cluster.wait_for_watches(1) => {}
    }
    cluster.expire_watches();
    assert_eq!(after.await, ["init", "done"]);
}

#[tokio::test]
async fn a_watcher_survives_an_outage_and_sees_what_it_missed() {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    let mut stream = pin!(follow(pods(&cluster).await, watcher::Config::default()));
    assert_eq!(next(&mut stream, 3).await, ["init", "init a", "done"]);
    cluster.set_outage(true).await.unwrap();
    cluster.apply(pod("b").build());
    assert!(stream.next().await.unwrap().is_err());
    cluster.set_outage(false).await.unwrap();
    assert_eq!(next(&mut stream, 1).await, ["apply b"]);
    assert_eq!(cluster.watches(), 1);
}

#[tokio::test]
async fn watches_are_counted_while_they_are_open() {
    let cluster = cluster().await;
    let mut stream = pods(&cluster).await.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    cluster.apply(pod("a").build());
    stream.next().await.unwrap().unwrap();
    cluster.wait_for_watches(1).await;
    drop(stream);
    cluster.wait_for_watches(0).await;
}

#[tokio::test]
async fn bookmarks_go_to_those_who_allow_them_and_carry_the_latest_version() {
    let cluster = cluster().await;
    let api = pods(&cluster).await;
    let version = cluster.resource_version().to_string();
    let nodes = WatchParams::default().fields("spec.nodeName=node-a");
    let mut with = api.watch(&nodes, &version).await.unwrap().boxed();
    let mut without = api.watch(&nodes.clone().disable_bookmarks(), &version).await.unwrap().boxed();
    cluster.apply(pod("b").node("node-b").build());
    cluster.wait_for_watches(2).await;
    cluster.send_bookmarks();
    match with.try_next().await.unwrap().unwrap() {
        WatchEvent::Bookmark(bookmark) => {
            assert_eq!(bookmark.metadata.resource_version, cluster.resource_version().to_string());
        }
        other => panic!("{other:?}"),
    }
    cluster.apply(pod("a").build());
    assert!(matches!(without.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
}

#[tokio::test]
async fn a_watch_from_a_compacted_version_ends_with_gone() {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    let version = cluster.resource_version().to_string();
    cluster.compact();
    let mut stream = pods(&cluster).await.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    match stream.try_next().await.unwrap().unwrap() {
        WatchEvent::Error(error) => assert_eq!((error.code, error.reason.as_str()), (410, "Expired")),
        other => panic!("{other:?}"),
    }
    assert!(stream.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_that_is_up_to_date_outlives_a_compaction() {
    let cluster = cluster().await;
    let version = cluster.resource_version().to_string();
    let mut stream = pods(&cluster).await.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    cluster.apply(pod("a").build());
    assert!(matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    cluster.compact();
    cluster.apply(pod("b").build());
    assert!(matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
}

#[tokio::test]
async fn what_a_watch_says_depends_on_where_it_begins() {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    let begin = cluster.resource_version();
    cluster.apply(pod("b").build());
    cluster.bind("demo", "a", "node-b").unwrap();
    cluster.delete("demo", "b").unwrap();

    assert_eq!(watch_to_its_end(&cluster, "").await, ["ADDED a"]);
    let since = format!("resourceVersion={begin}");
    assert_eq!(watch_to_its_end(&cluster, &since).await, ["ADDED b", "MODIFIED a", "DELETED b"]);
    let selected = format!("{since}&fieldSelector=spec.nodeName%3Dnode-a");
    assert_eq!(watch_to_its_end(&cluster, &selected).await, ["ADDED b", "DELETED a", "DELETED b"]);
    let entered = format!("{since}&fieldSelector=spec.nodeName%3Dnode-b&allowWatchBookmarks=true");
    assert_eq!(watch_to_its_end(&cluster, &entered).await, ["ADDED a", "BOOKMARK -"]);
    assert_eq!(watch_to_its_end(&cluster, "resourceVersion=1").await, ["ERROR Expired"]);
    assert_eq!(watch_to_its_end(&cluster, "resourceVersion=99999").await, ["ERROR Timeout"]);
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    assert_eq!(watch_to_its_end(&cluster, initial).await, ["ADDED a", "BOOKMARK -", "BOOKMARK -"]);
    let (status, _) = get(&cluster, "/api/v1/pods?watch=true&sendInitialEvents=true").await;
    assert_eq!(status, 422);
}

// Listing.

#[tokio::test]
async fn pages_are_of_one_moment_and_expire_with_the_history() {
    let cluster = cluster().await;
    for name in ["a", "b", "c"] {
        cluster.apply(pod(name).build());
    }
    let api = pods(&cluster).await;
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(1));
    cluster.delete("demo", "c");
    let token = first.metadata.continue_.unwrap();
    let rest = ListParams::default().limit(2).continue_token(&token);
    let second = api.list(&rest).await.unwrap();
    assert_eq!(second.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["c"]);
    assert_eq!(second.metadata.continue_, None);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    cluster.compact();
    match api.list(&rest).await.unwrap_err() {
        kube::Error::Api(status) => assert_eq!(status.code, 410),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn lists_take_selectors_namespaces_and_versions() {
    let cluster = cluster().await;
    cluster.apply(pod("a").build());
    cluster.apply(PodBuilder::new("other", "b").node("node-b").build());
    let version = cluster.resource_version();
    for (path, expect) in [
        ("/api/v1/pods".to_owned(), vec!["a", "b"]),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-b".to_owned(), vec!["b"]),
        ("/api/v1/namespaces/demo/pods".to_owned(), vec!["a"]),
        ("/api/v1/pods?resourceVersion=0".to_owned(), vec!["a", "b"]),
        (format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=Exact"), vec!["a", "b"]),
        (format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=NotOlderThan"), vec!["a", "b"]),
    ] {
        let (status, list) = get_json(&cluster, &path).await;
        assert_eq!((status, list["kind"].as_str()), (200, Some("PodList")), "{path}: {list}");
        assert_eq!(list["metadata"]["resourceVersion"], version.to_string());
        let names: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expect, "{path}");
    }
    for (path, expect) in [
        ("/api/v1/pods?resourceVersion=1&resourceVersionMatch=Exact", 410),
        ("/api/v1/pods?resourceVersion=99999", 504),
        ("/api/v1/pods?continue=x", 400),
        ("/api/v1/pods?fieldSelector=spec.image%3Dx", 400),
        ("/api/v1/pods?labelSelector=a%3Db", 400),
        ("/api/v1/namespaces/demo/pods/none", 404),
        ("/api/v1/secrets", 404),
    ] {
        let (status, object) = get_json(&cluster, path).await;
        assert_eq!((status, &object["kind"]), (expect, &json!("Status")), "{path}");
        assert_eq!(object["code"], expect, "{path}");
    }
}

#[tokio::test]
async fn one_pod_is_read_as_it_was_built() {
    let cluster = cluster().await;
    cluster.apply(
        pod("orders")
            .role("arn:aws:iam::111122223333:role/orders")
            .service_account("orders")
            .ip("10.0.0.1")
            .build(),
    );
    let api: Api<Pod> = Api::namespaced(client(&cluster).await, "demo");
    let pod = api.get("orders").await.unwrap();
    let annotations = pod.annotations();
    assert_eq!(annotations["rolecall.dev/role-arn"], "arn:aws:iam::111122223333:role/orders");
    assert_eq!(annotations["rolecall.dev/token"], "required");
    let spec = pod.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("orders"));
    let volume = &spec.volumes.as_ref().unwrap()[0];
    let token = volume.projected.as_ref().unwrap().sources.as_ref().unwrap()[0]
        .service_account_token
        .clone()
        .unwrap();
    assert_eq!((volume.name.as_str(), token.path.as_str()), ("rolecall-token", "token"));
    assert_eq!(token.audience.as_deref(), Some("sts.amazonaws.com"));
    let env = spec.containers[0].env.as_ref().unwrap();
    assert_eq!(env[0].name, "AWS_CONTAINER_CREDENTIALS_FULL_URI");
    assert_eq!(env[0].value.as_deref(), Some("http://169.254.170.23/v1/credentials"));
    assert_eq!(pod.status.unwrap().pod_ips.unwrap()[0].ip, "10.0.0.1");
}

// The rest of the API.

#[tokio::test]
async fn the_issuers_documents_and_the_version_are_served() {
    let issuer = Issuer::new(ISSUER, Algorithm::Es256);
    let cluster = Cluster::start(&issuer).await.unwrap();
    assert_eq!(get_json(&cluster, "/openid/v1/jwks").await, (200, issuer.jwks()));
    issuer.rotate_key(Algorithm::Es256);
    let (_, jwks) = get_json(&cluster, "/openid/v1/jwks").await;
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
    let (_, document) = get_json(&cluster, "/.well-known/openid-configuration").await;
    assert_eq!(document["issuer"], ISSUER);
    let version = client(&cluster).await.apiserver_version().await.unwrap();
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
}

#[tokio::test]
async fn events_of_a_recorder_are_kept_and_counted_up() {
    let cluster = cluster().await;
    let recorder = Recorder::new(client(&cluster).await, "rolecall-daemon".into());
    let about = ObjectReference {
        namespace: Some("demo".to_owned()),
        name: Some("orders".to_owned()),
        kind: Some("Pod".to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: "StolenToken".to_owned(),
        note: Some("a token came from elsewhere".to_owned()),
        action: "Refused".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &about).await.unwrap();
    recorder.publish(&event, &about).await.unwrap();
    cluster.wait_for_events(|events| events.len() == 1 && events[0]["series"]["count"] == 2).await;
    let events = cluster.events();
    assert_eq!(events[0]["reason"], "StolenToken");
    assert_eq!(events[0]["metadata"]["namespace"], "demo");
}

#[tokio::test]
async fn a_required_bearer_token_is_in_the_kubeconfig_and_asked_for() {
    let cluster = cluster().await;
    let anonymous = pods(&cluster).await;
    cluster.require_bearer(Some("s3cret"));
    match anonymous.list(&ListParams::default()).await.unwrap_err() {
        kube::Error::Api(status) => assert_eq!(status.code, 401),
        other => panic!("{other}"),
    }
    pods(&cluster).await.list(&ListParams::default()).await.unwrap();
    cluster.require_bearer(None);
    anonymous.list(&ListParams::default()).await.unwrap();
}

#[tokio::test]
async fn requests_for_a_path_can_be_held() {
    let cluster = cluster().await;
    let gate = cluster.hold("/openid/");
    let held = {
        let cluster = cluster.clone();
        tokio::spawn(async move { get(&cluster, "/openid/v1/jwks").await.0 })
    };
    cluster.wait_for_requests(|requests| requests == ["GET /openid/v1/jwks"]).await;
    assert_eq!(get(&cluster, "/version").await.0, 200);
    assert!(!held.is_finished());
    gate.release_one();
    assert_eq!(held.await.unwrap(), 200);
}

#[tokio::test]
async fn the_last_handle_closes_the_port() {
    let cluster = cluster().await;
    let port = cluster.port();
    let mut open = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    drop(cluster.clone());
    assert_eq!(get(&cluster, "/readyz").await.0, 200);
    drop(cluster);
    assert!(matches!(open.read(&mut [0; 8]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn the_kubeconfig_of_a_cluster_with_tls_has_its_reader_trust_it() {
    let issuer = Issuer::new(ISSUER, Algorithm::Es256);
    let cluster = Cluster::start_with_tls(&issuer, &Authority::new()).await.unwrap();
    assert!(cluster.url().starts_with("https://"));
    cluster.apply(pod("orders-0").build());
    let listed = pods(&cluster).await.list(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items[0].name_any(), "orders-0");
}
