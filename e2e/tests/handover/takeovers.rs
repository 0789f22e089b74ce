//! Hand-overs that come about.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use nix::sys::signal::Signal;
use rolecall_process::probe::{self, Question};
use serde_json::json;

use super::{
    load::Load,
    node::{LIMIT, Node, until_exists},
    peer::Peer,
};

/// How often in a row.
const ROUNDS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_hand_overs_in_a_row_fail_no_request_and_ask_sts_for_nothing() {
    let node = Node::new().await;
    let pods: Vec<_> = (0..8).map(|number| node.pod(&format!("orders-{number}"))).collect();
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    let mut serving = node.start(&[]).await;
    node.warm(&pods).await;
    let load = Load::start(node.endpoint, &tokens);
    for round in 0..ROUNDS {
        let next = node.start(&[]).await;
        next.logged("took over from the daemon before").await;
        next.logged("keys=8").await;
        serving.logged("what is under way is finished here").await;
        assert!(!serving.is_ready().await && serving.is_alive().await, "round {round}");
        load.wait_for(16).await;
        serving.stop().await;
        serving = next;
        assert_eq!(load.failures(), [""; 0], "round {round}");
    }
    let (answered, failures) = load.stop().await;
    assert_eq!(failures, [""; 0], "of {answered}");
    assert_eq!(node.world.sts.call_count(), pods.len(), "one exchange for each pod, ever");
    assert!(16 * ROUNDS <= answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanges_that_are_out_serve_those_who_wait_at_either_daemon() {
    let node = Node::new().await;
    // No second attempt at a silent STS: the first is what is counted.
    let patient = ["--sts-hedge-after=2m", "--sts-attempt-timeout=2m"];
    let old = node.start(&patient).await;
    let gate = node.world.sts.hold();
    let pods: Vec<_> = (0..4).map(|number| node.pod(&format!("orders-{number}"))).collect();
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    node.world.sts.wait_for_requests(4).await;
    let at_the_old = Load::start(node.endpoint, &tokens);
    until_waiting(&node, 8.0).await;
    let new = node.start(&patient).await;
    new.logged("took over from the daemon before").await;
    let at_the_new = Load::start(node.endpoint, &tokens);
    until_waiting(&node, 8.0).await;
    gate.release_all();
    at_the_old.wait_for(8).await;
    at_the_new.wait_for(8).await;
    assert_eq!((at_the_old.stop().await.1, at_the_new.stop().await.1), (vec![], vec![]));
    let log = new.process.logs();
    assert!(!log.contains("assumed role"), "{log}");
    old.stop().await;
    assert_eq!(node.world.sts.call_count(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_out_outlives_the_order_to_end_although_nobody_has_asked_yet() {
    let node = Node::new().await;
    let patient = ["--sts-hedge-after=2m", "--sts-attempt-timeout=2m"];
    let old = node.start(&patient).await;
    let gate = node.world.sts.hold();
    let pods: Vec<_> = (0..4).map(|number| node.pod(&format!("orders-{number}"))).collect();
    node.world.sts.wait_for_requests(4).await;
    let new = node.start(&patient).await;
    // As the kubelet does once the new one is ready.
    old.process.signal(Signal::SIGTERM).unwrap();
    old.logged("end with the exchanges that the next daemon waits for exchanges=4").await;
    gate.release_all();
    assert!(old.process.exit(LIMIT).await.unwrap().success());
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    let at_the_new = Load::start(node.endpoint, &tokens);
    at_the_new.wait_for(8).await;
    assert_eq!(at_the_new.stop().await.1, [""; 0]);
    let log = new.process.logs();
    assert!(!log.contains("assumed role"), "{log}");
    assert_eq!(node.world.sts.call_count(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_take_the_sockets_and_fetch_anew() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    let mut serving = node.start(&[]).await;
    node.warm(&pods).await;
    let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
    // Another session is another key; another region is another cache.
    for (flag, offer) in
        [("--session-duration=30m", "has_cache=true"), ("--region=eu-west-1", "has_cache=false")]
    {
        let exchanges = node.world.sts.call_count();
        load.wait_for(4).await;
        let next = node.start(&[flag]).await;
        serving.logged("offer to hand over").await;
        serving.logged(offer).await;
        load.wait_for(8).await;
        serving.stop().await;
        serving = next;
        assert!(serving.is_ready().await);
        assert_eq!(node.world.sts.call_count(), exchanges + 1, "{flag}");
    }
    assert_eq!(load.stop().await.1, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_daemon_waits_to_be_stopped_and_its_pod_does_not_take_over_again() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    let old = node.start(&[]).await;
    node.warm(&pods).await;
    let new = node.start(&[]).await;
    old.logged("handed over to the next daemon").await;
    let answer = probe::ask(&Question::Ready, &old.socket).await.unwrap();
    assert!(!answer.good && answer.text.contains("handed over to the next daemon"), "{}", answer.text);
    assert!(old.is_alive().await && old.process.is_running().unwrap());
    // It crashes, and the kubelet starts its container again.
    old.process.kill().unwrap();
    let again = node.spawn_again("daemon-1", &[]);
    again.logged("standing by until that is gone").await;
    let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
    load.wait_for(20).await;
    assert_eq!(load.stop().await.1, [""; 0]);
    assert!(!again.is_ready().await && again.is_alive().await && new.is_ready().await);
    assert_eq!(node.world.sts.call_count(), 1);
    // With the other gone it is the one.
    new.process.kill().unwrap();
    again.is_ready_soon().await;
    let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
    load.wait_for(4).await;
    assert_eq!(load.stop().await.1, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_daemon_without_an_api_server_waits_and_the_old_one_serves() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    let old = node.start(&[]).await;
    node.warm(&pods).await;
    node.world.cluster.set_outage(true).await.unwrap();
    let new = node.spawn(&[]);
    until_exists(&new.socket, true).await;
    let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
    load.wait_for(50).await;
    assert!(old.is_ready().await && !new.is_ready().await);
    node.world.cluster.set_outage(false).await.unwrap();
    new.is_ready_soon().await;
    load.wait_for(4).await;
    assert_eq!(load.stop().await.1, [""; 0]);
    assert_eq!(node.world.sts.call_count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_of_two_versions_do_not_hand_over_and_each_starts_cold() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    let old = node.start(&[]).await;
    node.warm(&pods).await;
    let mut newer = Peer::connect(&node.handover_socket());
    newer.say_hello(2);
    let refusal = newer.hear().unwrap();
    assert!(refusal["Refuse"]["reason"].as_str().unwrap().contains("starts cold"), "{refusal}");
    assert!(newer.hear().is_none() && old.is_ready().await);
    old.stop().await;
    assert!(!node.handover_socket().exists());

    // The other way round: the one that serves is of another version.
    let listener = UnixListener::bind(node.handover_socket()).unwrap();
    let endpoint = std::net::TcpListener::bind(node.endpoint).unwrap();
    let new = node.spawn(&[]);
    Peer::accept(&listener).say(&json!({"Refuse": {"reason": "of another version"}}));
    new.logged("of another version").await;
    assert!(!new.is_ready().await && new.is_alive().await);
    drop((listener, endpoint));
    new.is_ready_soon().await;
    node.world.sts.wait_for_requests(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_alone_reaches_the_socket() {
    let node = Node::new().await;
    let _daemon = node.start(&[]).await;
    let path = node.handover_socket();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.as_path()), mode(path.parent().unwrap())), (0o600, 0o700));
}

/// Waits until `count` requests wait for credentials at the daemon that serves.
async fn until_waiting(node: &Node, count: f64) {
    let name = "rolecall_connections_open";
    let waited = async {
        while metric(node, name).await < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.unwrap();
}

async fn metric(node: &Node, name: &str) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(node.metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}
