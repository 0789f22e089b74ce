//! Without the API server the daemon serves what it knows; without STS, what it holds.

use rolecall_sandbox::{cluster::pod::PodBuilder, world::World};

use super::app::{TestApp, pod};

const OWN: &str = "/v1/credentials";

#[tokio::test]
async fn without_the_api_server_what_is_known_is_served_and_exchanged() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    app.world.cluster.set_outage(true).await.unwrap();
    while app.metric("rolecall_pod_watch_connected").await != 0.0 {}
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    // A rotated token is in the kubelet's file, for which nobody has to be asked.
    orders.write_token().unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    app.world.cluster.set_outage(false).await.unwrap();
    let later = app.world.pod(pod("later").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.3", &later).await, "200 orders");
    assert_eq!(app.metric("rolecall_pod_watch_connected").await, 1.0);
}

#[tokio::test]
async fn a_watch_that_was_compacted_away_lists_anew() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let gone = app.world.pod(pod("gone").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.3", &gone).await, "200 orders");
    app.world.cluster.set_outage(true).await.unwrap();
    gone.delete();
    let fresh = app.world.pod(pod("fresh").ip("127.0.0.3")).unwrap();
    app.world.cluster.compact();
    app.world.cluster.set_outage(false).await.unwrap();
    // No delete was seen: only the list can tell that the one has gone and the other has its address.
    assert_eq!(app.ask("127.0.0.3", &fresh).await, "200 orders");
    assert_eq!(app.ask("127.0.0.3", &gone).await, "403 pod_finished");
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn a_daemon_that_starts_without_the_api_server_waits_for_it() {
    let world = World::start().await.unwrap();
    world.cluster.set_outage(true).await.unwrap();
    let app = TestApp::not_ready(world, "").await;
    let mut client = app.client("127.0.0.2").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    client.ask(OWN, Some(&orders.token().unwrap())).await;
    app.world.cluster.set_outage(false).await.unwrap();
    assert_eq!(client.reply().await.outcome(), "200 orders");
    app.app.ready().await;
}

#[tokio::test]
async fn a_daemon_that_is_alone_listens_once_it_knows_its_pods() {
    let world = World::start().await.unwrap();
    let orders = world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let pods = world.cluster.hold("/api/v1/pods");
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = format!("--listen={address}");
    let nobody_listens = async {
        let is_list = |request: &String| request.starts_with("GET /api/v1/pods");
        world.cluster.wait_for_requests(|requests| requests.iter().any(is_list)).await;
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it listens and knows nobody");
        pods.release_all();
    };
    let (app, ()) = tokio::join!(TestApp::not_ready(world.clone(), &flags), nobody_listens);
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn without_sts_what_is_held_is_served() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let before = app.get("127.0.0.2", OWN, Some(&token)).await;
    app.world.sts.set_outage(true).await.unwrap();
    assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.body, before.body);
    // A pod that comes now waits for STS, and gets its credentials when that is back.
    let late = app.world.pod(pod("late").ip("127.0.0.3")).unwrap();
    let mut client = app.client("127.0.0.3").await;
    client.ask(OWN, Some(&late.token().unwrap())).await;
    client.read_until(|text| text.contains("\r\n\r\n")).await;
    app.world.sts.set_outage(false).await.unwrap();
    assert_eq!(client.reply().await.outcome(), "200 orders");
}

#[tokio::test]
async fn credentials_are_renewed_beside_and_swapped() {
    let world = World::start().await.unwrap();
    // About the shortest that can be handed out at all; half of their life is over soon.
    world.sts.set_session_seconds(Some(70));
    let app = TestApp::with(world, "").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let first = app.get("127.0.0.2", OWN, Some(&token)).await;
    assert_eq!(first.outcome(), "200 orders");
    let mut pause = tokio::time::interval(std::time::Duration::from_millis(100));
    while app.world.sts.call_count() < 2 || app.get("127.0.0.2", OWN, Some(&token)).await.body == first.body {
        pause.tick().await;
    }
    assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.outcome(), "200 orders");
}

#[tokio::test]
async fn pods_of_other_nodes_are_none_of_ours() {
    let app = TestApp::start().await;
    let elsewhere =
        PodBuilder::new("shop", "elsewhere").role(super::app::ROLE).node("another-node").ip("127.0.0.9");
    let other = app.world.pod(elsewhere).unwrap();
    let reply = app.get("127.0.0.2", OWN, Some(&other.token().unwrap())).await;
    assert_eq!(reply.outcome(), "403 token_invalid");
    assert!(reply.json()["message"].as_str().unwrap().contains("another node"), "{}", reply.text());
    assert_eq!(app.world.sts.call_count(), 0);
}
