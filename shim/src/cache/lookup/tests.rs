//! Tests in paused time, with an API server that is a function.

use std::{
    collections::VecDeque,
    sync::Mutex,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use kube::{
    client::Body,
    core::{ObjectMeta, PartialObjectMetaExt},
    runtime::watcher,
};
use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::cache::service_accounts::Writer;

struct Fixture {
    lookup: Lookup,
    writer: Writer,
    requests: Arc<AtomicUsize>,
    _trigger: drain::Trigger,
}

/// What the API server does: after how long, and whether it has the ServiceAccount.
#[derive(Clone, Copy)]
struct Answer {
    after: Duration,
    found: bool,
}

const GRACE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(9);

fn fixture(answers: &[Answer]) -> Fixture {
    let requests = Arc::new(AtomicUsize::new(0));
    let (counted, answers) = (requests.clone(), Arc::new(Mutex::new(VecDeque::from(answers.to_vec()))));
    let service = tower::service_fn(move |request: Request<Body>| {
        assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/serviceaccounts/orders");
        counted.fetch_add(1, Ordering::Relaxed);
        let answer = answers.lock().unwrap().pop_front().expect("another request than was foreseen");
        async move {
            sleep(answer.after).await;
            let (status, body) = match answer.found {
                true => (200, serde_json::to_vec(&object("role")).unwrap()),
                false => (404, br#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"not found","reason":"NotFound","code":404}"#.to_vec()),
            };
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(status).body(Body::from(body)).unwrap(),
            )
        }
    });
    let client = Client::new(service, "default");
    let (trigger, _) = drain::new();
    let prefix = Some("eks.amazonaws.com".to_owned());
    let (table, mut writer) = ServiceAccounts::new(prefix.clone());
    writer.apply(watcher::Event::Init);
    writer.apply(watcher::Event::InitDone);
    let config = Config { grace: GRACE };
    let lookup = Lookup::new(config, table, client, prefix, trigger.tasks(), Metrics::default());
    Fixture { lookup, writer, requests, _trigger: trigger }
}

fn object(role: &str) -> PartialObjectMeta<ServiceAccount> {
    ObjectMeta {
        namespace: Some("shop".to_owned()),
        name: Some("orders".to_owned()),
        annotations: Some([("eks.amazonaws.com/role-arn".to_owned(), role.to_owned())].into()),
        ..ObjectMeta::default()
    }
    .into_response_partial()
}

fn role(facts: Option<ServiceAccountFacts>) -> Option<String> {
    facts?.annotations.into_values().next()
}

#[tokio::test(start_paused = true)]
async fn one_that_was_made_a_moment_before_is_asked_for_once_by_all_who_wait() {
    let fixture = fixture(&[Answer { after: Duration::from_millis(100), found: true }]);
    let began = Instant::now();
    let find = || fixture.lookup.find("shop", "orders", PATIENCE);
    let (a, b, c) = tokio::join!(find(), find(), find());
    assert_eq!([role(a), role(b), role(c)], [const { Some("role") }; 3].map(|role| role.map(str::to_owned)));
    assert_eq!(began.elapsed(), Duration::from_millis(100));
    assert_eq!(role(find().await).as_deref(), Some("role"));
    assert_eq!(fixture.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_watch_may_be_faster_and_is_believed_afterwards() {
    let mut fixture = fixture(&[Answer { after: Duration::from_millis(900), found: true }]);
    let lookup = fixture.lookup.clone();
    let (found, ()) = tokio::join!(lookup.find("shop", "orders", PATIENCE), async {
        advance(Duration::from_millis(50)).await;
        fixture.writer.apply(watcher::Event::Apply(object("from the watch")));
    });
    assert_eq!(role(found).as_deref(), Some("from the watch"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(role(lookup.find("shop", "orders", PATIENCE).await).as_deref(), Some("from the watch"));
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_come_is_given_up_after_the_grace_period_or_the_callers_patience() {
    let fixture = fixture(&[Answer { after: Duration::ZERO, found: false }]);
    let began = Instant::now();
    assert_eq!(fixture.lookup.find("shop", "orders", PATIENCE).await, None);
    assert_eq!(began.elapsed(), GRACE);
    let patience = Duration::from_millis(300);
    assert_eq!(fixture.lookup.find("shop", "orders", patience).await, None);
    assert_eq!(began.elapsed(), GRACE + patience);
}

#[tokio::test(start_paused = true)]
async fn what_can_be_no_name_is_never_asked_for() {
    let fixture = fixture(&[]);
    for name in ["", "../secrets/x", "a b", "A", ".."] {
        assert_eq!(fixture.lookup.find("shop", name, PATIENCE).await, None, "{name}");
    }
    assert_eq!(fixture.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_deleted_and_made_anew_is_not_taken_for_the_former() {
    let found = Answer { after: Duration::from_millis(100), found: true };
    let missing = Answer { found: false, ..found };
    let mut fixture = fixture(&[found, missing, found]);
    let lookup = fixture.lookup.clone();
    let known = || role(lookup.known("shop", "orders"));

    assert_eq!(role(lookup.find("shop", "orders", PATIENCE).await).as_deref(), Some("role"));
    fixture.writer.apply(watcher::Event::Apply(object("from the watch")));
    assert_eq!(known().as_deref(), Some("from the watch"));
    fixture.writer.apply(watcher::Event::Delete(object("from the watch")));
    assert_eq!(known(), None);
    assert_eq!(lookup.find("shop", "orders", PATIENCE).await, None);

    // An answer that was under way while the watch told of the deletion is one from before it.
    fixture.writer.apply(watcher::Event::Delete(object("from the watch")));
    let (found, ()) = tokio::join!(lookup.find("shop", "orders", PATIENCE), async {
        advance(Duration::from_millis(50)).await;
        fixture.writer.apply(watcher::Event::Delete(object("from the watch")));
    });
    assert_eq!(found, None);
    assert_eq!(fixture.requests.load(Ordering::Relaxed), 3);
}
