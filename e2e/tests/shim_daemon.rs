//! From a ServiceAccount's annotation to credentials: the API server calls the shim, and the daemon serves what it
//! has injected.

#![allow(clippy::unwrap_used, dead_code, reason = "tests fail by panicking, and share a harness")]

#[path = "shim/harness.rs"]
mod harness;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::PostParams;
use rolecall_contract::endpoint::{FULL_URI_ENV, TOKEN_FILE_ENV};
use rolecall_e2e::control_plane::ISSUER;
use rolecall_e2e::daemon::{Daemon, Settings};
use rolecall_e2e::{ControlPlane, Sdk};
use rolecall_sandbox::kubelet::KubeletDir;
use rolecall_sandbox::sts::{StsConfig, StsServer, TrustPolicy};
use serde_json::{Value, json};

use harness::{Deployed, ROLE, Shim};

const NODE: &str = "joint-node";

/// The kubelet's part: a token for each projected volume of the pod, where the kubelet puts it.
async fn set_up_volumes(cluster: &ControlPlane, kubelet: &KubeletDir, namespace: &str, pod: &Pod) -> PathBuf {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap());
    let spec = pod.spec.as_ref().unwrap();
    let account = spec.service_account_name.as_deref().unwrap();
    let mut written = None;
    for volume in spec.volumes.iter().flatten() {
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            let Some(wanted) = &source.service_account_token else { continue };
            // The API server's own token, which every pod has, names no audience.
            let Some(audience) = wanted.audience.as_deref() else { continue };
            let token =
                cluster.token_request(namespace, account, Some((&name, &uid)), audience, 600).await.unwrap();
            kubelet.write_token(&uid, &volume.name, &wanted.path, &token).unwrap();
            written = Some(kubelet.token_path(&uid, &volume.name, &wanted.path));
        }
    }
    written.expect("the shim has added a token volume")
}

/// A variable of the pod's first container.
fn variable(pod: &Pod, name: &str) -> String {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let variable = container.env.iter().flatten().find(|variable| variable.name == name);
    variable
        .and_then(|variable| variable.value.clone())
        .unwrap_or_else(|| panic!("no {name} in {container:?}"))
}

#[tokio::test]
async fn an_annotation_on_a_service_account_is_all_it_takes() {
    let deployed = Deployed::new("joint").await;
    let cluster = deployed.cluster;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;
    cluster.create_node(NODE).await.unwrap();
    let kubelet = KubeletDir::new().unwrap();
    let sts = StsServer::start(StsConfig::default()).await.unwrap();
    sts.register_jwks(ISSUER, serde_json::from_str::<Value>(&cluster.jwks().await.unwrap()).unwrap());
    sts.trust(ROLE, TrustPolicy::service_account(ISSUER, "joint", "orders"));
    let sts_url = sts.url();
    let daemon = Daemon::start(Settings {
        node: NODE,
        kubeconfig: &cluster.kubeconfig_path(),
        pods_dir: kubelet.path(),
        sts: &sts_url,
        flags: &[],
    })
    .await
    .unwrap();

    // Nothing in the pod itself speaks of AWS. It is on the host network because the test's clients are.
    let plain = json!({
        "metadata": {"name": "orders-0"},
        "spec": {
            "nodeName": NODE,
            "hostNetwork": true,
            "serviceAccountName": "orders",
            "containers": [{"name": "app", "image": "app"}],
        },
    });
    let plain: Pod = serde_json::from_value(plain).unwrap();
    let pod = deployed.pods().create(&PostParams::default(), &plain).await.unwrap();
    let token_file = set_up_volumes(cluster, &kubelet, "joint", &pod).await;

    // The variables as they were injected, but for the address, which is another in this test, and the mount.
    assert_eq!(variable(&pod, FULL_URI_ENV), "http://169.254.170.23/v1/credentials");
    let mounted = variable(&pod, TOKEN_FILE_ENV);
    assert!(mounted.ends_with(token_file.file_name().unwrap().to_str().unwrap()), "{mounted}");
    let environment = daemon.environment(&token_file);
    let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
    for sdk in Sdk::ALL {
        let answer = sdk.identity(&environment, &sts_url).await.unwrap();
        assert_eq!(
            answer.arn.as_deref(),
            Some("arn:aws:sts::111122223333:assumed-role/orders/joint.orders-0"),
            "{sdk:?}: {answer:?}\n{}",
            daemon.logs()
        );
    }
    // What the shim wrote is what the daemon reads: the token is required of this pod.
    let (status, refused) = daemon.get("").await.unwrap();
    assert_eq!((status, refused["code"].as_str()), (403, Some("host_network_needs_token")));
    daemon.stop().await.unwrap();
    shim.end().await;
}
