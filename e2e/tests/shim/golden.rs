//! The golden cases of the shim, put before the API server: what it takes of an author, it takes of the shim.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::ApiResource;
use rolecall_e2e::ControlPlane;
use serde_json::{Value, json};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shim/testdata/golden");

/// Cases of what never comes so to the API server, in case it does: ephemeral containers come to pods that run, and a
/// mirror pod has no ServiceAccount. All others have to be taken, before and after.
const NOT_TAKEN: [&str; 2] = ["container-ephemeral-untouched", "container-mirror-pod"];

#[tokio::test]
async fn every_golden_pod_is_taken_by_the_api_server_before_and_after_the_shim() {
    let cluster = ControlPlane::shared().await.unwrap();
    cluster.create_namespace("golden").await.unwrap();
    let client = cluster.client().await.unwrap();
    // As raw JSON: what is put before it is what is written, fields that are unknown here included.
    let resource = ApiResource::erase::<Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(client, "golden", &resource);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };

    let mut cases: Vec<_> = std::fs::read_dir(CASES).unwrap().map(|file| file.unwrap().path()).collect();
    cases.sort();
    assert!(60 <= cases.len());
    let mut accounts = BTreeSet::from(["default".to_owned()]);
    let mut refused = Vec::new();
    for path in cases {
        let case: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let account = case["pod"]["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned();
        if accounts.insert(account.clone()) {
            cluster.create_service_account("golden", &account).await.unwrap();
        }
        let expected = if case["expect"]["pod"].is_null() { &case["pod"] } else { &case["expect"]["pod"] };
        let mut outcomes = Vec::new();
        for pod in [&case["pod"], expected] {
            let mut pod = pod.clone();
            pod["metadata"]["namespace"] = json!("golden");
            let outcome = match serde_json::from_value(pod) {
                Ok(pod) => pods.create(&dry_run, &pod).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            outcomes.extend(outcome.err());
        }
        if outcomes.is_empty() == NOT_TAKEN.contains(&name.as_str()) {
            refused.push((name, outcomes));
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}
