//! A shim that is down or hangs stops what it has to stop, and no more.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use rolecall_e2e::{free_port, own_address};
use serde_json::{Value, json};

use super::harness::{Deployed, Shim, fail, is_injected, pod, shipped, until};

/// The URL of nobody.
fn nowhere() -> String {
    let address = own_address();
    format!("https://{address}:{}/mutate", free_port(address).unwrap())
}

/// What the API server says to who may not create a pod; `None` if the pod may be created.
async fn refusal(deployed: &Deployed) -> Option<String> {
    match deployed.try_out("orders").await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn with_failure_policy_fail_no_pod_is_let_in_while_nobody_answers() {
    let deployed = Deployed::new("failing").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    shim.process.kill().unwrap();
    let Err(kube::Error::Api(status)) = deployed.create("orders").await else { panic!("the pod was let in") };
    assert!(status.code == 500 && status.message.contains("pods-0.rolecall.dev"), "{status:?}");

    let again = Shim::start_at(&deployed, shim.address, shim.port(), &[]).await;
    again.ready().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
}

#[tokio::test]
async fn a_shim_that_hangs_stops_no_pod_with_ignore_and_is_named_with_fail() {
    let deployed = Deployed::new("hanging").await;
    let shim = Shim::start(&deployed).await;
    // As short as possible, for the test waits for it.
    let impatient = |webhook: &mut Value| webhook["timeoutSeconds"] = json!(1);
    deployed.configure(&[shim.url()], impatient).await;
    shim.ready().await;
    deployed.in_effect().await;

    shim.process.signal(Signal::SIGSTOP).unwrap();
    // A thread that runs may finish an answer before it stops.
    until("a pod is let in without an answer", async || {
        !is_injected(&deployed.try_out("orders").await.unwrap())
    })
    .await;
    let strict = |webhook: &mut Value| {
        impatient(webhook);
        fail(webhook);
    };
    deployed.configure(&[shim.url()], strict).await;
    until("nobody gets in", async || refusal(&deployed).await.is_some()).await;
    let message = refusal(&deployed).await.unwrap();
    assert!(message.contains("pods-0.rolecall.dev") && message.contains("deadline exceeded"), "{message}");

    shim.process.signal(Signal::SIGCONT).unwrap();
    deployed.in_effect().await;
}

#[tokio::test]
async fn what_the_shipped_configuration_leaves_out_comes_up_while_nobody_answers() {
    let deployed = Deployed::new("left-out").await;
    deployed.configure(&[nowhere()], fail).await;
    until("nobody gets in", async || refusal(&deployed).await.is_some()).await;

    // The shim's own pods, as the shipped Deployment makes them: otherwise it could never come back.
    let deployment: Value = serde_saphyr::from_str(&shipped("deployment.yaml", deployed.name)).unwrap();
    let mut own = deployment["spec"]["template"].clone();
    own["metadata"]["generateName"] = json!("left-out-");
    create(&deployed, own).await;
    // The pictures of static pods, such as those of the control plane itself. They have no ServiceAccount.
    let mirror = json!({
        "metadata": {"name": "etcd-a", "annotations": {"kubernetes.io/config.mirror": "0123456789abcdef"}},
        "spec": {"nodeName": "a", "containers": [{"name": "etcd", "image": "example.test/etcd"}]},
    });
    create(&deployed, mirror).await;
    // Whatever is no pod.
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    deployed.config_maps().create(&PostParams::default(), &map).await.unwrap();
    // A namespace with the label, from one moment to the next.
    assert!(refusal(&deployed).await.is_some());
    let namespaces: Api<Namespace> = Api::all(deployed.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"rolecall.dev/webhook": "disabled"}}}));
    namespaces.patch(deployed.name, &PatchParams::default(), &label).await.unwrap();
    until("the namespace is left out", async || refusal(&deployed).await.is_none()).await;
}

#[tokio::test]
async fn with_the_shipped_policy_the_pods_of_the_system_come_up_while_nobody_answers() {
    let deployed = Deployed::new("shipped").await;
    // Beside this namespace, the one of the system, with the policy as it is shipped; then with the other one, which
    // shows that these pods are asked about.
    let system_too = |webhook: &mut Value| {
        webhook["namespaceSelector"]["matchExpressions"][1]["values"] = json!(["shipped", "kube-system"]);
    };
    deployed.cluster.create_service_account("kube-system", "network").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(deployed.client.clone(), "kube-system");
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    deployed
        .configure(&[nowhere()], |webhook| {
            system_too(webhook);
            fail(webhook);
        })
        .await;
    until("no pod of the system gets in", async || pods.create(&dry_run, &pod("network")).await.is_err())
        .await;
    deployed.configure(&[nowhere()], system_too).await;
    until("the pods of the system come up", async || pods.create(&dry_run, &pod("network")).await.is_ok())
        .await;
    deployed.configure(&[nowhere()], |_| {}).await;
}

async fn create(deployed: &Deployed, manifest: Value) {
    let pod: Pod = serde_json::from_value(manifest).unwrap();
    deployed.pods().create(&PostParams::default(), &pod).await.unwrap();
}
