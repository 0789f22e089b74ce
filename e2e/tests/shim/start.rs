//! What a replica waits for before it says that it is ready, each thing by itself.

use serde_json::Value;

use super::harness::{Deployed, Shim, Volume, fail, shipped, until};

const NOT_READY: &str = "rolecall_shim_calls_unanswered_total{reason=\"not_ready\"}";

/// Gives the shim those rights of the shipped manifest that are about `resources`.
async fn grant(deployed: &Deployed, resources: &[&str]) {
    for mut object in serde_saphyr::from_multiple::<Value>(&shipped("rbac.yaml", deployed.name)).unwrap() {
        if let Some(rules) = object.get_mut("rules").and_then(Value::as_array_mut) {
            rules.retain(|rule| resources.iter().any(|&resource| rule["resources"][0] == resource));
        }
        deployed.cluster.apply(&object.to_string(), deployed.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_replica_is_ready_when_nothing_is_missing_any_more_and_not_before() {
    let deployed = Deployed::without_rights("starting").await;
    let mut volume = Volume::with(&[("config.json", "{\"identities\":[{")]);
    let path = volume.path("config.json");
    let flag = format!("--watch-container-credentials-config={}", path.display());
    let shim = Shim::start_with(&deployed, &[&flag]).await;
    let missing = async |expected: &[&str]| {
        until(&format!("it waits for {expected:?}"), async || {
            shim.missing().await.is_some_and(|is| is == expected)
        })
        .await;
    };
    let (certificate, trusted) = ("certificate loaded", "certificate trusted by caBundle");
    let (accounts, map, identities) = ("service accounts synced", "config map read", "identities read");

    missing(&[certificate, trusted, accounts, map, identities]).await;
    grant(&deployed, &["secrets"]).await;
    missing(&[trusted, accounts, map, identities]).await;
    grant(&deployed, &["secrets", "mutatingwebhookconfigurations"]).await;
    deployed.configure(&[shim.url()], fail).await;
    missing(&[accounts, map, identities]).await;

    // The API server calls it by now. Better no pod than one that silently lacks its role.
    until("the API server calls", async || {
        let _ = deployed.try_out("orders").await;
        shim.metric(NOT_READY).await.is_some_and(|calls| 0.0 < calls)
    })
    .await;
    let Err(kube::Error::Api(status)) = deployed.try_out("orders").await else {
        panic!("the pod was let in")
    };
    assert!(status.code == 500 && status.message.contains("pods-0.rolecall.dev"), "{status:?}");

    volume.fill(&[("config.json", "{\"identities\":[]}")]);
    missing(&[accounts, map]).await;
    grant(&deployed, &["secrets", "mutatingwebhookconfigurations", "serviceaccounts"]).await;
    missing(&[map]).await;
    let all = ["secrets", "mutatingwebhookconfigurations", "serviceaccounts", "configmaps"];
    grant(&deployed, &all).await;
    shim.ready().await;
    deployed.in_effect().await;
}
