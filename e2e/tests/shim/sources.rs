//! What binds roles beside annotations, changed while the shim runs.

use kube::ResourceExt;
use kube::api::DeleteParams;
use rolecall_contract::annotation;
use serde_json::{Value, json};

use super::harness::{Deployed, Shim, Volume, fail, until};

const BAD_ENTRIES: &str = "rolecall_shim_config_map_bad_entries";

/// The role that a pod of this ServiceAccount would get.
async fn role_of(deployed: &Deployed, account: &str) -> Option<String> {
    let pod = deployed.try_out(account).await.unwrap();
    pod.annotations().get(annotation::ROLE_ARN).cloned()
}

fn role(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

#[tokio::test]
async fn the_config_map_binds_as_it_is_changed_and_goes_on_while_it_is_malformed() {
    let deployed = Deployed::new("mapped").await;
    for account in ["plain", "other"] {
        deployed.account_with(account, json!({})).await;
    }
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    assert_eq!(role_of(&deployed, "plain").await, None);

    let gets = async |account: &str, expected: Option<String>| {
        until(&format!("{account} gets {expected:?}"), async || {
            role_of(&deployed, account).await == expected
        })
        .await;
    };
    let entry = |name: &str| json!({"RoleARN": role(name)});
    let bind = async |config: Value| deployed.bind(&config.to_string()).await;
    bind(json!({"mapped/plain": entry("first")})).await;
    gets("plain", Some(role("first"))).await;
    bind(json!({"mapped/plain": entry("second")})).await;
    gets("plain", Some(role("second"))).await;
    // The pattern is for whom no plain name matches.
    bind(json!({"mapped/plain": entry("second"), "map?ed/*": entry("pattern")})).await;
    gets("other", Some(role("pattern"))).await;
    gets("plain", Some(role("second"))).await;

    // One entry is wrong: it goes on as it was, and the others count.
    bind(json!({"mapped/plain": {"RoleARN": 7}, "mapped/other": entry("third")})).await;
    gets("other", Some(role("third"))).await;
    gets("plain", Some(role("second"))).await;
    assert_eq!(shim.metric(BAD_ENTRIES).await, Some(1.0));
    until("the entry is named", async || shim.has_logged("mapped/plain")).await;

    // All of it is wrong, as after a slip in an editor: everything goes on as it was.
    deployed.bind("{\"mapped/plain\":").await;
    until("the mistake is logged", async || shim.has_logged("what it held before goes on counting")).await;
    gets("other", Some(role("third"))).await;
    gets("plain", Some(role("second"))).await;
    assert_eq!(shim.metric(BAD_ENTRIES).await, Some(1.0));

    bind(json!({"mapped/plain": entry("fourth")})).await;
    gets("plain", Some(role("fourth"))).await;
    assert_eq!(shim.metric(BAD_ENTRIES).await, Some(0.0));
    deployed.config_maps().delete("pod-identity-webhook", &DeleteParams::default()).await.unwrap();
    gets("plain", None).await;
}

#[tokio::test]
async fn the_file_of_identities_counts_as_it_is_changed_and_goes_on_while_it_is_malformed() {
    let deployed = Deployed::new("identified").await;
    deployed.account_with("plain", json!({})).await;
    let identities = |names: &[&str]| {
        let of = |name: &&str| json!({"namespace": "identified", "serviceAccount": name});
        json!({"identities": names.iter().map(of).collect::<Vec<_>>()}).to_string()
    };
    let mut volume = Volume::with(&[("config.json", &identities(&["plain"]))]);
    let path = volume.path("config.json");
    let flag = format!("--watch-container-credentials-config={}", path.display());
    let shim = Shim::start_with(&deployed, &[&flag]).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;

    let is_identified = async |account: &str| {
        let pod = deployed.try_out(account).await.unwrap();
        pod.labels().get("eks.amazonaws.com/pod-identity").is_some_and(|value| value == "enabled")
    };
    assert!(is_identified("plain").await && !is_identified("orders").await);
    volume.fill(&[("config.json", &identities(&["orders"]))]);
    until("the new list counts", async || is_identified("orders").await).await;
    assert!(!is_identified("plain").await);

    volume.fill(&[("config.json", "{\"identities\":[{")]);
    let errors = "rolecall_shim_identities_errors_total";
    until("the mistake is counted", async || shim.metric(errors).await.is_some_and(|count| 0.0 < count))
        .await;
    assert!(is_identified("orders").await);
    until("the mistake is logged", async || shim.has_logged("what it held before counts")).await;
    volume.fill(&[("config.json", &identities(&[]))]);
    until("an empty list clears it", async || !is_identified("orders").await).await;
}
