//! The manifests on a real API server: installed, judged by Pod Security, upgraded, cleaned up and uninstalled.

use crate::manifests::{
    COMPONENTS, NAMESPACE, REGION, deploy, helm, helm_command, kustomize_copy, kustomize_text, text, text_of,
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use rolecall_e2e::daemon::{Daemon, Settings};
use rolecall_e2e::{ControlPlane, tool};
use rolecall_sandbox::kubelet::KubeletDir;
use serde_json::{Value, json};

/// Everything that the chart can render.
const ALL: [&str; 6] = [
    REGION,
    "startupTaint=rolecall.dev/agent-not-ready",
    "metrics.service=true",
    "metrics.podMonitor=true",
    "metrics.alerts=true",
    "shim.certificate=cert-manager",
];

/// A cluster that knows the resources of cert-manager, Cilium and the Prometheus operator.
async fn cluster() -> ControlPlane {
    let cluster = ControlPlane::start().await.unwrap();
    for file in std::fs::read_dir(tool("crds").unwrap()).unwrap() {
        let definition = std::fs::read_to_string(file.unwrap().path()).unwrap();
        cluster.apply(&definition, "default").await.unwrap();
    }
    cluster
}

#[tokio::test]
async fn the_api_server_accepts_every_manifest() {
    let cluster = cluster().await;
    let (_copy, example) = kustomize_copy(&COMPONENTS);
    let all = kustomize_text(&example);
    served(&cluster, "monitoring.coreos.com/v1", "podmonitors").await;
    served(&cluster, "cert-manager.io/v1", "certificates").await;
    served(&cluster, "cilium.io/v2", "ciliumclusterwidenetworkpolicies").await;
    cluster.apply(&all, NAMESPACE).await.unwrap();
    cluster.apply(&kustomize_text(&deploy("kustomize/cleanup")), NAMESPACE).await.unwrap();
    for policy in std::fs::read_dir(deploy("policies")).unwrap() {
        let manifest = std::fs::read_to_string(policy.unwrap().path()).unwrap();
        cluster.apply(&manifest, "default").await.unwrap();
    }
    // The second time finds them there.
    cluster.apply(&all, NAMESPACE).await.unwrap();
}

#[tokio::test]
async fn helm_installs_upgrades_cleans_up_and_leaves_nothing() {
    let cluster = cluster().await;
    served(&cluster, "monitoring.coreos.com/v1", "prometheusrules").await;
    served(&cluster, "cert-manager.io/v1", "issuers").await;
    let client = cluster.client().await.unwrap();
    // As docs/install.md has it: the namespace before, with its label.
    cluster
        .apply(&std::fs::read_to_string(deploy("kustomize/default/namespace.yaml")).unwrap(), "")
        .await
        .unwrap();
    let before = named_rolecall(&client).await;

    let run = |verb: &str, values: &[&str]| {
        let mut command = helm_command();
        command
            .args([verb, "rolecall", "--namespace", NAMESPACE, "--kubeconfig"])
            .arg(cluster.kubeconfig_path());
        if verb != "uninstall" {
            command.arg(deploy("helm/rolecall"));
        }
        for value in values {
            command.args(["--set", value]);
        }
        text(command.output().unwrap())
    };
    let notes = run("install", &[REGION]);
    assert!(notes.contains("rollout status daemonset/rolecall-daemon"), "{notes}");
    let installed = named_rolecall(&client).await;
    assert!(installed.contains(&"MutatingWebhookConfiguration rolecall-shim".to_owned()), "{installed:?}");

    run("upgrade", &ALL);
    let upgraded = named_rolecall(&client).await;
    assert!(upgraded.contains(&"Service rolecall-daemon-metrics".to_owned()), "{upgraded:?}");

    let notes = run("upgrade", &["cleanup=true"]);
    assert!(notes.contains("helm uninstall"), "{notes}");
    let cleaning = named_rolecall(&client).await;
    let left: Vec<_> = cleaning.iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(left, ["DaemonSet rolecall-daemon", "ServiceAccount rolecall-daemon"], "the webhook is gone");

    run("uninstall", &[]);
    assert_eq!(named_rolecall(&client).await, before);
}

#[tokio::test]
async fn pod_security_lets_the_pods_in_where_they_belong() {
    let cluster = cluster().await;
    for manifest in ["default/namespace.yaml", "daemon/rbac.yaml", "shim/rbac.yaml"] {
        let manifest = std::fs::read_to_string(deploy("kustomize").join(manifest)).unwrap();
        cluster.apply(&manifest, NAMESPACE).await.unwrap();
    }
    let client = cluster.client().await.unwrap();
    for level in ["baseline", "restricted"] {
        let namespace = json!({"metadata": {"name": level, "labels": {
            "pod-security.kubernetes.io/enforce": level,
        }}});
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
        for account in ["rolecall-daemon", "rolecall-shim"] {
            cluster.create_service_account(level, account).await.unwrap();
        }
    }
    let create = async |namespace: &str, pod: &Value| {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        pods.create(&PostParams::default(), &serde_json::from_value(pod.clone()).unwrap()).await
    };
    for values in [&[REGION][..], &[REGION, "daemon.metadataFirewall=iptables-legacy"], &["cleanup=true"]] {
        let daemon = pod_of(&helm(values)["DaemonSet rolecall-daemon"]);
        let admitted = create(NAMESPACE, &daemon).await.unwrap();
        assert_eq!(admitted.spec.unwrap().priority, Some(2_000_001_000), "as critical as the node");
        // It is judged: elsewhere the same pod is refused.
        let refused = create("baseline", &daemon).await.unwrap_err().to_string();
        assert!(refused.contains("host namespaces (hostNetwork=true)"), "{refused}");
    }
    for values in [&[REGION][..], &[REGION, "shim.certificate=cert-manager"]] {
        let shim = pod_of(&helm(values)["Deployment rolecall-shim"]);
        create(NAMESPACE, &shim).await.unwrap();
        create("restricted", &shim).await.unwrap();
    }
}

#[tokio::test]
async fn the_shipped_rights_let_the_daemon_become_ready() {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.apply(&kustomize_text(&deploy("kustomize/default")), NAMESPACE).await.unwrap();
    let kubeconfig = cluster.kubeconfig_for_service_account(NAMESPACE, "rolecall-daemon").await.unwrap();
    let pods = KubeletDir::new().unwrap();
    let settings = Settings {
        node: "node-1",
        kubeconfig: &kubeconfig,
        pods_dir: pods.path(),
        sts: "https://127.0.0.1:1",
        flags: &["--manage-addresses=off"],
    };
    // It waits for that, and fails otherwise.
    Daemon::start(settings).await.unwrap().stop().await.unwrap();
}

/// A pod as the controller of `object` makes it.
fn pod_of(object: &Value) -> Value {
    let mut pod = object["spec"]["template"].clone();
    pod["metadata"]["generateName"] = json!(format!("{}-", text_of(&object["metadata"]["name"])));
    pod
}

/// Completes once the API server serves a resource whose definition it was given.
async fn served(cluster: &ControlPlane, group_version: &str, resource: &str) {
    let client = cluster.client().await.unwrap();
    while !client
        .list_api_group_resources(group_version)
        .await
        .is_ok_and(|list| list.resources.iter().any(|served| served.name == resource))
    {
        tokio::task::yield_now().await;
    }
}

/// Kind and name of every object whose name says that it is Rolecall's, in all namespaces, Helm's records left out.
async fn named_rolecall(client: &Client) -> Vec<String> {
    let mut found = Vec::new();
    let discovery = kube::discovery::Discovery::new(client.clone()).run().await.unwrap();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation("list") {
                continue;
            }
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            for object in objects.list(&ListParams::default()).await.unwrap() {
                let name = object.metadata.name.unwrap_or_default();
                if name.starts_with("rolecall") {
                    found.push(format!("{} {name}", resource.kind));
                }
            }
        }
    }
    found.sort();
    found
}
