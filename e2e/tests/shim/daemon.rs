//! From a ServiceAccount's annotation to credentials: the API server calls the shim, and the daemon serves what it
//! has injected.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::PostParams;
use rolecall_contract::annotation;
use rolecall_contract::endpoint::{FULL_URI_ENV, TOKEN_FILE_ENV};
use rolecall_e2e::control_plane::ISSUER;
use rolecall_e2e::daemon::{Daemon, Settings};
use rolecall_e2e::{ControlPlane, Sdk};
use rolecall_sandbox::kubelet::KubeletDir;
use rolecall_sandbox::sts::{StsConfig, StsServer, TrustPolicy};
use serde_json::{Value, json};

use super::harness::{Deployed, ROLE, Shim, Stored, fail};

const REPORT: &str = "arn:aws:iam::111122223333:role/team/report";

/// A node with the kubelet's part of it and the daemon, and STS.
struct Node {
    name: &'static str,
    cluster: &'static ControlPlane,
    kubelet: KubeletDir,
    sts: StsServer,
    daemon: Daemon,
}

impl Node {
    /// Joins a node to the cluster whose pods may have `roles` by the ServiceAccount `orders`.
    async fn join(name: &'static str, deployed: &Deployed, roles: &[&str]) -> Self {
        let cluster = deployed.cluster;
        cluster.create_node(name).await.unwrap();
        let kubelet = KubeletDir::new().unwrap();
        let sts = StsServer::start(StsConfig::default()).await.unwrap();
        sts.register_jwks(ISSUER, serde_json::from_str::<Value>(&cluster.jwks().await.unwrap()).unwrap());
        for role in roles {
            sts.trust(role, TrustPolicy::service_account(ISSUER, deployed.name, "orders"));
        }
        let sts_url = sts.url();
        let daemon = Daemon::start(Settings {
            node: name,
            kubeconfig: &cluster.kubeconfig_path(),
            pods_dir: kubelet.path(),
            sts: &sts_url,
            flags: &[],
        })
        .await
        .unwrap();
        Self { name, cluster, kubelet, sts, daemon }
    }

    /// A pod of this node with nothing in it that speaks of AWS. It is on the host network because the test's clients
    /// are.
    fn manifest(&self, name: &str, containers: &[&str]) -> Pod {
        let containers: Vec<Value> =
            containers.iter().map(|name| json!({"name": name, "image": "app"})).collect();
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.name,
                "hostNetwork": true,
                "serviceAccountName": "orders",
                "containers": containers,
            },
        });
        serde_json::from_value(pod).unwrap()
    }

    /// The kubelet's part: a token for each projected volume of the pod, where the kubelet puts it.
    async fn set_up_volumes(&self, namespace: &str, pod: &Pod) -> PathBuf {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        let spec = pod.spec.as_ref().unwrap();
        let account = spec.service_account_name.as_deref().unwrap();
        let mut written = None;
        for volume in spec.volumes.iter().flatten() {
            for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
                let Some(wanted) = &source.service_account_token else { continue };
                // The API server's own token, which every pod has, names no audience.
                let Some(audience) = wanted.audience.as_deref() else { continue };
                let bound = Some((name.as_str(), uid.as_str()));
                let token =
                    self.cluster.token_request(namespace, account, bound, audience, 600).await.unwrap();
                self.kubelet.write_token(&uid, &volume.name, &wanted.path, &token).unwrap();
                written = Some(self.kubelet.token_path(&uid, &volume.name, &wanted.path));
            }
        }
        written.expect("the shim has added a token volume")
    }

    /// Who STS says that a container of `pod` is, with the variables as they were injected, but for the address, which
    /// is another in this test, and the mount.
    async fn identity(&self, sdk: Sdk, pod: &Stored, container: &str, token_file: &Path) -> String {
        let env = pod.env(container);
        let of = |name: &str| env.iter().find(|(found, _)| *found == name).unwrap().1;
        let mounted = of(TOKEN_FILE_ENV);
        assert!(mounted.ends_with(token_file.file_name().unwrap().to_str().unwrap()), "{mounted}");
        let path = of(FULL_URI_ENV).strip_prefix("http://169.254.170.23/v1/credentials").unwrap();
        let mut environment = self.daemon.environment(token_file);
        environment[0].1.push_str(path);
        let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let answer = sdk.identity(&environment, &self.sts.url()).await.unwrap();
        answer.arn.clone().unwrap_or_else(|| panic!("{sdk:?}: {answer:?}\n{}", self.daemon.logs()))
    }
}

#[tokio::test]
async fn an_annotation_on_a_service_account_is_all_it_takes() {
    let deployed = Deployed::new("joint").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;
    let node = Node::join("joint-node", &deployed, &[ROLE]).await;

    let pod = deployed.pods().create(&PostParams::default(), &node.manifest("orders-0", &["app"])).await;
    let pod = pod.unwrap();
    let token_file = node.set_up_volumes("joint", &pod).await;
    for sdk in Sdk::ALL {
        let arn = node.identity(sdk, &Stored::new(&pod), "app", &token_file).await;
        assert_eq!(arn, "arn:aws:sts::111122223333:assumed-role/orders/joint.orders-0", "{sdk:?}");
    }
    // What the shim wrote is what the daemon reads: the token is required of this pod.
    let (status, refused) = node.daemon.get("").await.unwrap();
    assert_eq!((status, refused["code"].as_str()), (403, Some("host_network_needs_token")));
    node.daemon.stop().await.unwrap();
    shim.end().await;
}

#[tokio::test]
async fn each_container_gets_credentials_of_its_own_role() {
    let deployed = Deployed::new("roles").await;
    deployed.annotate("orders", &json!({"rolecall.dev/role-arn.report": REPORT})).await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    let node = Node::join("roles-node", &deployed, &[ROLE, REPORT]).await;

    let manifest = node.manifest("orders-0", &["app", "report"]);
    let pod = deployed.pods().create(&PostParams::default(), &manifest).await.unwrap();
    let token_file = node.set_up_volumes("roles", &pod).await;
    let stored = Stored::new(&pod);
    assert_eq!(stored.annotation(annotation::ROLE_ARN), Some(ROLE));
    for (container, role) in [("app", "orders"), ("report", "report")] {
        let arn = node.identity(Sdk::Boto3, &stored, container, &token_file).await;
        assert_eq!(arn, format!("arn:aws:sts::111122223333:assumed-role/{role}/roles.orders-0"));
    }
    node.daemon.stop().await.unwrap();
}
