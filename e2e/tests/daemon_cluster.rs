//! The daemon against a real API server: its pods, its tokens, its keys, its rights, its failures.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use k8s_openapi::api::{core::v1::Node, events::v1::Event};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use rolecall_contract::AUDIENCE;
use rolecall_e2e::control_plane::ISSUER;
use rolecall_e2e::daemon::{Daemon, Settings};
use rolecall_e2e::{ControlPlane, Sdk};
use rolecall_sandbox::kubelet::KubeletDir;
use rolecall_sandbox::sts::{StsConfig, StsServer, TrustPolicy};
use serde_json::{Value, json};

const NODE: &str = "node-1";
const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// What the daemon's ServiceAccount may do where it is installed.
const RIGHTS: &str = include_str!("../../deploy/kustomize/daemon/rbac.yaml");

/// What it may do besides, where it is to take a taint off its node, as a patch of that.
const STARTUP_TAINT: &str =
    include_str!("../../deploy/kustomize/components/startup-taint/kustomization.yaml");

const TAINT: &str = "rolecall.dev/agent-not-ready";

/// Longer than anything that is waited for takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The rights with other rules.
fn rights_with(change: impl FnOnce(&mut Vec<Value>)) -> String {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(RIGHTS).unwrap();
    let role = documents.iter_mut().find(|document| document["kind"] == "ClusterRole").unwrap();
    change(role["rules"].as_array_mut().unwrap());
    documents.iter().map(|document| format!("---\n{document}\n")).collect()
}

fn rights_for_the_taint() -> String {
    let component: Value = serde_saphyr::from_str(STARTUP_TAINT).unwrap();
    let patches = component["patches"].as_array().unwrap();
    let patch = patches.iter().find(|patch| patch["target"]["kind"] == "ClusterRole").unwrap();
    let operations: Value = serde_saphyr::from_str(patch["patch"].as_str().unwrap()).unwrap();
    rights_with(|rules| rules.push(operations[0]["value"].clone()))
}

/// A cluster with a node, the kubelet's part of it, and STS.
struct Fixture {
    cluster: ControlPlane,
    kubelet: KubeletDir,
    sts: StsServer,
    daemon: Daemon,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(RIGHTS, &[], async |_| {}).await
    }

    /// The same with other rights and more flags, after `prepare` has prepared the cluster.
    async fn with(rights: &str, flags: &[&str], prepare: impl AsyncFnOnce(&ControlPlane)) -> Self {
        let cluster = ControlPlane::start().await.unwrap();
        cluster.create_namespace("rolecall").await.unwrap();
        cluster.create_service_account("rolecall", "rolecall-daemon").await.unwrap();
        cluster.apply(rights, "rolecall").await.unwrap();
        cluster.create_node(NODE).await.unwrap();
        cluster.create_namespace("shop").await.unwrap();
        cluster.create_service_account("shop", "orders").await.unwrap();
        let kubelet = KubeletDir::new().unwrap();
        let sts = StsServer::start(StsConfig::default()).await.unwrap();
        trust_keys(&cluster, &sts).await;
        sts.trust(ROLE, TrustPolicy::service_account(ISSUER, "shop", "orders"));
        let kubeconfig = cluster.kubeconfig_for_service_account("rolecall", "rolecall-daemon").await.unwrap();
        prepare(&cluster).await;
        let sts_url = sts.url();
        let flags = [&["--log-level=info,rolecall_daemon=debug"], flags].concat();
        let settings = Settings {
            node: NODE,
            kubeconfig: &kubeconfig,
            pods_dir: kubelet.path(),
            sts: &sts_url,
            flags: &flags,
        };
        let daemon = Daemon::start(settings).await.unwrap();
        Self { cluster, kubelet, sts, daemon }
    }

    /// A pod of the node as the shim makes it, and its uid.
    async fn pod(&self, name: &str) -> String {
        self.cluster.create_pod("shop", &manifest(name)).await.unwrap().uid().unwrap()
    }

    /// A token of the API server for the pod, as the kubelet asks for it.
    async fn token(&self, name: &str, uid: &str) -> String {
        self.cluster.token_request("shop", "orders", Some((name, uid)), AUDIENCE, 600).await.unwrap()
    }

    /// The same, written where the kubelet writes it.
    async fn written_token(&self, name: &str, uid: &str) -> String {
        let token = self.token(name, uid).await;
        self.kubelet.write_token(uid, "rolecall-token", "token", &token).unwrap();
        token
    }

    async fn outcome(&self, token: &str) -> String {
        let (status, body) = self.daemon.get(token).await.unwrap();
        let what = if status == 200 { &body["RoleArn"] } else { &body["code"] };
        format!("{status} {}", what.as_str().unwrap().rsplit('/').next().unwrap())
    }
}

/// Waits to the end, or fails after [`LIMIT`] with `what` was waited for.
async fn within_limit(what: &str, waiting: impl Future<Output = ()>) {
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    assert!(waited.is_ok(), "waited {LIMIT:?} in vain: {what}");
}

/// The Events on a pod, by reason.
async fn events_on(cluster: &ControlPlane, pod: &str) -> Vec<(String, String)> {
    let events: Api<Event> = Api::namespaced(cluster.client().await.unwrap(), "shop");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let of_pod = events.into_iter().filter(|event| {
        event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()) == Some(pod)
    });
    of_pod.map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default())).collect()
}

/// The keys of the node's taints.
async fn taints(cluster: &ControlPlane) -> Vec<String> {
    let nodes: Api<Node> = Api::all(cluster.client().await.unwrap());
    let taints = nodes.get(NODE).await.unwrap().spec.unwrap_or_default().taints;
    taints.into_iter().flatten().map(|taint| taint.key).collect()
}

async fn put_taints(cluster: &ControlPlane, keys: &[&str]) {
    let taints: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    let nodes: Api<Node> = Api::all(cluster.client().await.unwrap());
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    nodes.patch(NODE, &PatchParams::default(), &patch).await.unwrap();
}

async fn trust_keys(cluster: &ControlPlane, sts: &StsServer) {
    let jwks: Value = serde_json::from_str(&cluster.jwks().await.unwrap()).unwrap();
    sts.register_jwks(ISSUER, jwks);
}

fn manifest(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {
            "rolecall.dev/role-arn": ROLE, "rolecall.dev/token": "required",
        }},
        "spec": {
            "nodeName": NODE,
            "hostNetwork": true,
            "serviceAccountName": "orders",
            "containers": [{"name": "app", "image": "app", "volumeMounts": [
                {"name": "rolecall-token", "mountPath": "/var/run/secrets/rolecall.dev/serviceaccount"},
            ]}],
            "volumes": [{"name": "rolecall-token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": 3600, "path": "token"}},
            ]}}],
        },
    })
}

#[tokio::test]
async fn a_pod_of_a_real_cluster_gets_its_credentials_through_real_sdks() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("orders-0").await;
    fixture.written_token("orders-0", &uid).await;
    let file = fixture.kubelet.token_path(&uid, "rolecall-token", "token");
    let environment = fixture.daemon.environment(&file);
    let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
    for sdk in Sdk::ALL {
        let answer = sdk.identity(&environment, &fixture.sts.url()).await.unwrap();
        assert_eq!(
            answer.arn.as_deref(),
            Some("arn:aws:sts::111122223333:assumed-role/orders/shop.orders-0"),
            "{sdk:?}: {answer:?}\n{}",
            fixture.daemon.logs()
        );
    }
    assert_eq!(fixture.sts.call_count() - Sdk::ALL.len(), 1, "one exchange beside each SDK's own call");
    fixture.daemon.stop().await.unwrap();
}

#[tokio::test]
async fn a_token_is_believed_for_its_file_or_for_its_signature_and_for_nothing_else() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("orders-0").await;
    // A rotated token is in no file any more; the API server's keys prove it.
    let rotated = fixture.written_token("orders-0", &uid).await;
    let current = fixture.written_token("orders-0", &uid).await;
    assert_ne!(rotated, current);
    assert_eq!(fixture.outcome(&current).await, "200 orders");
    assert_eq!(fixture.outcome(&rotated).await, "200 orders");
    // Another audience, no pod, another signature.
    let other = fixture
        .cluster
        .token_request("shop", "orders", Some(("orders-0", &uid)), "vault", 600)
        .await
        .unwrap();
    assert_eq!(fixture.outcome(&other).await, "403 token_invalid");
    let unbound = fixture.cluster.token_request("shop", "orders", None, AUDIENCE, 600).await.unwrap();
    assert_eq!(fixture.outcome(&unbound).await, "403 token_invalid");
    let (signed, _) = rotated.rsplit_once('.').unwrap();
    let (_, signature) = current.rsplit_once('.').unwrap();
    assert_eq!(fixture.outcome(&format!("{signed}.{signature}")).await, "403 token_invalid");
}

#[tokio::test]
async fn the_api_server_may_die_and_come_back_under_the_daemon() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("orders-0").await;
    let token = fixture.written_token("orders-0", &uid).await;
    let spare = fixture.token("orders-0", &uid).await;
    assert_eq!(fixture.outcome(&token).await, "200 orders");

    fixture.cluster.stop_api_server().unwrap();
    fixture
        .daemon
        .wait_for_metric("rolecall_pod_watch_connected", |connected| connected == 0.0)
        .await
        .unwrap();
    assert_eq!(fixture.outcome(&token).await, "200 orders");
    // A rotation meanwhile: the kubelet's file is enough.
    fixture.kubelet.write_token(&uid, "rolecall-token", "token", &spare).unwrap();
    assert_eq!(fixture.outcome(&spare).await, "200 orders");

    fixture.cluster.start_api_server().await.unwrap();
    let later = fixture.pod("orders-1").await;
    let token = fixture.written_token("orders-1", &later).await;
    fixture.daemon.wait_for_metric("rolecall_pods", |pods| pods == 2.0).await.unwrap();
    assert_eq!(fixture.outcome(&token).await, "200 orders");
    assert_eq!(fixture.daemon.metric("rolecall_pod_watch_connected").await.unwrap(), 1.0);
}

#[tokio::test]
async fn what_was_compacted_away_is_learned_from_a_new_list() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("gone").await;
    let token = fixture.written_token("gone", &uid).await;
    assert_eq!(fixture.outcome(&token).await, "200 orders");

    // While the daemon's API server is down the world goes on, and its history is lost.
    let peer = fixture.cluster.start_peer_api_server().await.unwrap();
    fixture.cluster.stop_api_server().unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(fixture.cluster.peer_client(&peer).await.unwrap(), "shop");
    let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
    pods.delete("gone", &now).await.unwrap();
    let fresh = pods
        .create(&kube::api::PostParams::default(), &serde_json::from_value(manifest("fresh")).unwrap())
        .await
        .unwrap();
    fixture.cluster.compact_etcd().await.unwrap();
    peer.stop().unwrap();
    fixture.cluster.start_api_server().await.unwrap();

    let fresh = fresh.uid().unwrap();
    let new_token = fixture.written_token("fresh", &fresh).await;
    // No event ever said that the one has gone and the other has come.
    let known = async {
        loop {
            match fixture.outcome(&new_token).await.as_str() {
                "200 orders" => break,
                "503 pod_unknown" => {}
                other => panic!("{other}\n{}", fixture.daemon.logs()),
            }
        }
    };
    within_limit("the new pod is known", known).await;
    assert_eq!(fixture.outcome(&token).await, "403 pod_finished");
}

#[tokio::test]
async fn a_new_signing_key_of_the_cluster_is_learned() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("orders-0").await;
    assert_eq!(fixture.outcome(&fixture.written_token("orders-0", &uid).await).await, "200 orders");
    fixture.cluster.rotate_signing_key().unwrap();
    fixture.cluster.stop_api_server().unwrap();
    fixture.cluster.start_api_server().await.unwrap();
    trust_keys(&fixture.cluster, &fixture.sts).await;
    let rotated = fixture.token("orders-0", &uid).await;
    fixture.written_token("orders-0", &uid).await;
    // It is in no file, and its key is in no set that the daemon has seen. Keys are fetched every 10 s at most, and
    // a request waits 5 s.
    let learned = async {
        loop {
            match fixture.outcome(&rotated).await.as_str() {
                "200 orders" => break,
                "503 not_ready" => {}
                other => panic!("{other}\n{}", fixture.daemon.logs()),
            }
        }
    };
    within_limit("the new key is learned", learned).await;
}

#[tokio::test]
async fn a_status_that_is_set_through_the_api_server_ends_a_pods_credentials() {
    let fixture = Fixture::start().await;
    let uid = fixture.pod("orders-0").await;
    let token = fixture.written_token("orders-0", &uid).await;
    fixture.cluster.set_pod_status("shop", "orders-0", &json!({"phase": "Running"})).await.unwrap();
    assert_eq!(fixture.outcome(&token).await, "200 orders");
    fixture.cluster.set_pod_status("shop", "orders-0", &json!({"phase": "Succeeded"})).await.unwrap();
    fixture
        .daemon
        .wait_for_metric("rolecall_credentials{state=\"valid\"}", |valid| valid == 0.0)
        .await
        .unwrap();
    assert_eq!(fixture.outcome(&token).await, "403 pod_finished");
}

#[tokio::test]
async fn an_event_tells_a_denied_pod_why_and_no_more_rights_are_needed_for_it() {
    let fixture = Fixture::start().await;
    fixture.sts.trust(ROLE, TrustPolicy::nobody());
    let uid = fixture.pod("orders-0").await;
    let token = fixture.written_token("orders-0", &uid).await;
    assert_eq!(fixture.outcome(&token).await, "403 sts_denied");
    let written = "rolecall_events_total{outcome=\"written\"}";
    fixture.daemon.wait_for_metric(written, |events| events == 1.0).await.unwrap();
    let events = events_on(&fixture.cluster, "orders-0").await;
    let [(reason, note)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(reason, "StsDenied");
    for part in ["system:serviceaccount:shop:orders", "kubernetes.default.svc:aud is sts.amazonaws.com", ROLE]
    {
        assert!(note.contains(part), "no {part} in {note}");
    }
    let mut manifest = manifest("bad-0");
    manifest["metadata"]["annotations"]["rolecall.dev/role-arn"] = "orders".into();
    fixture.cluster.create_pod("shop", &manifest).await.unwrap();
    fixture.daemon.wait_for_metric(written, |events| events == 2.0).await.unwrap();
    assert_eq!(events_on(&fixture.cluster, "bad-0").await[0].0, "RoleMalformed");
    assert_eq!(fixture.daemon.metric("rolecall_events_total{outcome=\"failed\"}").await.unwrap(), 0.0);
}

#[tokio::test]
async fn without_the_right_to_write_events_the_log_says_so_once_and_pods_are_served() {
    let is_about =
        |rule: &Value, resource: &str| rule["resources"].as_array().unwrap().contains(&resource.into());
    let rights = rights_with(|rules| rules.retain(|rule| !is_about(rule, "events")));
    let fixture = Fixture::with(&rights, &[], async |_| {}).await;
    for name in ["bad-0", "bad-1"] {
        let mut manifest = manifest(name);
        manifest["metadata"]["annotations"]["rolecall.dev/role-arn"] = "orders".into();
        fixture.cluster.create_pod("shop", &manifest).await.unwrap();
    }
    let failed = "rolecall_events_total{outcome=\"failed\"}";
    fixture.daemon.wait_for_metric(failed, |events| events == 2.0).await.unwrap();
    let uid = fixture.pod("orders-0").await;
    let token = fixture.written_token("orders-0", &uid).await;
    assert_eq!(fixture.outcome(&token).await, "200 orders");
    let said = "cannot write Events: allow the daemon's ServiceAccount";
    fixture.daemon.wait_for_log(said).await.unwrap();
    let log = fixture.daemon.logs();
    assert_eq!(log.matches(said).count(), 1, "{log}");
    assert!(events_on(&fixture.cluster, "bad-0").await.is_empty());
}

#[tokio::test]
async fn the_startup_taint_goes_once_the_daemon_is_ready_and_no_other() {
    let flag = format!("--startup-taint={TAINT}");
    let others = ["example.com/maintenance", "node.cilium.io/agent-not-ready"];
    let fixture = Fixture::with(RIGHTS, &[&flag], async |cluster| {
        cluster.apply(&rights_for_the_taint(), "rolecall").await.unwrap();
        put_taints(cluster, &[others[0], TAINT, others[1]]).await;
    })
    .await;
    let removals = "rolecall_startup_taint_removals_total";
    fixture.daemon.wait_for_metric(removals, |removals| removals == 1.0).await.unwrap();
    assert_eq!(taints(&fixture.cluster).await, others);
    assert_eq!(fixture.daemon.metric("rolecall_startup_taint_present").await.unwrap(), 0.0);
    // What the daemon takes for a change by somebody else is what the API server answers to a test that fails.
    let stale = json!([
        {"op": "test", "path": "/spec/taints/0", "value": {"key": TAINT, "effect": "NoSchedule"}},
        {"op": "remove", "path": "/spec/taints/0"},
    ]);
    let request = http::Request::patch(format!("/api/v1/nodes/{NODE}"))
        .header("content-type", "application/json-patch+json")
        .body(stale.to_string().into_bytes())
        .unwrap();
    let refused = fixture.cluster.client().await.unwrap().request::<Value>(request).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 422), "{refused}");
    assert_eq!(taints(&fixture.cluster).await, others);
}

#[tokio::test]
async fn without_the_right_to_nodes_the_taint_stays_and_the_log_says_what_to_grant() {
    let flag = format!("--startup-taint={TAINT}");
    let fixture = Fixture::with(RIGHTS, &[&flag], async |cluster| put_taints(cluster, &[TAINT]).await).await;
    fixture.daemon.wait_for_log("allow the daemon's ServiceAccount to get and patch nodes").await.unwrap();
    assert_eq!(taints(&fixture.cluster).await, [TAINT]);
    // Once it is granted nothing has to be started anew.
    fixture.cluster.apply(&rights_for_the_taint(), "rolecall").await.unwrap();
    let removals = "rolecall_startup_taint_removals_total";
    fixture.daemon.wait_for_metric(removals, |removals| removals == 1.0).await.unwrap();
    assert!(taints(&fixture.cluster).await.is_empty());
}

#[tokio::test]
async fn a_policy_limits_the_daemon_to_the_taints_of_its_own_node() {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.create_namespace("rolecall").await.unwrap();
    cluster.create_service_account("rolecall", "rolecall-daemon").await.unwrap();
    cluster.apply(&rights_for_the_taint(), "rolecall").await.unwrap();
    cluster.apply(include_str!("../../deploy/policies/startup-taint.yaml"), "rolecall").await.unwrap();
    for node in [NODE, "node-2"] {
        cluster.create_node(node).await.unwrap();
    }
    put_taints(&cluster, &["example.com/maintenance", TAINT]).await;
    // The daemon's own pod, whose token the kubelet asks for.
    let own = json!({"metadata": {"name": "daemon-0"}, "spec": {"nodeName": NODE, "serviceAccountName": "rolecall-daemon",
        "containers": [{"name": "daemon", "image": "daemon"}]}});
    let uid = cluster.create_pod("rolecall", &own).await.unwrap().uid().unwrap();
    let token = cluster
        .token_request("rolecall", "rolecall-daemon", Some(("daemon-0", &uid)), ISSUER, 600)
        .await
        .unwrap();
    let nodes: Api<Node> = Api::all(cluster.client_with_token(&token).await.unwrap());
    let change = async |node: &str, change: Value| {
        let patched = nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.map(drop).map_err(|error| error.to_string())
    };
    let labels = json!({"metadata": {"labels": {"role": "db"}}});
    // The API server takes a moment to put a policy into force.
    let in_force = async {
        loop {
            match change("node-2", labels.clone()).await {
                Err(error) if error.contains("its own node alone") => break,
                Err(error) => panic!("{error}"),
                Ok(()) => {}
            }
        }
    };
    within_limit("the policy is in force", in_force).await;
    let no_taints = json!({"spec": {"taints": []}});
    assert!(change("node-2", no_taints).await.unwrap_err().contains("its own node alone"));
    assert!(change(NODE, labels).await.unwrap_err().contains("nothing but taints"));
    let more = json!({"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}});
    assert!(change(NODE, more).await.unwrap_err().contains("put none on"));
    let off = json!({"spec": {"taints": [{"key": "example.com/maintenance", "effect": "NoSchedule"}]}});
    assert_eq!(change(NODE, off).await, Ok(()));
    assert_eq!(taints(&cluster).await, ["example.com/maintenance"]);
}
