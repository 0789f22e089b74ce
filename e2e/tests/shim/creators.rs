//! Pods of controllers, made in the name of the controller from the template that the API server has stored.

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use serde_json::json;

use super::harness::{Deployed, Shim, Stored, fail, is_injected};

/// A client of kube-controller-manager's controller of this name, with its rights.
async fn controller(deployed: &Deployed, name: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(deployed.cluster.kubeconfig_path()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.proxy_url = None;
    let user = format!("system:serviceaccount:kube-system:{name}");
    let header = HeaderName::from_static("impersonate-user");
    config.headers.push((header, HeaderValue::try_from(user).unwrap()));
    Client::try_from(config).unwrap()
}

/// Makes a pod as a controller does, and reads what is stored.
async fn make(
    deployed: &Deployed,
    controller_name: &str,
    owner: &OwnerReference,
    template: PodTemplateSpec,
    finalizer: Option<&str>,
) -> (Pod, Stored) {
    let metadata = template.metadata.unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            owner_references: Some(vec![owner.clone()]),
            finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
            labels: metadata.labels,
            annotations: metadata.annotations,
            ..ObjectMeta::default()
        },
        spec: template.spec,
        ..Pod::default()
    };
    let pods: Api<Pod> = Api::namespaced(controller(deployed, controller_name).await, deployed.name);
    let name = pods.create(&PostParams::default(), &pod).await.unwrap().name_any();
    let stored = deployed.pods().get(&name).await.unwrap();
    assert!(name.starts_with(&format!("{}-", owner.name)) && is_injected(&stored), "{stored:?}");
    assert_eq!(stored.metadata.owner_references, Some(vec![owner.clone()]));
    assert_eq!(stored.metadata.labels, pod.metadata.labels);
    assert_eq!(stored.metadata.finalizers, pod.metadata.finalizers);
    let shown = Stored::new(&stored);
    (stored, shown)
}

fn owner<K: kube::Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference { block_owner_deletion: Some(true), ..object.controller_owner_ref(&()).unwrap() }
}

#[tokio::test]
async fn pods_that_controllers_make_are_injected_and_stay_theirs() {
    let deployed = Deployed::new("creators").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    let pod = json!({
        "restartPolicy": "Never",
        "serviceAccountName": "orders",
        "containers": [{"name": "app", "image": "example.test/app", "env": [{
            "name": "JOB_COMPLETION_INDEX",
            "valueFrom": {"fieldRef": {
                "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
            }},
        }]}],
    });

    let job = json!({
        "metadata": {"name": "import"},
        "spec": {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "template": {"spec": pod}},
    });
    let jobs: Api<Job> = Api::namespaced(deployed.client.clone(), deployed.name);
    let job = jobs.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap();
    let template = job.spec.as_ref().unwrap().template.clone();
    let finalizer = Some("batch.kubernetes.io/job-tracking");
    let (_, shown) = make(&deployed, "job-controller", &owner(&job), template, finalizer).await;
    let variables: Vec<_> = shown.env("app").into_iter().map(|(name, _)| name.to_owned()).collect();
    let injected = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    assert_eq!(variables, ["JOB_COMPLETION_INDEX", injected[0], injected[1]]);

    let mut pod = pod;
    pod["restartPolicy"] = json!("Always");
    let labels = json!({"app": "orders", "pod-template-hash": "5d8f6c7b9"});
    let set = json!({
        "metadata": {"name": "orders-5d8f6c7b9"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    });
    let sets: Api<ReplicaSet> = Api::namespaced(deployed.client.clone(), deployed.name);
    let set = sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    let template = set.spec.as_ref().unwrap().template.clone().unwrap();
    let (first, _) = make(&deployed, "replicaset-controller", &owner(&set), template.clone(), None).await;
    let (second, _) = make(&deployed, "replicaset-controller", &owner(&set), template, None).await;
    assert_ne!(first.name_any(), second.name_any());
}
