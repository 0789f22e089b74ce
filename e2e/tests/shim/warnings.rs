//! What the API server tells whoever creates a pod: what stands in the way, where, and what to do.

use http::header::WARNING;
use kube::client::Body;
use rolecall_contract::annotation;
use rolecall_contract::endpoint::FULL_URI_ENV;
use serde_json::{Value, json};

use super::harness::{Deployed, ROLE, Stored};
use super::kinds::{deployed, manifest};

/// What EKS's webhook leaves in a pod.
const EKS_FILE: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";

/// Creates a pod. Returns what is stored, and the warnings that come with it.
async fn create(deployed: &Deployed, pod: &Value) -> (Stored, Vec<String>) {
    let uri = format!("/api/v1/namespaces/{}/pods", deployed.name);
    let request = http::Request::post(uri).header("content-type", "application/json");
    let request = request.body(Body::from(pod.to_string().into_bytes())).unwrap();
    let response = deployed.client.send(request).await.unwrap();
    let warnings = response.headers().get_all(WARNING).iter();
    // As RFC 7234 has them: a code, an agent, and the text in quotation marks.
    let text = |header: &http::HeaderValue| {
        let header = std::str::from_utf8(header.as_bytes()).unwrap();
        header.strip_prefix("299 - \"").unwrap().strip_suffix('"').unwrap().replace("\\\"", "\"")
    };
    let warnings = warnings.map(text).collect();
    let body = response.into_body().collect_bytes().await.unwrap();
    (Stored(serde_json::from_slice(&body).unwrap()), warnings)
}

/// Checks the only warning of a pod: the remedy at its end, and that it says which pod. `is_injected` is about its
/// container `app`.
async fn check(
    account: &str,
    annotations: Value,
    metadata: Value,
    spec: Value,
    remedy: &str,
    is_injected: bool,
) {
    let deployed = deployed().await;
    let mut all = json!({"eks.amazonaws.com/role-arn": ROLE});
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    deployed.account_with(account, all).await;
    let (stored, warnings) = create(&deployed, &manifest(account, metadata, spec)).await;
    let [warning] = warnings.as_slice() else { panic!("{warnings:#?}") };
    assert!(warning.starts_with("rolecall: ") && warning.ends_with(remedy), "{warning}");
    assert!(warning.contains(&format!("kinds/{account}-")), "{warning}");
    let has_uri = stored.env("app").iter().any(|(name, _)| *name == FULL_URI_ENV);
    let has_mount = stored.mount("app", "rolecall-token").is_some();
    // All that a container needs, or nothing of it.
    assert_eq!((has_uri, has_mount), (is_injected, is_injected), "{}", stored.0);
}

#[tokio::test]
async fn whoever_stands_in_the_way_of_an_injection_is_told_what_to_do() {
    let none = || json!({});
    let foreign = json!({"volumes": [{"name": "rolecall-token", "emptyDir": {}}]});
    check("foreign-volume", none(), none(), foreign, "rename that volume", false).await;
    let mount = json!({"name": "data", "mountPath": "/var/run/secrets/rolecall.dev/serviceaccount"});
    let taken = json!({
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [{"name": "app", "image": "app", "volumeMounts": [mount]}],
    });
    check("foreign-mount", none(), none(), taken, "mount that elsewhere", false).await;
    let token = json!({"audience": "sts.amazonaws.com", "expirationSeconds": 86400, "path": "token"});
    let theirs = json!({
        "volumes": [{"name": "aws-iam-token", "projected": {"sources": [{"serviceAccountToken": token}]}}],
        "containers": [{
            "name": "app",
            "image": "app",
            "env": [
                {"name": "AWS_ROLE_ARN", "value": ROLE},
                {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": EKS_FILE},
            ],
            "volumeMounts": [{
                "name": "aws-iam-token",
                "mountPath": "/var/run/secrets/eks.amazonaws.com/serviceaccount",
            }],
        }],
    });
    check("eks-was-here", none(), none(), theirs, "in place of eks.amazonaws.com/role-arn", false).await;
}

#[tokio::test]
async fn whoever_writes_what_does_not_count_is_told_what_counts() {
    let (none, long) = (|| json!({}), "eks.amazonaws.com/token-expiration");
    check("short", json!({long: "60"}), none(), none(), "it is taken as 600", true).await;
    check("long", json!({long: "99999999999"}), none(), none(), "it is taken as 4294967295", true).await;
    check("no-number", json!({long: "1h"}), none(), none(), "use a number of seconds", true).await;
    let user = json!({annotation::ROLE_ARN: "arn:aws:iam::111122223333:user/orders"});
    check("user", user, none(), none(), "users, groups and instance profiles have no sessions", true).await;
    let own = json!({"annotations": {annotation::ROLE_ARN: "arn:aws:iam::111122223333:role/admin"}});
    check("own-role", none(), own, none(), "put it on ServiceAccount own-role", true).await;
    let skip = json!({"annotations": {"eks.amazonaws.com/skip-containers": "mash"}});
    check("misspelt", none(), skip, none(), "check the spelling", true).await;
}
