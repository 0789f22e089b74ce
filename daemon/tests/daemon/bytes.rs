//! The endpoint byte by byte.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{
    app::{ROLE, TestApp, pod},
    client::End,
};

const OWN: &str = "/v1/credentials";

#[tokio::test]
async fn credentials_are_a_flat_document_of_strings() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reply = app.get("127.0.0.2", OWN, Some(&orders.token().unwrap())).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    assert!(reply.header("date").is_some());
    assert_eq!(reply.headers.len(), 3, "{:?}", reply.headers);
    assert!(reply.body.len() < 8_000);
    let text = reply.text();
    assert!(!text.contains('\\') && !text.contains("null") && !text.contains(' '), "{text}");

    let json = reply.json();
    let keys: Vec<_> = text.split('"').skip(1).step_by(4).collect();
    assert_eq!(
        keys,
        ["Code", "AccessKeyId", "SecretAccessKey", "Token", "Expiration", "AccountId", "RoleArn"],
        "in this order"
    );
    assert!(
        json.as_object().unwrap().values().all(|value| matches!(value, Value::String(s) if !s.is_empty()))
    );
    assert_eq!(json["Code"], "Success");
    assert_eq!(json["AccountId"], "111122223333");
    assert_eq!(json["RoleArn"], ROLE);
    let issued = app.world.sts.session(json["AccessKeyId"].as_str().unwrap()).unwrap();
    assert_eq!(json["SecretAccessKey"], issued.secret_access_key.as_str());
    assert_eq!(json["Token"], issued.session_token.as_str());

    let expiration: jiff::Timestamp = json["Expiration"].as_str().unwrap().parse().unwrap();
    assert_eq!(expiration.to_string().len(), "2026-11-21T15:51:01Z".len(), "no fraction, no offset");
    let advertised = SystemTime::from(expiration);
    let real = issued.expires_at;
    let early = real.duration_since(advertised).unwrap();
    assert!((Duration::from_secs(60)..Duration::from_secs(61)).contains(&early), "{early:?}");
}

#[tokio::test]
async fn a_refusal_says_the_same_twice_and_names_no_secret() {
    let app = TestApp::start().await;
    app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let reply = app.get("127.0.0.2", OWN, None).await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let json = reply.json();
    assert_eq!(json["code"], "token_required");
    assert_eq!(json["code"], json["Code"]);
    assert_eq!(json["message"], json["Message"]);
    assert_eq!(json.as_object().unwrap().len(), 4);
    assert!(json["message"].as_str().unwrap().contains("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"));
}

#[tokio::test]
async fn requests_that_break_a_rule_are_refused_by_their_rule() {
    let app = TestApp::start().await;
    app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let long = "t".repeat(20 * 1024);
    for (request, expect) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404 not_found"),
        ("GET /v1/credentials/../x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "401 token_required"),
        ("GET //v1/credentials HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404 not_found"),
        ("GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".to_owned(), "404 not_found"),
        ("GET /v1/credentials?a=b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400 malformed_request"),
        ("GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400 malformed_request"),
        (
            "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n"
                .to_owned(),
            "400 malformed_request",
        ),
        (
            "POST /v1/credentials HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "405 method_not_allowed",
        ),
        ("PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405 method_not_allowed"),
        (
            format!("GET /v1/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: {long}\r\n\r\n"),
            "431 request_too_large",
        ),
    ] {
        let mut client = app.client("127.0.0.2").await;
        client.send(&request).await;
        assert_eq!(client.reply().await.outcome(), expect, "{:.60}", request);
    }
    let mut client = app.client("127.0.0.2").await;
    client.send("POST /v1/credentials HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.reply().await.header("allow"), Some("GET"));
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection_and_nothing_else() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    for garbage in
        ["\x16\x03\x01\x02\0", "HELLO\r\n\r\n", &format!("GET /{} HTTP/1.1\r\n", "x".repeat(64 * 1024))]
    {
        let mut client = app.client("127.0.0.2").await;
        client.send(garbage).await;
        client.end().await;
    }
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    let mut client = app.client("127.0.0.2").await;
    let first = client.get(OWN, Some(&token)).await;
    assert_eq!(client.get(OWN, None).await.outcome(), "401 token_required");
    let third = client.get(OWN, Some(&token)).await;
    assert_eq!(first.body, third.body);
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let mut client = app.client("127.0.0.2").await;
    client.send(&format!("GET {OWN} HTTP/1.0\r\nAuthorization: {}\r\n\r\n", orders.token().unwrap())).await;
    assert_eq!(client.reply().await.outcome(), "200 orders");
    assert_eq!(client.end().await, End::Closed);
}

#[tokio::test]
async fn the_token_may_have_blanks_around_it_and_no_bearer_before_it() {
    let app = TestApp::start().await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let token = orders.token().unwrap();
    for (sent, expect) in [
        (format!("  {token}\t"), "200 orders"),
        (format!("Bearer {token}"), "403 token_invalid"),
        (String::new(), "401 token_required"),
    ] {
        assert_eq!(app.get("127.0.0.2", OWN, Some(&sent)).await.outcome(), expect);
    }
}
