//! The API server calls the shim, in every way that a configuration can ask for.

use futures_util::future::join_all;
use k8s_openapi::ByteString;
use kube::ResourceExt;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use rolecall_contract::annotation;
use rolecall_e2e::own_address;
use serde_json::{Value, json};

use super::harness::{Deployed, ROLE, Shim, fail, is_injected, until, webhook};

#[tokio::test]
async fn the_api_server_calls_the_shim_and_pods_of_controllers_are_injected() {
    let deployed = Deployed::new("called").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let pod = deployed.create("orders").await.unwrap();
    assert!(is_injected(&pod) && pod.name_any().starts_with("orders-"), "{pod:?}");
    assert_eq!(pod.annotations()[annotation::ROLE_ARN], ROLE);
    assert_eq!(pod.annotations()[annotation::TOKEN], annotation::TOKEN_REQUIRED);

    let pod = deployed.create("default").await.unwrap();
    assert!(!is_injected(&pod) && pod.annotations().is_empty(), "{pod:?}");
}

#[tokio::test]
async fn a_service_account_that_is_made_a_moment_before_its_pod_is_known_to_the_shim() {
    let deployed = Deployed::new("raced").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let names: Vec<String> = (0..30).map(|index| format!("new-{index}")).collect();
    let created = join_all(names.iter().map(|name| {
        let deployed = &deployed;
        async move {
            deployed.account(name).await;
            deployed.create(name).await.unwrap()
        }
    }));
    for pod in created.await {
        assert!(is_injected(&pod), "{}\n{}", pod.name_any(), shim.process.logs());
    }
    assert_eq!(shim.metric("rolecall_shim_service_accounts_missing_total").await, Some(0.0));
}

#[tokio::test]
async fn a_configuration_that_knows_v1beta1_alone_gets_its_pods_injected() {
    let deployed = Deployed::new("beta").await;
    let shim = Shim::start(&deployed).await;
    let beta = |webhook: &mut Value| {
        webhook["admissionReviewVersions"] = json!(["v1beta1"]);
        fail(webhook);
    };
    deployed.configure(&[shim.url()], beta).await;
    shim.ready().await;
    deployed.in_effect().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
}

#[tokio::test]
async fn a_sidecar_that_a_later_webhook_adds_is_injected_too() {
    let deployed = Deployed::new("reinvoked").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let (url, authority) = webhook::serve(own_address(), add_sidecar);
    let mut other = deployed.configuration().await;
    // Webhooks are called in the order of these names.
    other.metadata = ObjectMeta { name: Some("zz-sidecar".to_owned()), ..ObjectMeta::default() };
    let mut webhook = other.webhooks.take().unwrap().remove(0);
    webhook.name = "sidecar.example.test".to_owned();
    webhook.client_config.url = Some(url);
    webhook.client_config.ca_bundle = Some(ByteString(authority));
    webhook.failure_policy = Some("Fail".to_owned());
    webhook.reinvocation_policy = Some("Never".to_owned());
    other.webhooks = Some(vec![webhook]);
    deployed.configurations().create(&PostParams::default(), &other).await.unwrap();

    let has_sidecar = async || deployed.try_out("orders").await.unwrap().spec.unwrap().containers.len() == 2;
    until("the other webhook takes effect", has_sidecar).await;
    let pod = deployed.create("orders").await.unwrap();
    let names: Vec<_> =
        pod.spec.as_ref().unwrap().containers.iter().map(|container| container.name.clone()).collect();
    assert_eq!(names, ["app", "sidecar"]);
    assert!(is_injected(&pod), "{:?}", pod.spec);
}

#[tokio::test]
async fn calls_under_way_are_answered_while_a_replica_ends() {
    let deployed = Deployed::new("drained").await;
    let folder = tempfile::tempdir().unwrap();
    let (relay, kubeconfig) = deployed.relay(folder.path());
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let flags = [kubeconfig.as_str(), "--service-account-lookup-grace-period=8s"];
    let shim = Shim::start_with(&deployed, &flags).await;
    let patient = |webhook: &mut Value| {
        webhook["timeoutSeconds"] = json!(30);
        fail(webhook);
    };
    deployed.configure(&[shim.url()], patient).await;
    shim.ready().await;
    deployed.in_effect().await;

    // The API server knows accounts that the shim cannot hear of, so its calls wait there.
    relay.pause();
    let names: Vec<String> = (0..10).map(|index| format!("new-{index}")).collect();
    for name in &names {
        deployed.account(name).await;
    }
    let calls = join_all(names.iter().map(|name| deployed.create(name)));
    let ending = async {
        let waits = "rolecall_shim_service_account_waits_total";
        until("every call is under way", async || shim.metric(waits).await == Some(10.0)).await;
        shim.process.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        until("the drain begins", async || shim.has_logged("the drain begins")).await;
        assert!(shim.process.is_running().unwrap(), "{}", shim.process.logs());
        relay.resume();
    };
    let (pods, ()) = tokio::join!(calls, ending);
    for pod in pods {
        assert!(is_injected(&pod.unwrap()), "{}", shim.process.logs());
    }
    shim.ended().await;
}

fn add_sidecar(pod: &Value) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    if containers.iter().any(|container| container["name"] == "sidecar") {
        return Vec::new();
    }
    let sidecar = json!({"name": "sidecar", "image": "example.test/sidecar"});
    vec![json!({"op": "add", "path": "/spec/containers/-", "value": sidecar})]
}
