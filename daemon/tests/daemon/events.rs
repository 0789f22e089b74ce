//! Events on pods that get no credentials: what is told, on whom, how often.

use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    world::{ISSUER_URL, World},
};
use serde_json::Value;

use super::app::{ROLE, TestApp, pod};

const OWN: &str = "/v1/credentials";

/// Waits for the Event on the pod of this name with this reason, and returns its note.
async fn told(app: &TestApp, pod: &str, reason: &str) -> String {
    let is_it = |event: &&Value| {
        event["regarding"]["name"] == pod && event["reason"] == reason && event["type"] == "Warning"
    };
    app.world.cluster.wait_for_events(|events| events.iter().any(|event| is_it(&event))).await;
    let events = app.world.cluster.events();
    let event = events.iter().find(is_it).unwrap();
    assert_eq!(event["regarding"]["uid"], app.world.cluster.get("shop", pod).unwrap()["metadata"]["uid"]);
    event["note"].as_str().unwrap().to_owned()
}

/// The reasons of all Events on a pod so far.
fn reasons(app: &TestApp, pod: &str) -> Vec<String> {
    let events = app.world.cluster.events();
    let of_pod = events.iter().filter(|event| event["regarding"]["name"] == pod);
    of_pod.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_denied_pod_is_told_which_condition_of_the_trust_policy_to_look_at_and_once() {
    let app = TestApp::start().await;
    let orders = app.world.prepare(pod("orders").ip("127.0.0.2"));
    orders.register();
    orders.write_token().unwrap();
    // Before it has asked for anything.
    let note = told(&app, "orders", "StsDenied").await;
    let issuer = ISSUER_URL.strip_prefix("https://").unwrap();
    for part in [
        ROLE,
        &format!("arn:aws:iam::111122223333:oidc-provider/{issuer}"),
        &format!("{issuer}:sub is system:serviceaccount:shop:orders"),
        &format!("{issuer}:aud is sts.amazonaws.com"),
        "AWS says: Not authorized",
    ] {
        assert!(note.contains(part), "no {part} in {note}");
    }
    // Every refusal is one more occurrence; another pod's Event comes after all of them.
    for _ in 0..10 {
        assert_eq!(app.ask("127.0.0.2", &orders).await, "403 sts_denied");
    }
    app.world.pod(PodBuilder::new("shop", "none").ip("127.0.0.3")).unwrap();
    while app.get("127.0.0.3", OWN, None).await.outcome() != "404 no_role" {}
    told(&app, "none", "NoRole").await;
    assert_eq!(reasons(&app, "orders"), ["StsDenied"]);
    assert_eq!(app.metric("rolecall_events_total{outcome=\"written\"}").await, 2.0);
}

#[tokio::test]
async fn a_stolen_token_is_told_on_both_pods() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let thief = app.world.pod(pod("thief").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.ask("127.0.0.3", &thief).await, "200 orders");
    assert_eq!(app.ask("127.0.0.3", &orders).await, "403 wrong_pod");
    let note = told(&app, "orders", "TokenStolen").await;
    assert!(note.contains("The pod shop/thief, at 127.0.0.3, sent this pod's token"), "{note}");
    let note = told(&app, "thief", "ForeignToken").await;
    assert!(note.contains("the pod shop/orders"), "{note}");
    let token = orders.token().unwrap();
    let events = serde_json::to_string(&app.world.cluster.events()).unwrap();
    assert!(token.split('.').all(|part| !events.contains(part)), "{events}");
}

#[tokio::test]
async fn what_a_pod_lacks_is_told_before_it_asks_or_when_it_does() {
    let app = TestApp::with(World::start().await.unwrap(), "--caller-wait=1s").await;
    let wrong =
        PodBuilder::new("shop", "wrong").annotation("rolecall.dev/role-arn", "orders").ip("127.0.0.2");
    app.world.pod(wrong).unwrap();
    app.world.pod(pod("bare").without_token_volume().ip("127.0.0.3")).unwrap();
    assert!(told(&app, "wrong", "RoleMalformed").await.contains("not a bare role name"));
    assert!(told(&app, "bare", "NoTokenVolume").await.contains("Create it again"));
    // Its volume is mounted by no container, so the kubelet never writes the token.
    let unmounted = app.world.prepare(pod("unmounted").token_optional().ip("127.0.0.4"));
    unmounted.trust();
    unmounted.register();
    assert_eq!(app.get("127.0.0.4", OWN, None).await.outcome(), "503 pod_unknown");
    assert!(told(&app, "unmounted", "TokenMissing").await.contains("a container mounts the volume"));
    // What is no token is no news to STS.
    let broken = app.world.prepare(pod("broken"));
    broken.register();
    broken.write(&"t".repeat(20 * 1024)).unwrap();
    assert!(told(&app, "broken", "TokenMissing").await.contains("larger than 16 KiB"));
}

#[tokio::test]
async fn a_role_that_is_changed_to_no_role_at_all_is_told() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    let patch =
        serde_json::json!({"metadata": {"annotations": {"rolecall.dev/role-arn": "arn:aws:iam::1:role/x"}}});
    app.world.cluster.patch("shop", "orders", &patch);
    assert!(told(&app, "orders", "RoleMalformed").await.contains("12 digits"));
}

#[tokio::test]
async fn an_api_server_that_takes_no_events_makes_no_request_wait() {
    let app = TestApp::start().await;
    let gate = app.world.cluster.hold("/apis/events.k8s.io");
    app.world.pod(PodBuilder::new("shop", "none").ip("127.0.0.2")).unwrap();
    let orders = app.world.pod(pod("orders").ip("127.0.0.3")).unwrap();
    while app.get("127.0.0.2", OWN, None).await.outcome() != "404 no_role" {}
    app.world.cluster.wait_for_requests(|all| all.iter().any(|it| it.starts_with("POST"))).await;
    assert_eq!(app.get("127.0.0.2", OWN, None).await.outcome(), "404 no_role");
    assert_eq!(app.ask("127.0.0.3", &orders).await, "200 orders");
    assert!(app.world.cluster.events().is_empty());
    gate.release_all();
    told(&app, "none", "NoRole").await;
}

#[tokio::test]
async fn events_can_be_turned_off() {
    let app = TestApp::with(World::start().await.unwrap(), "--events=off").await;
    let none = PodBuilder::new("shop", "none").ip("127.0.0.2");
    app.world.pod(none).unwrap();
    while app.get("127.0.0.2", OWN, None).await.outcome() != "404 no_role" {}
    let last = app.world.pod(pod("last").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.3", &last).await, "200 orders");
    assert!(app.world.cluster.requests().iter().all(|request| !request.contains("events")));
}
