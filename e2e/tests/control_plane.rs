//! The control plane that the other tests rely on is what it says.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::params::VersionMatch;
use kube::{Client, Config, ResourceExt};
use rolecall_contract::AUDIENCE;
use rolecall_e2e::ControlPlane;
use rolecall_e2e::control_plane::ISSUER;
use serde_json::{Value, json};

#[tokio::test]
async fn a_pod_appears_in_the_watch_of_its_node_once_it_is_bound() {
    let cluster = ControlPlane::shared().await.unwrap();
    cluster.create_namespace("watched").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client().await.unwrap(), "watched");
    let mine = WatchParams::default().fields("spec.nodeName=watched-node").disable_bookmarks();
    let mut watch = Box::pin(pods.watch(&mine, "0").await.unwrap());

    cluster.create_pod("watched", &pod("elsewhere", Some("another-node"))).await.unwrap();
    let created = cluster.create_pod("watched", &pod("mine", None)).await.unwrap();
    cluster.bind_pod("watched", "mine", "watched-node").await.unwrap();

    let WatchEvent::Added(seen) = next(&mut watch).await else { panic!("another event than Added") };
    assert_eq!(seen.uid(), created.uid());

    let addresses =
        json!({"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]});
    cluster.set_pod_status("watched", "mine", &addresses).await.unwrap();
    let WatchEvent::Modified(seen) = next(&mut watch).await else { panic!("another event than Modified") };
    let addresses: Vec<_> = seen.status.unwrap().pod_ips.unwrap().into_iter().map(|entry| entry.ip).collect();
    assert_eq!(addresses, ["10.0.0.7", "fd00::7"]);

    cluster.delete_pod("watched", "mine", 30).await.unwrap();
    let WatchEvent::Modified(seen) = next(&mut watch).await else { panic!("another event than Modified") };
    assert!(seen.metadata.deletion_timestamp.is_some());

    cluster.delete_pod("watched", "mine", 0).await.unwrap();
    // The shorter grace period is a modification of its own.
    let seen = loop {
        match next(&mut watch).await {
            WatchEvent::Deleted(seen) => break seen,
            WatchEvent::Modified(_) => {}
            other => panic!("another event than Deleted: {other:?}"),
        }
    };
    assert_eq!(seen.uid(), created.uid());
}

#[tokio::test]
async fn a_token_names_its_pod_and_node_and_verifies_against_the_published_keys() {
    let cluster = ControlPlane::shared().await.unwrap();
    cluster.create_namespace("tokens").await.unwrap();
    cluster.create_node("tokens-node").await.unwrap();
    let pod = cluster.create_pod("tokens", &pod("app", Some("tokens-node"))).await.unwrap();
    let uid = pod.uid().unwrap();

    let token = cluster.token_request("tokens", "default", Some(("app", &uid)), AUDIENCE, 600).await.unwrap();

    let claims = verified(&token, &cluster.jwks().await.unwrap());
    assert_eq!(claims["sub"], "system:serviceaccount:tokens:default");
    assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "app", "uid": uid}));
    assert_eq!(claims["kubernetes.io"]["node"]["name"], "tokens-node");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
}

#[tokio::test]
async fn a_service_account_may_do_what_a_manifest_gives_it_and_no_more() {
    let cluster = ControlPlane::shared().await.unwrap();
    cluster.create_namespace("rights").await.unwrap();
    cluster.create_service_account("rights", "reader").await.unwrap();
    let kubeconfig = cluster.kubeconfig_for_service_account("rights", "reader").await.unwrap();
    let read = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "rights");
    assert_eq!(status(pods.list(&ListParams::default()).await), 403);

    cluster.apply(ROLE, "rights").await.unwrap();

    // The authorizer learns of a role by a watch of its own.
    let allowed = async {
        while pods.list(&ListParams::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), allowed).await.expect("the role takes effect");
    assert_eq!(status(pods.delete("any", &Default::default()).await), 403);
}

const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [''], resources: [pods], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: rights}
";

async fn next(watch: &mut (impl Stream<Item = kube::Result<WatchEvent<Pod>>> + Unpin)) -> WatchEvent<Pod> {
    watch.try_next().await.unwrap().expect("the watch goes on")
}

fn pod(name: &str, node: Option<&str>) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "example.test/app"}]},
    })
}

/// The claims of a token, once its signature, issuer and audience are found good.
fn verified(token: &str, jwks: &str) -> Value {
    let keys: JwkSet = serde_json::from_str(jwks).unwrap();
    let id = decode_header(token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(keys.find(&id).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    decode(token, &key, &validation).unwrap().claims
}

#[track_caller]
fn status<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("the API server refused nothing: {other:?}"),
    }
}

#[tokio::test]
async fn the_api_server_comes_back_with_what_a_peer_did_meanwhile() {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.create_namespace("outage").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client().await.unwrap(), "outage");
    cluster.create_pod("outage", &pod("before", Some("node"))).await.unwrap();
    let url = cluster.api_server_url();
    let peer = cluster.start_peer_api_server().await.unwrap();

    cluster.stop_api_server().unwrap();
    assert!(!matches!(pods.list(&ListParams::default()).await, Ok(_) | Err(kube::Error::Api(_))));
    let at_peer: Api<Pod> = Api::namespaced(cluster.peer_client(&peer).await.unwrap(), "outage");
    at_peer
        .create(&Default::default(), &serde_json::from_value(pod("during", Some("node"))).unwrap())
        .await
        .unwrap();

    cluster.start_api_server().await.unwrap();
    assert_eq!(cluster.api_server_url(), url);
    let names: Vec<_> =
        pods.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["before", "during"]);
}

#[tokio::test]
async fn after_a_compaction_and_a_restart_an_old_resource_version_is_gone() {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.create_namespace("compacted").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client().await.unwrap(), "compacted");
    let old = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let list_at_old = ListParams::default().at(&old).matching(VersionMatch::Exact);
    cluster.create_pod("compacted", &pod("app", Some("node"))).await.unwrap();

    cluster.stop_api_server().unwrap();
    cluster.start_api_server().await.unwrap();
    // A restart alone takes nothing from etcd.
    assert_eq!(pods.list(&list_at_old).await.unwrap().items.len(), 0);

    cluster.stop_api_server().unwrap();
    cluster.compact_etcd().await.unwrap();
    cluster.start_api_server().await.unwrap();
    assert_eq!(status(pods.list(&list_at_old).await), 410);
    let mut watch = Box::pin(pods.watch(&WatchParams::default(), &old).await.unwrap());
    let WatchEvent::Error(error) = next(&mut watch).await else { panic!("the watch went on") };
    assert_eq!(error.code, 410);
}

#[tokio::test]
async fn a_rotated_signing_key_signs_new_tokens_beside_the_old_one() {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.create_namespace("rotated").await.unwrap();
    let old = cluster.token_request("rotated", "default", None, AUDIENCE, 600).await.unwrap();

    cluster.rotate_signing_key().unwrap();
    cluster.stop_api_server().unwrap();
    cluster.start_api_server().await.unwrap();

    let new = cluster.token_request("rotated", "default", None, AUDIENCE, 600).await.unwrap();
    assert_ne!(decode_header(&old).unwrap().kid, decode_header(&new).unwrap().kid);
    let jwks = cluster.jwks().await.unwrap();
    verified(&old, &jwks);
    verified(&new, &jwks);
}
