//! What fifty thousand ServiceAccounts cost, through the watch as the API server feeds it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "figures and inputs are shown where a test fails, or by --nocapture")]

use std::{
    convert::Infallible,
    fs,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response};
use kube::{Client, client::Body};
use prometheus_client::registry::Registry;
use rolecall_process::readiness::Readiness;
use rolecall_shim::cache::service_accounts::{self, Metrics, ServiceAccounts};
use serde_json::json;
use tokio::sync::Notify;

const COUNT: usize = 50_000;

/// Most that one may cost, in bytes of the process: its name, its place in the table and, for one of five, a role.
const EACH: usize = 300;

/// How often they are listed.
const LISTS: usize = 3;

/// Most that reading the list may take beside: a page of it is in memory whole, as text and as objects.
const BESIDE: usize = 8 * 1024 * 1024;

/// Most of what kubectl and a chart leave on one is not kept: of four in five, only the name.
fn service_account(index: usize) -> String {
    let role = if index.is_multiple_of(5) {
        format!(
            r#""eks.amazonaws.com/role-arn":"arn:aws:iam::111122223333:role/team-{}/application-{index}","#,
            index % 100
        )
    } else {
        String::new()
    };
    let applied = "x".repeat(600);
    format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{{
            "namespace":"namespace-of-a-team-{}","name":"application-{index}","resourceVersion":"{index}",
            "uid":"00000000-0000-4000-8000-{index:012}","creationTimestamp":"2026-01-01T00:00:00Z",
            "annotations":{{{role}"kubectl.kubernetes.io/last-applied-configuration":"{applied}"}},
            "labels":{{"app.kubernetes.io/name":"application-{index}"}},
            "managedFields":[{{"manager":"helm","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1",
                "fieldsV1":{{"f:metadata":{{"f:annotations":{{}},"f:labels":{{}}}}}}}}]}}}}"#,
        index % 500
    )
}

/// An API server that forgets what a watch was about as soon as one begins, but for the last.
struct Server {
    watches: AtomicUsize,
    last: Notify,
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        // Without this, a real one would send whole objects.
        let accepted = request.headers()["accept"].to_str().unwrap();
        assert!(accepted.contains("as=PartialObjectMetadata"), "{accepted}");
        let query = request.uri().query().unwrap_or_default().to_owned();
        if query.contains("watch=true") {
            if self.watches.fetch_add(1, Ordering::Relaxed) + 1 == LISTS {
                self.last.notify_one();
                return std::future::pending().await;
            }
            let expired = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
                "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}});
            return Ok(Response::new(Body::from(format!("{expired}\n").into_bytes())));
        }
        let of = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
        let (first, limit) = (of("continue=").unwrap_or_default(), of("limit=").unwrap());
        let next = (first + limit).min(COUNT);
        let items: Vec<String> = (first..next).map(service_account).collect();
        let token = if next < COUNT { next.to_string() } else { String::new() };
        let list = format!(
            r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1",
                "metadata":{{"resourceVersion":"1","continue":"{token}"}},"items":[{}]}}"#,
            items.join(",")
        );
        Ok(Response::new(Body::from(list.into_bytes())))
    }
}

#[tokio::test]
async fn fifty_thousand_service_accounts_fit_into_fifteen_megabytes_however_often_they_are_listed() {
    let server = Arc::new(Server { watches: AtomicUsize::new(0), last: Notify::new() });
    let answering = server.clone();
    let client = Client::new(tower::service_fn(move |request| answering.clone().answer(request)), "default");
    let readiness = Readiness::default();
    let metrics = Metrics::register(&mut Registry::default());
    let stream = service_accounts::stream(client);
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    let (accounts, writer) = ServiceAccounts::new(Some("eks.amazonaws.com".to_owned()));
    let mut following = pin!(service_accounts::run(stream, writer, metrics, readiness.latch("synced")));
    tokio::select! {
        () = &mut following => panic!("the watch ended"),
        () = readiness.ready() => {}
    }
    let first = memory("VmRSS:") - before;
    tokio::select! {
        () = following => panic!("the watch ended"),
        () = server.last.notified() => {}
    }
    let (again, most) = (memory("VmRSS:") - before, memory("VmHWM:") - before);
    println!("{first} bytes for {COUNT} ServiceAccounts, {again} after {LISTS} lists, {most} at most");
    for kept in [first, again] {
        assert!(kept < COUNT * EACH + BESIDE / 2, "{kept} bytes for {COUNT} ServiceAccounts");
    }
    assert!(most < COUNT * EACH + BESIDE, "{most} bytes at most for {COUNT} ServiceAccounts");
    let facts = accounts.get("namespace-of-a-team-0", "application-0").unwrap();
    assert_eq!(facts.annotations.len(), 1);
    assert!(accounts.get("namespace-of-a-team-499", "application-49999").is_some());
}

/// Memory of this process in bytes: what is in use (`VmRSS:`), or was at most (`VmHWM:`).
fn memory(which: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
