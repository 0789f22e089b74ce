//! The taint on a node that others change too, on paused time.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use tower::service_fn;

use super::*;

fn key() -> TaintKey {
    "rolecall.dev/agent-not-ready".parse().unwrap()
}

fn ours(effect: &str) -> Value {
    json!({"key": "rolecall.dev/agent-not-ready", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"})
}

fn other(name: &str) -> Value {
    json!({"key": name, "value": "x", "effect": "NoSchedule"})
}

/// A node at an API server that applies patches as the real one does.
#[derive(Clone, Default)]
struct Node(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    taints: Vec<Value>,
    /// What another controller does between a look and the patch after it.
    meanwhile: Vec<Vec<Value>>,
    /// The status of every answer, in place of the true one.
    status: Option<u16>,
    asked: Vec<Method>,
}

impl Node {
    fn with(taints: &[Value]) -> Self {
        let node = Self::default();
        node.0.lock().unwrap().taints = taints.to_vec();
        node
    }

    fn taints(&self) -> Vec<Value> {
        self.0.lock().unwrap().taints.clone()
    }

    fn asked(&self) -> Vec<Method> {
        self.0.lock().unwrap().asked.clone()
    }

    fn answer(&self, method: Method, body: &[u8]) -> (u16, Value) {
        let mut state = self.0.lock().unwrap();
        state.asked.push(method.clone());
        let failure = |code: u16| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code}),
            )
        };
        if let Some(status) = state.status {
            return failure(status);
        }
        let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
            "spec": {"taints": state.taints}});
        if method == Method::GET {
            if let Some(taints) = state.meanwhile.pop() {
                state.taints = taints;
            }
            return (200, node);
        }
        let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
        if json_patch::patch(&mut node, &patch).is_err() {
            return failure(422);
        }
        state.taints = node["spec"]["taints"].as_array().unwrap().clone();
        (200, node)
    }

    fn client(&self) -> Client {
        let node = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let node = node.clone();
            async move {
                let (head, body) = request.into_parts();
                assert_eq!(head.uri.path(), "/api/v1/nodes/node-1");
                let body = body.collect().await.expect("a body in memory").to_bytes();
                let (status, answer) = node.answer(head.method, &body);
                let response =
                    Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        Client::new(service, "default")
    }

    /// Keeps the taint off for a while.
    async fn keep_off(&self, readiness: &Readiness, time: Duration) {
        let taint = StartupTaint::new(
            self.client(),
            "node-1".to_owned(),
            key(),
            readiness.clone(),
            Metrics::default(),
        );
        let _ = timeout(time, taint.keep_off()).await;
    }
}

#[test]
fn a_key_is_a_name_with_or_without_a_prefix() {
    for good in ["rolecall.dev/agent-not-ready", "not-ready", "a.b-c/D.e_f", "x"] {
        assert_eq!(good.parse::<TaintKey>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "a/",
        "/a",
        "a/b/c",
        "A/b",
        "a_b/c",
        "key=value",
        "key:NoSchedule",
        "-a",
        "a-",
        "a b",
        &"x".repeat(64),
    ] {
        assert_eq!(bad.parse::<TaintKey>(), Err(TaintKeyError), "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_effect_of_the_key_is_taken_off_and_nothing_else() {
    let near = other("rolecall.dev/agent-not-ready-2");
    let node = Node::with(&[ours("NoSchedule"), other("a"), ours("NoExecute"), near.clone()]);
    node.keep_off(&Readiness::default(), FIRST_PAUSE).await;
    assert_eq!(node.taints(), [other("a"), near]);
    assert_eq!(node.asked(), [Method::GET, Method::PATCH]);
}

#[tokio::test(start_paused = true)]
async fn what_others_do_to_the_taints_meanwhile_is_never_undone() {
    let node = Node::with(&[other("a"), ours("NoSchedule")]);
    // First another taint comes in front, then the one in front goes: the place of ours is another each time.
    node.0.lock().unwrap().meanwhile =
        vec![vec![ours("NoSchedule"), other("b")], vec![other("b"), other("a"), ours("NoSchedule")]];
    node.keep_off(&Readiness::default(), LOOK_AGAIN / 4).await;
    assert_eq!(node.taints(), [other("b")]);
    let (get, patch) = (Method::GET, Method::PATCH);
    assert_eq!(node.asked(), [&get, &patch, &get, &patch, &get, &patch].map(Clone::clone));
}

#[tokio::test(start_paused = true)]
async fn the_node_is_left_alone_until_the_daemon_is_ready() {
    let node = Node::with(&[ours("NoSchedule")]);
    let readiness = Readiness::default();
    let latch = readiness.latch("pods synced");
    node.keep_off(&readiness, 10 * LOOK_AGAIN).await;
    assert_eq!(node.asked(), [] as [Method; 0]);
    drop(latch);
    node.keep_off(&readiness, FIRST_PAUSE).await;
    assert_eq!(node.taints(), [] as [Value; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_registered_anew_is_freed_anew() {
    let node = Node::with(&[ours("NoSchedule")]);
    let anew = async {
        sleep(3 * LOOK_AGAIN).await;
        assert_eq!(node.taints(), [] as [Value; 0]);
        node.0.lock().unwrap().taints = vec![ours("NoSchedule"), other("a")];
    };
    let ready = Readiness::default();
    tokio::join!(node.keep_off(&ready, 5 * LOOK_AGAIN), anew);
    assert_eq!(node.taints(), [other("a")]);
    let looks = node.asked().iter().filter(|method| **method == Method::GET).count();
    assert!((5..=11).contains(&looks), "once a minute or twice: {looks}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_ever_more_rarely() {
    let node = Node::with(&[ours("NoSchedule")]);
    node.0.lock().unwrap().status = Some(403);
    let mended = async {
        sleep(60 * LOOK_AGAIN).await;
        let asked = node.asked().len();
        assert!((60..=130).contains(&asked), "{asked}");
        node.0.lock().unwrap().status = None;
    };
    let ready = Readiness::default();
    tokio::join!(node.keep_off(&ready, 62 * LOOK_AGAIN), mended);
    assert_eq!(node.taints(), [] as [Value; 0]);
}
