//! Which role a pod gets, and what it is told where it gets none.

use rolecall_contract::endpoint::path_of;
use rolecall_sandbox::{cluster::pod::PodBuilder, sts::TrustPolicy, world::World};

use super::app::{OTHER_ROLE, ROLE, TestApp, pod};

const OWN: &str = "/v1/credentials";

fn path(role: &str) -> String {
    path_of(&role.parse().unwrap())
}

#[tokio::test]
async fn each_pod_gets_its_own_role_and_session_name() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reports = app.world.pod(pod("reports").role(OTHER_ROLE).ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.ask("127.0.0.3", &reports).await, "200 reports");
    let names: Vec<_> = app.world.sts.calls().into_iter().filter_map(|call| call.session_name).collect();
    assert!(names.contains(&"shop.orders".into()) && names.contains(&"shop.reports".into()), "{names:?}");
    // Neither gets the other's with its own token or its own address.
    assert_eq!(app.ask("127.0.0.3", &orders).await, "403 wrong_pod");
    assert_eq!(app.ask("127.0.0.2", &reports).await, "403 wrong_pod");
    assert_eq!(app.metric("rolecall_wrong_pod_requests_total").await, 2.0);
}

#[tokio::test]
async fn credentials_are_there_before_the_first_request() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders")).unwrap();
    app.world.sts.wait_for_requests(1).await;
    while app.metric("rolecall_credentials{state=\"valid\"}").await < 1.0 {
        tokio::task::yield_now().await;
    }
    // STS is away by now, and nobody notices.
    app.world.sts.set_outage(true).await.unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.world.sts.call_count(), 1);
}

#[tokio::test]
async fn a_path_names_another_role_and_the_trust_policy_decides() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    assert_eq!(app.get("127.0.0.2", &path(OTHER_ROLE), Some(&token)).await.outcome(), "403 sts_denied");
    let gov = "arn:aws-us-gov:iam::111122223333:role/team/a/ledger";
    app.world.sts.trust(gov, TrustPolicy::service_account(app.world.issuer.url(), "shop", "orders"));
    assert_eq!(app.get("127.0.0.2", &path(gov), Some(&token)).await.outcome(), "200 ledger");
    assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.outcome(), "200 orders");
}

#[tokio::test]
async fn a_path_that_is_no_role_is_told_what_is_wrong_with_it() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let calls = app.world.sts.call_count();
    for (path, word) in [
        ("/v1/credentials/", "empty"),
        ("/v1/credentials/orders", "arn:"),
        ("/v1/credentials/arn:aws:iam::1:role/x", "12 digits"),
        ("/v1/credentials/arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fx", "arn:"),
    ] {
        let reply = app.get("127.0.0.2", path, Some(&token)).await;
        assert_eq!(reply.outcome(), "403 role_malformed", "{path}");
        assert!(reply.json()["message"].as_str().unwrap().contains(word), "{}", reply.text());
    }
    assert!(app.world.sts.call_count() <= calls + 1, "STS was asked for the pod's own role alone");
}

#[tokio::test]
async fn the_operator_may_close_the_path() {
    let app = TestApp::with(World::start().await.unwrap(), "--role-in-path=refuse").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    assert_eq!(app.get("127.0.0.2", &path(ROLE), Some(&token)).await.outcome(), "403 role_not_allowed");
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn a_pod_may_use_so_many_roles_and_no_more() {
    let app = TestApp::with(World::start().await.unwrap(), "--max-roles-per-pod=2").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let trusted = |name: &str| {
        let role = format!("arn:aws:iam::111122223333:role/{name}");
        app.world.sts.trust(&role, TrustPolicy::service_account(app.world.issuer.url(), "shop", "orders"));
        path(&role)
    };
    assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.outcome(), "200 orders");
    let second = trusted("second");
    assert_eq!(app.get("127.0.0.2", &second, Some(&token)).await.outcome(), "200 second");
    let third = trusted("third");
    assert_eq!(app.get("127.0.0.2", &third, Some(&token)).await.outcome(), "403 too_many_roles");
    assert_eq!(app.get("127.0.0.2", &second, Some(&token)).await.outcome(), "200 second");
}

#[tokio::test]
async fn a_pod_without_what_it_takes_is_told_what_is_missing() {
    let app = TestApp::start().await;
    let none = PodBuilder::new("shop", "none").ip("127.0.0.2");
    let wrong =
        PodBuilder::new("shop", "wrong").annotation("rolecall.dev/role-arn", "orders").ip("127.0.0.3");
    let tokenless = pod("tokenless").token_optional().without_token_volume().ip("127.0.0.4");
    for builder in [none, wrong, tokenless] {
        app.world.pod(builder).unwrap();
    }
    for (from, expect) in [
        ("127.0.0.2", "404 no_role"),
        ("127.0.0.3", "403 role_malformed"),
        ("127.0.0.4", "403 no_token_volume"),
    ] {
        assert_eq!(app.get(from, OWN, None).await.outcome(), expect);
    }
}

#[tokio::test]
async fn a_pod_may_choose_the_length_of_its_sessions() {
    let app = TestApp::start().await;
    app.world.sts.set_max_session(ROLE, std::time::Duration::from_secs(43_200));
    let builder = pod("orders").annotation("rolecall.dev/session-duration", "7200").ip("127.0.0.2");
    let orders = app.world.pod(builder).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    assert_eq!(app.world.sts.calls()[0].duration, Some(std::time::Duration::from_secs(7200)));
}

#[tokio::test]
async fn a_role_that_is_changed_is_the_one_that_is_served() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    app.world.sts.trust(OTHER_ROLE, TrustPolicy::service_account(app.world.issuer.url(), "shop", "orders"));
    let patch = serde_json::json!({"metadata": {"annotations": {"rolecall.dev/role-arn": OTHER_ROLE}}});
    app.world.cluster.patch("shop", "orders", &patch);
    while app.ask("127.0.0.2", &orders).await != "200 reports" {}
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 reports");
}

#[tokio::test]
async fn a_trust_policy_that_is_mended_is_noticed() {
    let app = TestApp::start().await;
    let prepared = app.world.prepare(pod("orders").ip("127.0.0.2"));
    prepared.register();
    prepared.write_token().unwrap();
    prepared.distrust();
    assert_eq!(app.ask("127.0.0.2", &prepared).await, "403 sts_denied");
    prepared.trust();
    // It is remembered for 5 s at first; the limit of requests per second is above what this loop does.
    let mut pause = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        pause.tick().await;
        match app.ask("127.0.0.2", &prepared).await.as_str() {
            "200 orders" => break,
            other => assert_eq!(other, "403 sts_denied"),
        }
    }
}

#[tokio::test]
async fn a_pod_that_finishes_is_forgotten() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    orders.set_phase("Succeeded");
    while app.ask("127.0.0.2", &orders).await != "403 pod_finished" {}
    while app.metric("rolecall_credentials{state=\"valid\"}").await != 0.0 {}
    orders.remove().unwrap();
}

#[tokio::test]
async fn a_pod_that_drains_is_served_until_it_is_gone() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
    app.world.cluster.terminate("shop", "orders");
    let later = app.world.pod(pod("later").ip("127.0.0.3")).unwrap();
    // The watch is in order: who sees the later pod has seen the deletion mark.
    assert_eq!(app.ask("127.0.0.3", &later).await, "200 orders");
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

/// What an address got before is handed out again without a look, so each of these has to be seen in its stead.
async fn what_is_so_now_is_seen(keeps_alive: bool) {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let mut kept = if keeps_alive { Some(app.client("127.0.0.2").await) } else { None };
    let mut ask = async |path: &str, token: &str| match &mut kept {
        Some(client) => client.get(path, Some(token)).await.outcome(),
        None => app.get("127.0.0.2", path, Some(token)).await.outcome(),
    };
    for _ in 0..4 {
        assert_eq!(ask(OWN, &token).await, "200 orders");
    }
    assert_eq!(app.metric("rolecall_requests_total{outcome=\"answered\"}").await, 4.0);
    assert_eq!(app.metric("rolecall_request_duration_seconds_count").await, 4.0);
    assert_eq!(app.metric("rolecall_first_request_wait_seconds_count").await, 1.0);
    assert_eq!(ask(OWN, "none").await, "403 token_invalid");
    assert_eq!(ask(&path(OTHER_ROLE), &token).await, "403 sts_denied");
    assert_eq!(ask(OWN, &token).await, "200 orders");
    let other = app.world.pod(pod("other").ip("127.0.0.3")).unwrap();
    assert_eq!(app.ask("127.0.0.3", &other).await, "200 orders");
    assert_eq!(app.ask("127.0.0.3", &orders).await, "403 wrong_pod");
    assert_eq!(ask(OWN, &other.token().unwrap()).await, "403 wrong_pod");
    assert_eq!(ask(OWN, &token).await, "200 orders");

    let patch = serde_json::json!({"metadata": {"annotations": {"rolecall.dev/role-arn": OTHER_ROLE}}});
    app.world.cluster.patch("shop", "orders", &patch);
    let mut pause = tokio::time::interval(std::time::Duration::from_millis(100));
    while ask(OWN, &token).await == "200 orders" {
        pause.tick().await;
    }
    for _ in 0..3 {
        assert_eq!(ask(OWN, &token).await, "403 sts_denied");
    }
    orders.set_phase("Succeeded");
    while ask(OWN, &token).await != "403 pod_finished" {
        pause.tick().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_alive_gets_what_is_so_now() {
    what_is_so_now_is_seen(true).await;
}

#[tokio::test]
async fn a_pod_that_asks_again_on_another_connection_gets_what_is_so_now() {
    what_is_so_now_is_seen(false).await;
}

#[tokio::test]
async fn whoever_has_an_address_next_gets_its_own() {
    let app = TestApp::start().await;
    let former = app.world.pod(pod("former").ip("127.0.0.2")).unwrap();
    let token = former.token().unwrap();
    for _ in 0..3 {
        assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.outcome(), "200 orders");
    }
    former.delete();
    let next = app.world.pod(pod("next").role(OTHER_ROLE).ip("127.0.0.2")).unwrap();
    for _ in 0..3 {
        assert_eq!(app.ask("127.0.0.2", &next).await, "200 reports");
        assert_eq!(app.get("127.0.0.2", OWN, Some(&token)).await.outcome(), "403 pod_finished");
    }
}
