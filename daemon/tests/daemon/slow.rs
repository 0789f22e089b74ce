//! The slow answer on the wire. The order of things is forced by STS's gate; nothing here measures time.

use rolecall_contract::endpoint::path_of;
use rolecall_sandbox::sts::{Behavior, TrustPolicy};

use super::{
    app::{TestApp, pod},
    client::End,
};

const OWN: &str = "/v1/credentials";

/// A head and some white space: the answer has begun.
fn has_begun(text: &str) -> bool {
    text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.contains("1\r\n \r\n"))
}

#[tokio::test]
async fn an_answer_is_begun_and_finished() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.ask(OWN, Some(&orders.token().unwrap())).await;
    let begun = client.read_until(has_begun).await;
    let (head, body) = begun.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(body, "1\r\n \r\n", "head and first space come together, and no more than one space");
    gate.release_all();
    let reply = client.reply().await;
    assert_eq!(reply.outcome(), "200 orders");
    assert!(reply.text().trim_start().starts_with('{') && reply.text().ends_with('}'));
    assert_eq!(app.metric("rolecall_slow_answers_total{stage=\"begun\"}").await, 1.0);
    assert_eq!(app.metric("rolecall_slow_answers_total{stage=\"finished\"}").await, 1.0);
    assert_eq!(app.metric("rolecall_requests_total{outcome=\"answered\"}").await, 1.0);
    assert_eq!(app.metric("rolecall_first_request_wait_seconds_count").await, 1.0);
    assert_eq!(app.metric("rolecall_request_duration_seconds_count").await, 1.0);
    assert_eq!(app.metric("rolecall_requests_in_progress").await, 0.0);
    assert_eq!(app.world.sts.call_count(), 1);
}

#[tokio::test]
async fn an_answer_is_begun_while_it_is_doubtful_who_asks() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").token_optional().ip("127.0.0.2")).unwrap();
    let ledger = "arn:aws:iam::111122223333:role/ledger";
    app.world.sts.trust(ledger, TrustPolicy::service_account(app.world.issuer.url(), "shop", "orders"));
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    let gate = app.world.sts.hold();
    let mut client = app.client("127.0.0.2").await;
    client.ask(&path_of(&ledger.parse().unwrap()), None).await;
    app.world.sts.wait_for_requests(2).await;
    // Another pod is known at its address before its credentials are there.
    let _billing = app.world.pod(pod("billing").ip("127.0.0.2")).unwrap();
    app.world.sts.wait_for_requests(3).await;
    gate.release_all();
    client.read_until(has_begun).await;
    assert_eq!(client.end().await, End::Reset);
}

#[tokio::test]
async fn the_connection_of_a_begun_answer_goes_on() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.ask(OWN, Some(&token)).await;
    client.read_until(has_begun).await;
    gate.release_all();
    let first = client.reply().await.text();
    let second = client.get(OWN, Some(&token)).await;
    assert_eq!(second.text(), first.trim_start());
    assert!(second.header("content-length").is_some());
}

#[tokio::test]
async fn a_request_that_was_sent_behind_one_that_waits_is_answered_after_it() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n");
    // In one packet, so that both are read at once; and one more, which comes while the first waits.
    let mut client = app.client("127.0.0.2").await;
    client.send(&(ask(OWN) + &ask("/nowhere"))).await;
    client.read_until(has_begun).await;
    client.send(&ask(OWN)).await;
    gate.release_all();
    assert_eq!(client.reply().await.outcome(), "200 orders");
    assert_eq!(client.reply().await.outcome(), "404 not_found");
    assert_eq!(client.reply().await.outcome(), "200 orders");
}

#[tokio::test]
async fn nothing_is_lost_of_many_requests_that_come_at_once_and_wait() {
    let app = TestApp::start().await;
    // Without a token it always takes a look at the kubelet's directory.
    let orders = app.world.pod(pod("orders").token_optional().ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    let ask = |path: &str, padding: usize| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nPadding: {}\r\n\r\n", "x".repeat(padding))
    };
    let mut client = app.client("127.0.0.2").await;
    // More is read with the first than hyper reads at a time, and of that several that wait.
    let burst = [(OWN, "200 orders"), ("/nowhere", "404 not_found")].repeat(16);
    let requests: String = burst.iter().map(|(path, _)| ask(path, 600)).collect();
    client.send(&(ask(OWN, 9000) + &requests)).await;
    assert_eq!(client.reply().await.outcome(), "200 orders");
    for (index, (_, expect)) in burst.iter().enumerate() {
        assert_eq!(client.reply().await.outcome(), *expect, "request {index}");
    }
}

#[tokio::test]
async fn a_client_that_wants_no_more_is_left_after_an_answer_that_waited() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    let head = format!("GET {OWN} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n");
    client.send(&format!("{head}Connection: close\r\n\r\n")).await;
    client.read_until(has_begun).await;
    gate.release_all();
    let reply = client.reply().await;
    assert_eq!(reply.outcome(), "200 orders");
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(client.end().await, End::Closed);
}

#[tokio::test]
async fn a_denial_after_the_beginning_is_a_reset_and_the_retry_gets_the_truth() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    orders.distrust();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.ask(OWN, Some(&token)).await;
    client.read_until(has_begun).await;
    gate.release_all();
    assert_eq!(client.end().await, End::Reset);
    let calls = app.world.sts.call_count();
    let retry = app.get("127.0.0.2", OWN, Some(&token)).await;
    assert_eq!(retry.outcome(), "403 sts_denied");
    let message = retry.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("AccessDenied") && message.contains("trust policy"), "{message}");
    assert_eq!(app.world.sts.call_count(), calls, "the retry was answered from memory");
    assert_eq!(app.metric("rolecall_slow_answers_total{stage=\"given_up\"}").await, 1.0);
    assert_eq!(app.metric("rolecall_requests_total{outcome=\"given_up\"}").await, 1.0);
}

#[tokio::test]
async fn giving_up_while_an_attempt_runs_remembers_nothing() {
    let world = rolecall_sandbox::world::World::start().await.unwrap();
    let app = TestApp::with(world, "--give-up-after=1500ms --caller-wait=1s").await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.ask(OWN, Some(&token)).await;
    assert_eq!(client.end().await, End::Reset);
    // The retry waits on the very same attempt.
    let mut retry = app.client("127.0.0.2").await;
    retry.ask(OWN, Some(&token)).await;
    retry.read_until(has_begun).await;
    gate.release_all();
    assert_eq!(retry.reply().await.outcome(), "200 orders");
    assert_eq!(app.world.sts.call_count(), 1);
}

#[tokio::test]
async fn an_sts_that_failed_to_the_end_is_remembered() {
    let world = rolecall_sandbox::world::World::start().await.unwrap();
    world.sts.set_behavior(Behavior::unavailable());
    let app = TestApp::with(world, "--give-up-after=2s --caller-wait=1s").await;
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.ask(OWN, Some(&token)).await;
    assert_eq!(client.end().await, End::Reset);
    let retry = app.get("127.0.0.2", OWN, Some(&token)).await;
    assert_eq!(retry.outcome(), "503 sts_unavailable");
    assert_eq!(retry.header("retry-after"), Some("5"));
}

#[tokio::test]
async fn transient_failures_are_retried_behind_a_begun_answer() {
    let app = TestApp::start().await;
    app.world.sts.script([
        Behavior::unavailable(),
        Behavior::throttled(),
        Behavior::reset(),
        Behavior::internal_failure(),
    ]);
    let orders = app.world.pod(pod("orders")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.world.sts.call_count(), 5);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut held = app.client("127.0.0.2").await;
    held.ask(OWN, Some(&token)).await;
    let mut begun = app.client("127.0.0.2").await;
    begun.ask(OWN, Some(&token)).await;
    begun.read_until(has_begun).await;
    drop((held, begun));
    // Both are known to have hung up before STS answers.
    while app.metric("rolecall_requests_total{outcome=\"hung_up\"}").await < 2.0 {
        tokio::task::yield_now().await;
    }
    gate.release_all();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.world.sts.call_count(), 1);
}

#[tokio::test]
async fn http_1_0_is_held_in_silence() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut old = app.client("127.0.0.2").await;
    old.send(&format!("GET {OWN} HTTP/1.0\r\nAuthorization: {token}\r\n\r\n")).await;
    // A request of HTTP/1.1 that came later has begun: by now the old one would have, too.
    let mut new = app.client("127.0.0.2").await;
    new.ask(OWN, Some(&token)).await;
    new.read_until(has_begun).await;
    gate.release_all();
    let reply = old.reply().await;
    assert_eq!(reply.outcome(), "200 orders");
    assert!(reply.header("content-length").is_some(), "it was not begun");
    assert!(reply.text().starts_with('{'));
}

#[tokio::test]
async fn every_answer_can_be_held_in_silence() {
    let world = rolecall_sandbox::world::World::start().await.unwrap();
    let app = TestApp::with(world, "--slow-answer=hold --give-up-after=1500ms --caller-wait=1s").await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let reply = app.get("127.0.0.2", OWN, Some(&orders.token().unwrap())).await;
    assert_eq!(reply.outcome(), "503 sts_unavailable", "it has its true status at the end");
    gate.release_all();
    assert_eq!(app.metric("rolecall_slow_answers_total{stage=\"begun\"}").await, 0.0);
}

#[tokio::test]
async fn many_that_wait_share_one_exchange() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = app.client("127.0.0.2").await;
        client.ask(OWN, Some(&token)).await;
        clients.push(client);
    }
    for client in &mut clients {
        client.read_until(has_begun).await;
    }
    gate.release_all();
    for client in &mut clients {
        assert_eq!(client.reply().await.outcome(), "200 orders");
    }
    assert_eq!(app.world.sts.call_count(), 1);
}

#[tokio::test]
async fn the_hold_counts_from_the_arrival_and_not_from_when_the_pod_was_known() {
    let app = TestApp::start().await;
    let gate = app.world.sts.hold();
    let early = app.world.prepare(pod("early"));
    early.trust();
    early.write_token().unwrap();
    let mut old = app.client("127.0.0.2").await;
    old.ask(OWN, Some(&early.token().unwrap())).await;
    // Longer than the hold: when its pod becomes known, its answer is due at once.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let later = app.world.pod(pod("later")).unwrap();
    let mut new = app.client("127.0.0.3").await;
    new.ask(OWN, Some(&later.token().unwrap())).await;
    early.register();
    old.read_until(has_begun).await;
    assert!(!new.has_received(), "the younger request is still held");
    gate.release_all();
    assert_eq!(old.reply().await.outcome(), "200 orders");
    assert_eq!(new.reply().await.outcome(), "200 orders");
}

#[tokio::test]
async fn giving_up_counts_from_the_arrival_and_not_from_when_the_pod_was_known() {
    let world = rolecall_sandbox::world::World::start().await.unwrap();
    let app = TestApp::with(world, "--give-up-after=6s --caller-wait=6s").await;
    let _gate = app.world.sts.hold();
    let early = app.world.prepare(pod("early"));
    early.trust();
    early.write_token().unwrap();
    let later = app.world.pod(pod("later")).unwrap();
    let token = later.token().unwrap();
    let mut old = app.client("127.0.0.2").await;
    old.ask(OWN, Some(&early.token().unwrap())).await;
    // Each answer that begins shows that a hold has passed since the one before: two between the arrival of the old
    // request and its pod's, one between the two requests.
    for _ in 0..2 {
        let mut clock = app.client("127.0.0.3").await;
        clock.ask(OWN, Some(&token)).await;
        clock.read_until(has_begun).await;
    }
    let mut young = app.client("127.0.0.3").await;
    young.ask(OWN, Some(&token)).await;
    early.register();
    old.read_until(has_begun).await;
    let first = tokio::select! {
        biased;
        end = old.end() => ("old", end),
        end = young.end() => ("young", end),
    };
    assert_eq!(first, ("old", End::Reset), "it arrived first, though its pod was known last");
    assert_eq!(young.end().await, End::Reset);
}

#[tokio::test]
async fn a_begun_answer_is_not_reset_before_the_request_is_old_enough_for_every_sdk() {
    let world = rolecall_sandbox::world::World::start().await.unwrap();
    let app = TestApp::with(world, "--hold=0").await;
    let gate = app.world.sts.hold();
    let orders = app.world.pod(pod("orders")).unwrap();
    orders.distrust();
    let mut client = app.client("127.0.0.2").await;
    // It begins before the request is sent, so it ends before the request is 1.1 s old, however slow the machine is.
    let young = tokio::time::sleep(std::time::Duration::from_millis(1100));
    client.ask(OWN, Some(&orders.token().unwrap())).await;
    client.read_until(has_begun).await;
    gate.release_all();
    tokio::select! {
        biased;
        () = young => {}
        end = client.end() => panic!("{end:?} too soon"),
    }
    assert_eq!(client.end().await, End::Reset);
}
