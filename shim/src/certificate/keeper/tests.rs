//! Tests with an API server that is a function.

use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhook, ServiceReference},
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{api::ObjectMeta, client::Body};
use rolecall_process::readiness::Readiness;
use tokio::time::advance;

use super::{
    super::{bundle, plan, plan::Due},
    *,
};

struct Fixture {
    keeper: Keeper,
    requests: Arc<Mutex<Vec<Method>>>,
}

/// A keeper that has seen `secret`, and whose writes end with `status`.
fn fixture(secret: Option<Secret>, status: u16) -> Fixture {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().push(request.method().clone());
        let body = match status {
            200 => serde_json::to_vec(&Secret::default()).unwrap(),
            code => format!(r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":"No","code":{code}}}"#).into_bytes(),
        };
        let response = Response::builder().status(status).body(Body::from(body)).unwrap();
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let config = SelfManagedConfig {
        namespace: "rolecall".to_owned(),
        secret: "tls".to_owned(),
        service: "shim".to_owned(),
        webhook_configuration: "shim".to_owned(),
        names: Names::of_service("rolecall", "shim", &[]),
        lifetimes: Lifetimes::default(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let serving = Serving::new(provider, &mut Registry::default());
    let readiness = Readiness::default();
    let latches = (readiness.latch("loaded"), readiness.latch("trusted"));
    let client = Client::new(service, "rolecall");
    let mut keeper = Keeper::new(client, config, serving, Clock::system(), Metrics::default(), latches);
    keeper.secret = Some(secret);
    Fixture { keeper, requests }
}

fn stored(service: &str) -> Stored {
    let names = Names::of_service("rolecall", service, &[]);
    plan::step(Due::Create, None, &names, Clock::system().now(), &Lifetimes::default()).unwrap()
}

fn secret(data: impl IntoIterator<Item = (String, Vec<u8>)>) -> Secret {
    let data = data.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
    let metadata = ObjectMeta { name: Some("tls".to_owned()), ..ObjectMeta::default() };
    Secret { metadata, data: Some(data), ..Secret::default() }
}

fn foreign() -> Secret {
    secret(["ca.crt", "tls.crt", "tls.key"].map(|key| (key.to_owned(), b"of another".to_vec())))
}

#[tokio::test]
async fn what_is_stored_is_served_where_nothing_may_be_written() {
    for status in [403, 404, 409, 500] {
        // Another name is due to be added to the certificate.
        let Fixture { mut keeper, requests } = fixture(Some(secret(stored("renamed").to_data())), status);
        let result = keeper.act().await;
        assert_eq!(result.is_err(), status == 403 || status == 500, "{status}: {result:?}");
        assert_eq!(*requests.lock().unwrap(), [Method::PUT]);
        assert!(keeper.serving.facts().is_some() && keeper.loaded.is_none(), "{status}");
    }
}

#[tokio::test]
async fn what_was_last_good_is_served_where_a_lost_secret_may_not_be_created() {
    let Fixture { mut keeper, requests } = fixture(None, 403);
    keeper.last_good = Some(stored("shim"));
    assert!(matches!(keeper.act().await, Err(Error::Write { .. })));
    assert_eq!(*requests.lock().unwrap(), [Method::POST]);
    assert!(keeper.serving.facts().is_some());
}

#[tokio::test]
async fn a_secret_that_turns_out_to_be_deleted_is_created_anew() {
    let Fixture { mut keeper, requests } = fixture(Some(secret([])), 404);
    assert!(matches!(keeper.act().await, Ok(false)));
    assert!(matches!(keeper.act().await, Err(Error::Write { .. })));
    assert_eq!(*requests.lock().unwrap(), [Method::PUT, Method::POST]);
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone_unless_it_was_ours_before() {
    let Fixture { mut keeper, requests } = fixture(Some(foreign()), 200);
    assert!(matches!(keeper.act().await, Err(Error::Foreign { .. })));
    assert!(requests.lock().unwrap().is_empty());
    keeper.last_good = Some(stored("shim"));
    assert!(keeper.act().await.unwrap());
    assert_eq!(*requests.lock().unwrap(), [Method::PUT]);

    let mut written = foreign();
    let entry = ManagedFieldsEntry { manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    written.metadata.managed_fields = Some(vec![entry]);
    let keyed = secret([("ca.key".to_owned(), b"broken".to_vec())]);
    let empty = secret([("tls.crt".to_owned(), Vec::new())]);
    for ours in [written, keyed, empty] {
        let Fixture { mut keeper, requests } = fixture(Some(ours), 200);
        assert!(keeper.act().await.unwrap());
        assert_eq!(*requests.lock().unwrap(), [Method::PUT]);
    }
}

/// The configuration, which trusts `authorities`.
fn configuration(authorities: &[Authority], config: &SelfManagedConfig) -> Published {
    let mut webhook = MutatingWebhook { name: "pods".to_owned(), ..Default::default() };
    webhook.client_config.ca_bundle = Some(ByteString(bundle::to_pem(authorities)));
    let configuration = MutatingWebhookConfiguration { webhooks: Some(vec![webhook]), ..Default::default() };
    Published::of(&configuration, config)
}

fn authorities(stored: &[&Stored]) -> Vec<Authority> {
    stored.iter().flat_map(|stored| stored.authorities()).collect()
}

#[tokio::test]
async fn a_key_that_is_not_the_one_of_its_certificate_is_mended() {
    let (good, other) = (stored("shim"), stored("shim").to_data());
    for key in ["tls.key", "ca.key"] {
        for wrong in [other[key].clone(), b"no key".to_vec()] {
            let mut data = good.to_data();
            data.insert(key.to_owned(), wrong);
            let Fixture { mut keeper, requests } = fixture(Some(secret(data)), 200);
            assert!(keeper.act().await.unwrap(), "{key}");
            assert_eq!(*requests.lock().unwrap(), [Method::PUT], "{key}");
            assert!(keeper.serving.facts().is_some(), "{key}");
        }
    }
}

#[tokio::test]
async fn only_webhooks_that_lead_to_the_shim_are_told_what_to_trust() {
    let Fixture { keeper, .. } = fixture(None, 200);
    let required = authorities(&[&stored("shim")]);
    let webhook = |name: &str, service: Option<(&str, &str)>| {
        let mut webhook = MutatingWebhook { name: name.to_owned(), ..Default::default() };
        webhook.client_config.service = service.map(|(namespace, name)| ServiceReference {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        });
        webhook
    };
    let webhooks = vec![
        webhook("ours", Some(("rolecall", "shim"))),
        webhook("by-url", None),
        webhook("of-another-service", Some(("rolecall", "other"))),
        webhook("of-another-namespace", Some(("other", "shim"))),
    ];
    let configuration = MutatingWebhookConfiguration { webhooks: Some(webhooks), ..Default::default() };
    let patch = Published::of(&configuration, &keeper.config).patch(&required, false);
    let patched: Vec<_> = patch["webhooks"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(patched, ["ours", "by-url"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_just_published_is_trusted_only_once_the_api_server_has_taken_it_up() {
    let stored = stored("shim");
    let Fixture { mut keeper, .. } = fixture(Some(secret(stored.to_data())), 200);
    keeper.act().await.unwrap();
    assert_eq!((keeper.believed_at(), keeper.trusted.is_some()), (None, true), "nobody trusts it");
    keeper.published = Some(configuration(&authorities(&[&stored]), &keeper.config));
    keeper.act().await.unwrap();
    assert!(keeper.believed_at() == Some(Instant::now() + BELIEVED_AFTER) && keeper.trusted.is_some());
    advance(BELIEVED_AFTER).await;
    keeper.act().await.unwrap();
    assert_eq!((keeper.believed_at(), keeper.trusted.is_some()), (None, false));
}

#[tokio::test]
async fn what_has_not_begun_takes_no_place_of_what_is_served() {
    let known = stored("shim");
    let Fixture { mut keeper, .. } = fixture(Some(secret(known.to_data())), 200);
    keeper.act().await.unwrap();
    let served = keeper.serving.facts().unwrap();
    // Somebody else's, by the same authority; it cannot be replaced here and now.
    let names = Names::of_service("rolecall", "shim", &[]);
    let mut early =
        plan::step(Due::Renew, Some(&known), &names, Clock::system().now(), &Lifetimes::default()).unwrap();
    early.serving.facts.begins = Clock::system().now() + Duration::from_secs(3600);
    keeper.serve(&early).unwrap();
    assert_eq!(keeper.serving.facts().unwrap().der, served.der);
    early.serving.facts.begins = Clock::system().now();
    keeper.serve(&early).unwrap();
    assert_eq!(keeper.serving.facts().unwrap().der, early.serving.facts.der);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_another_authority_is_served_once_that_has_settled_and_the_former_is_trusted_on() {
    let (former, next) = (stored("shim"), stored("shim"));
    let Fixture { mut keeper, requests } = fixture(Some(secret(former.to_data())), 403);
    keeper.act().await.unwrap();
    keeper.secret = Some(Some(secret(next.to_data())));
    keeper.published = Some(configuration(&authorities(&[&next, &former]), &keeper.config));
    let served = |keeper: &Keeper| keeper.serving.facts().unwrap().der;
    keeper.act().await.unwrap();
    let settle = keeper.config.lifetimes.settle;
    advance(settle - TICK).await;
    keeper.act().await.unwrap();
    assert_eq!(served(&keeper), former.serving.facts.der);
    advance(TICK).await;
    keeper.act().await.unwrap();
    assert_eq!(served(&keeper), next.serving.facts.der);
    // Another replica may be later.
    keeper.act().await.unwrap();
    advance(settle * 2).await;
    keeper.act().await.unwrap();
    assert!(requests.lock().unwrap().is_empty());
    advance(TICK * 2).await;
    assert!(matches!(keeper.act().await, Err(Error::Patch { .. })));
    assert_eq!(*requests.lock().unwrap(), [Method::PATCH]);
}

#[tokio::test]
async fn what_is_added_to_a_bundle_takes_nothing_out_of_it_that_can_be_read() {
    let Fixture { keeper, .. } = fixture(None, 200);
    let (ours, other) = (authorities(&[&stored("shim")]), authorities(&[&stored("shim")]));
    let patched = |there: &[Authority], keep_more| {
        let patch = configuration(there, &keeper.config).patch(&ours, keep_more);
        let bundle: ByteString =
            serde_json::from_value(patch["webhooks"][0]["clientConfig"]["caBundle"].clone()).unwrap();
        let bundle = bundle::Bundle::read(&bundle.0);
        [&ours, &other].map(|authority| bundle.contains(&authority[0].facts.der))
    };
    assert_eq!(patched(&other, true), [true, true]);
    assert_eq!(patched(&other, false), [true, false]);
    let mut broken = other.clone();
    broken[0].certificate = "-----BEGIN CERTIFICATE-----\nxx".to_owned();
    assert_eq!(patched(&broken, true), [true, false]);
}
