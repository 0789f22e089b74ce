//! Events at an API server that does as it is told, on paused time.

use std::{convert::Infallible, future::pending};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;
use crate::events::{Notice, OutcomeLabel, Reason};

/// The answers of the API server: a status, or silence.
type Answer = fn(&str) -> Option<(u16, Value)>;

/// What was asked of it: method, path, body.
type Asked = Arc<Mutex<Vec<(Method, String, Value)>>>;

struct Fixture {
    events: Events,
    metrics: Metrics,
    asked: Asked,
    publisher: BoxFuture<'static, ()>,
}

impl Fixture {
    fn new(answer: Answer) -> Self {
        let asked = Asked::default();
        let record = asked.clone();
        let service = service_fn(move |request: Request<Body>| {
            let asked = record.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body in memory").to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let path = head.uri.path().to_owned();
                asked.lock().unwrap().push((head.method, path.clone(), body.clone()));
                let Some((status, answer)) = answer(&path) else { return pending().await };
                let answer = if status == 201 { body } else { answer };
                let response =
                    Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        let metrics = Metrics::default();
        let issuer = || Some("https://oidc.example/id/1".to_owned());
        let node = "n".repeat(200);
        let client = Client::new(service, "default");
        let (publisher, events) =
            Publisher::new(client, &node, issuer, "sts.amazonaws.com".to_owned(), metrics.clone());
        Self { events, metrics, asked, publisher: publisher.run().boxed() }
    }

    /// Lets the publisher work for a while.
    async fn pass(&mut self, time: Duration) {
        let _ = timeout(time, &mut self.publisher).await;
    }

    fn counted(&self, outcome: &'static str) -> u64 {
        self.metrics.events.get_or_create(&OutcomeLabel { outcome }).get()
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn pod(name: &str) -> PodIdentity {
    PodIdentity {
        uid: name.parse().unwrap(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "orders".into(),
    }
}

fn status(code: u16, causes: Value) -> Option<(u16, Value)> {
    let details = json!({"causes": causes});
    Some((
        code,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": "Forbidden", "message": "no", "details": details}),
    ))
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_event_is_created_with_all_that_the_api_asks_for_and_told_once() {
    let mut fixture = Fixture::new(|_| Some((201, Value::Null)));
    let thief = pod("thief");
    let stolen = Notice::TokenStolen { by: Some(thief), from: "10.0.0.9".parse().unwrap() };
    for _ in 0..3 {
        fixture.events.tell(&pod("orders"), stolen.clone());
    }
    fixture.pass(SECOND).await;
    let asked = fixture.asked.lock().unwrap().clone();
    let [(method, path, event)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((method, path.as_str()), (&Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events"));
    assert_eq!(event["reason"], "TokenStolen");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["action"], "ProvideCredentials");
    assert_eq!(event["reportingController"], "rolecall.dev/daemon");
    assert_eq!(event["reportingInstance"].as_str().unwrap().len(), 128);
    let reference = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": name, "uid": name});
    assert_eq!(event["regarding"], reference("orders"));
    assert_eq!(event["related"], reference("thief"));
    assert!(event["note"].as_str().unwrap().contains("shop/thief"), "{event}");
    assert_eq!(fixture.counted("written"), 1);

    // Later it is a new one, for which no right to patch is needed.
    tokio::time::advance(Duration::from_secs(3600)).await;
    fixture.events.tell(&pod("orders"), stolen);
    fixture.pass(SECOND).await;
    assert_eq!(fixture.counted("written"), 2);
    assert!(fixture.asked.lock().unwrap().iter().all(|(method, ..)| method == Method::POST));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_told_at_its_next_occurrence() {
    let mut fixture = Fixture::new(|_| status(503, json!([])));
    for written in 1..=2 {
        fixture.events.tell(&pod("orders"), Notice::NoRole);
        fixture.pass(SECOND).await;
        assert_eq!((fixture.asked(), fixture.counted("failed")), (written, written as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_silent_holds_up_nobody_and_costs_no_memory() {
    let mut fixture =
        Fixture::new(|path| if path.contains("slow") { None } else { Some((201, Value::Null)) });
    let slow = PodIdentity { namespace: "slow".into(), ..pod("first") };
    fixture.events.tell(&slow, Notice::NoRole);
    fixture.pass(SECOND).await;
    fixture.events.tell(&pod("second"), Notice::NoRole);
    assert_eq!((fixture.counted("written"), fixture.counted("failed")), (0, 0));
    fixture.pass(PATIENCE).await;
    assert_eq!((fixture.counted("written"), fixture.counted("failed")), (1, 1));
    // Nobody takes from the queue any more; the pace alone lets more through in time than it holds.
    for n in 0..200 {
        fixture.events.tell(&pod(&format!("pod-{n}")), Notice::NoRole);
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert_eq!(fixture.counted("dropped"), 200 - 64);
}

#[test]
fn why_it_failed_is_known_where_it_makes_a_difference() {
    let of = |code, causes| {
        let (_, status) = status(code, causes).unwrap();
        Failure::of(&kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
    };
    assert_eq!(of(403, json!([])), Failure::Forbidden);
    assert_eq!(of(403, json!([{"reason": "NamespaceTerminating"}])), Failure::NamespaceEnds);
    assert_eq!(of(422, json!([])), Failure::Refused);
    assert_eq!(of(429, json!([])), Failure::Unreachable);
    assert_eq!(of(503, json!([])), Failure::Unreachable);
    assert_eq!(Notice::NoRole.reason(), Reason::NoRole);
}
