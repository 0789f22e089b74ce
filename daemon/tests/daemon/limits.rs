//! One pod cannot make another wait, and no burst ends the service.

use std::time::Duration;

use rolecall_sandbox::{sts::Call, world::World};

use super::{
    app::{TestApp, pod},
    client::{Client, End},
};

const OWN: &str = "/v1/credentials";

#[tokio::test]
async fn a_pod_with_too_many_connections_is_told_so_and_no_other() {
    let flags = "--max-connections-per-pod=4 --max-waiting-per-pod=4";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reports = app.world.pod(pod("reports").ip("127.0.0.3")).unwrap();
    let token = orders.token().unwrap();
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = app.client("127.0.0.2").await;
        assert_eq!(client.get(OWN, Some(&token)).await.outcome(), "200 orders");
        open.push(client);
    }
    let mut over = Vec::new();
    for _ in 0..4 {
        over.push(app.client("127.0.0.2").await);
    }
    for client in &mut over {
        let reply = client.get(OWN, Some(&token)).await;
        assert_eq!(reply.outcome(), "503 too_many_requests");
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(client.end().await, End::Closed);
    }
    assert_eq!(app.ask("127.0.0.3", &reports).await, "200 orders");
    drop(open);
    while app.metric("rolecall_connections_open").await != 0.0 {}
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn a_pod_with_far_too_many_connections_is_cut_off() {
    let flags = "--max-connections-per-pod=2 --max-waiting-per-pod=2";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(app.client("127.0.0.2").await);
    }
    assert_eq!(app.client("127.0.0.2").await.end().await, End::Reset);
    assert_eq!(app.metric("rolecall_connections_cut_off_total").await, 1.0);
}

#[tokio::test]
async fn a_pod_with_too_many_waiting_requests_is_told_so_and_no_other() {
    let app = TestApp::with(World::start().await.unwrap(), "--max-waiting-per-pod=3").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reports = app.world.pod(pod("reports").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.3", &reports).await, "200 orders");
    let gate = app.world.sts.hold();
    let late = app.world.pod(pod("late").ip("127.0.0.4")).unwrap();
    let token = late.token().unwrap();
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..3 {
        let mut client = app.client("127.0.0.4").await;
        client.ask(OWN, Some(&token)).await;
        client.read_until(|text| text.contains("\r\n\r\n")).await;
        waiting.push(client);
    }
    let refused = app.get("127.0.0.4", OWN, Some(&token)).await;
    assert_eq!(refused.outcome(), "503 too_many_requests");
    assert_eq!(app.ask("127.0.0.3", &reports).await, "200 orders");
    assert_eq!(
        app.ask("127.0.0.2", &orders).await,
        "200 orders",
        "its credentials were warm before the gate"
    );
    gate.release_all();
    for client in &mut waiting {
        assert_eq!(client.reply().await.outcome(), "200 orders");
    }
}

#[tokio::test]
async fn a_pod_that_asks_too_often_is_slowed_down_and_no_other() {
    let app = TestApp::with(World::start().await.unwrap(), "--max-requests-per-second-per-pod=5").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reports = app.world.pod(pod("reports").ip("127.0.0.3")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    loop {
        let reply = client.get(OWN, Some(&token)).await;
        if reply.status != 200 {
            assert_eq!(reply.outcome(), "503 too_many_requests");
            break;
        }
    }
    assert_eq!(app.ask("127.0.0.3", &reports).await, "200 orders");
}

#[tokio::test]
async fn an_address_does_not_hand_down_what_its_pod_asked_too_often() {
    let app = TestApp::with(World::start().await.unwrap(), "--max-requests-per-second-per-pod=1").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    while app.ask("127.0.0.2", &orders).await != "503 too_many_requests" {}
    orders.delete();
    let next = app.world.pod(pod("next").ip("127.0.0.2")).unwrap();
    has_seen(&app, "shop.next").await;
    assert_eq!(app.ask("127.0.0.2", &next).await, "200 orders");
}

#[tokio::test]
async fn a_pod_does_not_take_the_limits_of_its_addresss_next_owner_along() {
    let flags = "--max-connections-per-pod=4 --max-waiting-per-pod=4";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let former = app.world.pod(pod("former").ip("127.0.0.2")).unwrap();
    former.set_phase("Succeeded");
    while app.ask("127.0.0.2", &former).await != "403 pod_finished" {}
    let next = app.world.pod(pod("next").ip("127.0.0.2")).unwrap();
    let token = next.token().unwrap();
    assert_eq!(app.ask("127.0.0.2", &next).await, "200 orders");
    while app.metric("rolecall_connections_open").await != 0.0 {}
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = app.client("127.0.0.2").await;
        assert_eq!(client.get(OWN, Some(&token)).await.outcome(), "200 orders");
        open.push(client);
    }
    // Its object goes long after its address, as that of a Job's pod does.
    former.delete();
    app.world.pod(pod("later").ip("127.0.0.3")).unwrap();
    has_seen(&app, "shop.later").await;
    assert_eq!(app.ask("127.0.0.2", &next).await, "503 too_many_requests");
}

/// Waits until the daemon has asked for this session: the watch is in order, so it knows all that happened before.
async fn has_seen(app: &TestApp, session: &str) {
    let is_seen = |call: &Call| call.session_name.as_deref() == Some(session);
    while !app.world.sts.calls().iter().any(is_seen) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let app = TestApp::with(World::start().await.unwrap(), "--header-timeout=200ms").await;
    let mut client = app.client("127.0.0.2").await;
    client.send("GET /v1/credentials HTTP/1.1\r\nHost: x\r\n").await;
    client.end().await;
    let mut silent = app.client("127.0.0.2").await;
    silent.end().await;
}

#[tokio::test]
async fn the_node_itself_cannot_take_the_last_place() {
    let flags = "--max-connections=8 --max-connections-per-pod=4 --max-waiting-per-pod=4";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = app.client("127.0.0.1").await;
        assert_eq!(client.get("/", None).await.outcome(), "404 not_found");
        held.push(client);
    }
    assert_eq!(app.client("127.0.0.1").await.end().await, End::Reset);
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn addresses_of_nobody_cannot_take_the_last_place() {
    let flags = "--max-connections=8 --max-connections-per-pod=4 --max-waiting-per-pod=4";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    // By now its address is known.
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    let mut held = Vec::new();
    for last in 10..14 {
        let mut client = app.client(&format!("127.0.0.{last}")).await;
        assert_eq!(client.get("/", None).await.outcome(), "404 not_found");
        held.push(client);
    }
    assert_eq!(app.client("127.0.0.14").await.end().await, End::Reset);
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    drop(held.pop());
    while app.metric("rolecall_connections_open").await != 3.0 {}
    assert_eq!(app.get("127.0.0.14", "/", None).await.outcome(), "404 not_found");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let app = TestApp::with(World::start().await.unwrap(), "--header-timeout=500ms").await;
    let mut client = app.client("127.0.0.2").await;
    // Requests without end, whose answers nobody reads: when the buffers are full the daemon waits, but not for ever.
    let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    while client.try_send(&requests).await {}
    assert_eq!(app.metric("rolecall_connections_open").await, 0.0);
}

/// Connections of two pods that together take all places of eight.
async fn all_eight_places(app: &TestApp) -> Vec<Client> {
    let mut held = Vec::new();
    for (name, address) in [("orders", "127.0.0.2"), ("reports", "127.0.0.3")] {
        let pod = app.world.pod(pod(name).ip(address)).unwrap();
        // By now its address is known.
        assert_eq!(app.ask(address, &pod).await, "200 orders");
        while app.metric("rolecall_connections_open").await != held.len() as f64 {}
        for _ in 0..4 {
            let mut client = app.client(address).await;
            assert_eq!(client.get("/", None).await.outcome(), "404 not_found");
            held.push(client);
        }
    }
    held
}

#[tokio::test]
async fn a_connection_above_the_limit_of_all_waits_for_one_to_end() {
    let flags = "--max-connections=8 --max-connections-per-pod=4 --max-waiting-per-pod=4";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let mut held = all_eight_places(&app).await;
    let mut waiting = app.client("127.0.0.4").await;
    waiting.ask("/", None).await;
    // Those that have a place are served all the while.
    for client in &mut held {
        assert_eq!(client.get("/", None).await.outcome(), "404 not_found");
    }
    assert_eq!(app.metric("rolecall_connections_open").await, 8.0);
    assert!(!waiting.has_received(), "it has no place yet");
    drop(held.pop());
    assert_eq!(waiting.reply().await.outcome(), "404 not_found");
    assert_eq!(app.metric("rolecall_connections_cut_off_total").await, 0.0);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_place_among_the_connections() {
    // None of these ends in the time of the test.
    let flags = "--max-connections=8 --max-connections-per-pod=4 --max-waiting-per-pod=4 --header-timeout=300s \
                 --drain-deadline=300s";
    let app = TestApp::with(World::start().await.unwrap(), flags).await;
    let mut held = all_eight_places(&app).await;
    let drained = tokio::time::timeout(Duration::from_secs(60), app.app.drain()).await;
    assert!(drained.is_ok(), "every place is taken, and the listener still waits for one");
    for client in &mut held {
        assert_eq!(client.end().await, End::Closed);
    }
}
