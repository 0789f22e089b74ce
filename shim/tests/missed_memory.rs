//! What it costs to look through all pods of a cluster: bytes from the API server, requests and memory.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "figures and inputs are shown where a test fails, or by --nocapture")]

use std::{
    convert::Infallible,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use kube::{Client, client::Body};
use prometheus_client::registry::Registry;
use rolecall_process::{drain, time::Clock};
use rolecall_shim::{
    cache::{
        Known,
        latest::Latest,
        lookup::{self, Lookup},
        service_accounts::ServiceAccounts,
    },
    missed::{Metrics, Missed},
    policy::Policy,
};
use serde_json::{Value, json};
use tokio::time::sleep;

const PODS: usize = 10_000;

/// Most that it may take, in bytes: a page of pods as text, as far as it is parsed, and what the allocator keeps.
const MOST: usize = 12 * 1024 * 1024;

/// Most requests for a thousand pods.
const REQUESTS: usize = 5;

/// Stands for the number of a pod.
const NUMBER: &str = "NUMBER";

/// A pod that runs, with the managed fields and the status that controllers and the kubelet leave.
fn pod() -> Value {
    let names = ["application", "proxy"];
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/team/{name}:1.2.3"), "args": ["--listen=:8080"],
            "env": [
                {"name": "LOG_LEVEL", "value": "info"},
                {"name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": "http://169.254.170.23/v1/credentials"},
                {"name": "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                    "value": "/var/run/secrets/rolecall.dev/serviceaccount/token"},
            ],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [
                {"name": "rolecall-token", "readOnly": true, "mountPath": "/var/run/secrets/rolecall.dev/serviceaccount"},
                {"name": "kube-api-access-abcde", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        })
    };
    let status = |name: &str| {
        json!({
            "name": name, "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}, "lastState": {}, "ready": true,
            "restartCount": 0, "image": format!("registry.example.com/team/{name}:1.2.3"), "started": true,
            "imageID": format!("registry.example.com/team/{name}@sha256:{}", "0".repeat(64)),
            "containerID": format!("containerd://{}", "0".repeat(64)),
        })
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:05Z"});
    let fields = |paths: &[&str]| -> Value {
        paths
            .iter()
            .map(|path| ((*path).to_owned(), json!({".": {}, "f:name": {}})))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("application-5d4f8c7b9-{NUMBER}"), "generateName": "application-5d4f8c7b9-",
            "namespace": "namespace-of-a-team",
            "uid": format!("00000000-0000-4000-8000-0000000{NUMBER}"), "resourceVersion": "12345678",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": "application", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"rolecall.dev/role-arn": "arn:aws:iam::111122223333:role/application",
                "rolecall.dev/token": "required"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "application-5d4f8c7b9",
                "uid": "00000000-0000-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [
                {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                    "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {
                    "f:metadata": fields(&["f:generateName", "f:labels", "f:ownerReferences"]),
                    "f:spec": {"f:containers": fields(&["k:{\"name\":\"application\"}", "k:{\"name\":\"proxy\"}"]),
                        "f:other": fields(&["f:dnsPolicy", "f:restartPolicy", "f:schedulerName", "f:securityContext"])}}},
                {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:05Z",
                    "subresource": "status", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": fields(&[
                        "f:conditions", "f:containerStatuses", "f:hostIP", "f:phase", "f:podIP", "f:podIPs", "f:startTime"])}},
            ],
        },
        "spec": {
            "serviceAccountName": "application", "serviceAccount": "application", "nodeName": "node-1",
            "containers": names.map(container), "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "priority": 0,
            "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "securityContext": {},
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "volumes": [
                {"name": "rolecall-token", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {
                    "audience": "sts.amazonaws.com", "expirationSeconds": 83217, "path": "token"}}]}},
                {"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}},
            ],
        },
        "status": {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}],
            "startTime": "2026-01-01T00:00:00Z", "qosClass": "Burstable", "containerStatuses": names.map(status),
            "conditions": conditions.map(condition),
        },
    })
}

/// What was sent.
#[derive(Default)]
struct Sent {
    bytes: AtomicUsize,
    requests: AtomicUsize,
}

#[tokio::test(start_paused = true)]
async fn all_pods_of_a_large_cluster_pass_by_and_leave_nothing() {
    let sent = Arc::new(Sent::default());
    let counted = sent.clone();
    let template = pod().to_string();
    let service = tower::service_fn(move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default();
        let of = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
        let (first, limit) = (of("continue=").unwrap_or_default(), of("limit=").unwrap());
        let next = (first + limit).min(PODS);
        let token = if next < PODS { next.to_string() } else { String::new() };
        let items: Vec<String> =
            (first..next).map(|index| template.replace(NUMBER, &format!("{index:05}"))).collect();
        let body = format!(
            r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"continue":"{token}"}},"items":[{}]}}"#,
            items.join(",")
        );
        counted.bytes.fetch_add(body.len(), Ordering::Relaxed);
        counted.requests.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(Response::new(Body::from(body.into_bytes()))) }
    });
    let client = Client::new(service, "default");
    let (trigger, _) = drain::new();
    let (table, _accounts) = ServiceAccounts::new(None);
    let config = lookup::Config { grace: Duration::ZERO };
    let metrics = lookup::Metrics::default();
    let service_accounts = Lookup::new(config, table, client.clone(), None, trigger.tasks(), metrics);
    let known = Known { service_accounts, config_map: Latest::default(), identities: Latest::default() };
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let configuration = "rolecall-shim".to_owned();
    let missed = Missed::new(known, Policy::default(), configuration, client, Clock::system(), metrics);

    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    trigger.tasks().spawn("missed injections", missed.run(futures_util::stream::pending()));
    sleep(Duration::from_secs(1800)).await;
    let (most, bytes) = (memory("VmHWM:") - before, sent.bytes.load(Ordering::Relaxed));
    let requests = sent.requests.load(Ordering::Relaxed);
    println!("{} bytes and {requests} requests for {PODS} pods, {most} bytes of memory at most", bytes);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains(&format!("shim_missed_injection_pods_swept_total {PODS}\n")), "{text}");
    assert!(text.contains("shim_pods_not_injected 0\n"), "{text}");
    assert_eq!(requests, PODS / 1000 * REQUESTS);
    assert!(most < MOST, "{most} bytes of memory");
}

/// Memory of this process in bytes: what is in use (`VmRSS:`), or was at most (`VmHWM:`).
fn memory(which: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
