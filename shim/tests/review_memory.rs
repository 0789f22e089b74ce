//! What reviews take of the memory, and whether the estimate by which they are let in is right.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "figures and inputs are shown where a test fails, or by --nocapture")]

use rolecall_shim::{
    review::{self, Review},
    server::bodies::weight,
};
use serde_json::{Value, json};

/// How much larger than measured the estimate may be for what people create: otherwise few reviews would have room.
const TOO_CAREFUL: f64 = 3.0;

/// A review whose object is this text.
fn body(object: &str) -> Vec<u8> {
    let start =
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","object":"#;
    format!("{start}{object}}}}}").into_bytes()
}

/// As many of `item` in a list as `bytes` take.
fn many(item: &str, bytes: usize) -> String {
    format!("[{}]", vec![item; bytes / (item.len() + 1)].join(","))
}

/// A pod as a mesh and a chart leave it, of 20 containers.
fn pod() -> Value {
    let container = |index: usize| {
        let env: Vec<Value> = (0..15)
            .map(|number| match number % 3 {
                0 => json!({"name": format!("SETTING_{number}"), "value": "something that somebody has set"}),
                1 => json!({"name": format!("SECRET_{number}"), "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
                _ => json!({"name": format!("FIELD_{number}"), "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
            })
            .collect();
        json!({
            "name": format!("container-{index}"), "image": "registry.example.com/team/application:1.2.3",
            "command": ["/bin/application"], "args": ["--listen=:8080", "--log-level=info"], "env": env,
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "kube-api-access", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10},
            "securityContext": {"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
            "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "orders-5d4f8-", "labels": {"app": "orders", "pod-template-hash": "5d4f8"}},
        "spec": {"containers": (0..20).map(container).collect::<Vec<_>>(), "serviceAccountName": "orders"},
    })
}

/// One test, for all share the memory of the process. The trees are kept, so that none is made in the room of another.
#[test]
fn no_review_takes_more_than_is_estimated_for_it() {
    let mut kept: Vec<Vec<Review>> = Vec::new();
    let mut measure = |text: &str, copies: usize| {
        let body = body(text);
        let before = resident();
        kept.push((0..copies).map(|_| review::parse(&body).unwrap()).collect());
        let taken = resident() - before;
        let estimate = weight(&body) * copies;
        let ratio = estimate as f64 / taken as f64;
        println!("{:>12} bytes taken, {ratio:.2} times as many estimated: {:.60}", taken, text);
        ratio
    };
    let keys: Vec<String> = (0..60_000).map(|key| format!("\"{key}\":0")).collect();
    let nested = format!("{}0{}", r#"{"a":"#.repeat(100), "}".repeat(100));
    let nested_lists = format!("{}0{}", "[".repeat(100), "]".repeat(100));
    for text in [
        many("{}", 1_000_000),
        many(r#"{"":0}"#, 500_000),
        many(r#"{"a":"b"}"#, 500_000),
        many(r#"{"a":"b","c":"d"}"#, 700_000),
        many(r#"{"a":{}}"#, 500_000),
        many(&nested, 400_000),
        many("[]", 1_000_000),
        many("[0]", 1_000_000),
        many(r#"["a"]"#, 1_000_000),
        many("[0,0,0,0,0]", 1_000_000),
        many(&nested_lists, 500_000),
        many("0", 1_000_000),
        many(r#""""#, 1_000_000),
        many(r#""a""#, 1_000_000),
        many(&format!("\"{}\"", "a".repeat(40)), 3_000_000),
        format!("{{{}}}", keys.join(",")),
    ] {
        let ratio = measure(&text, 1);
        assert!(1.0 <= ratio, "{ratio} for {text:.60}");
    }
    let ratio = measure(&pod().to_string(), 100);
    assert!((1.0..TOO_CAREFUL).contains(&ratio), "{ratio} for a pod");
}

/// Memory of this process that is in use, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
