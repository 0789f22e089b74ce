//! Pods that the shim has made of plain ones at a real API server, served by the daemon at real addresses.

use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Client, ResourceExt,
    api::{Api, PostParams},
};
use rolecall_contract::endpoint::{FULL_URI_ENV, RELATIVE_URI_ENV};
use rolecall_e2e::{ControlPlane, Process, binary, control_plane::ISSUER, free_port, own_address};
use rolecall_sandbox::{
    kubelet::KubeletDir,
    sts::{StsConfig, StsServer, TrustPolicy},
    world::NODE,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    daemon::{Daemon, Settings},
    network::{Link, Node},
};

const ORDERS: &str = "arn:aws:iam::111122223333:role/orders";
const REPORT: &str = "arn:aws:iam::111122223333:role/report";

/// Where SDKs ask that know only the relative URI, and where all others ask.
const RELATIVE: &str = "169.254.170.2";
const FULL: &str = "169.254.170.23";

pub fn served_by_address() {
    let node = Node::new();
    let [old, new, nobody] =
        [node.pod(Link::Bridge, 2), node.pod(Link::Bridge, 3), node.pod(Link::Bridge, 4)];
    let dir = TempDir::new().unwrap();
    // Its threads are on the network of this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::start(dir.path()));
    let old_pod = runtime.block_on(cluster.pod("old", &old.v4));
    let new_pod = runtime.block_on(cluster.pod("new", &new.v4));
    let settings = Settings {
        kubeconfig: &cluster.control_plane.kubeconfig_path(),
        pods: cluster.kubelet.path(),
        sts: &cluster.sts.url(),
        dir: dir.path(),
    };
    let mut daemon = Daemon::spawn(
        &settings,
        &[],
        &["--region=us-east-1", "--metadata-firewall=off", "--listen=169.254.170.2:80,169.254.170.23:80"],
    );
    daemon.wait_until_ready();

    let of_app = value(&old_pod, "app", RELATIVE_URI_ENV);
    let of_report = value(&old_pod, "report", RELATIVE_URI_ENV);
    for (pod, address, path, expect) in [
        // The pod's address is enough, for each of its containers.
        (&old, RELATIVE, of_app, "200 orders"),
        (&old, RELATIVE, of_report, "200 report"),
        (&nobody, RELATIVE, of_app, "503 pod_unknown"),
        // A pod that did not ask for it has to send its token.
        (&new, RELATIVE, of_app, "401 token_required"),
        (&new, FULL, "/v1/credentials", "401 token_required"),
    ] {
        assert_eq!(pod.asks_at(address, path, None), expect, "{pod:?} {path}: {}", daemon.log());
    }
    let full = value(&new_pod, "app", FULL_URI_ENV);
    assert_eq!(full, format!("http://{FULL}/v1/credentials"));
    daemon.kill();
}

/// A control plane with the shim, STS, and the kubelet's directory of the node.
struct Cluster {
    control_plane: ControlPlane,
    client: Client,
    kubelet: KubeletDir,
    sts: StsServer,
    shim: Process,
}

impl Cluster {
    async fn start(dir: &Path) -> Self {
        let control_plane = ControlPlane::start().await.unwrap();
        let client = control_plane.client().await.unwrap();
        for namespace in ["rolecall", "shop"] {
            control_plane.create_namespace(namespace).await.unwrap();
        }
        for manifest in ["rbac.yaml", "secret.yaml"] {
            control_plane.apply(&shipped(manifest), "rolecall").await.unwrap();
        }
        let address = own_address();
        let port = free_port(address).unwrap();
        let mut configuration: Value = serde_saphyr::from_str(&shipped("webhook.yaml")).unwrap();
        configuration["webhooks"][0]["clientConfig"] =
            json!({"url": format!("https://{address}:{port}/mutate")});
        control_plane.apply(&configuration.to_string(), "rolecall").await.unwrap();
        let kubeconfig =
            control_plane.kubeconfig_for_service_account("rolecall", "rolecall-shim").await.unwrap();
        let mut command = Process::command(binary("rolecall-shim").unwrap());
        command.args([
            format!("--listen={address}:{port}"),
            format!("--certificate-name={address}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--namespace=rolecall".to_owned(),
            "--admin-listen=off".to_owned(),
            "--metrics-listen=off".to_owned(),
            format!("--admin-socket={}", dir.join("shim.sock").display()),
        ]);
        let shim = Process::spawn("rolecall-shim", command, dir).unwrap();

        let kubelet = KubeletDir::new().unwrap();
        let sts = StsServer::start(StsConfig::default()).await.unwrap();
        let jwks = control_plane.jwks().await.unwrap();
        sts.register_jwks(ISSUER, serde_json::from_str::<Value>(&jwks).unwrap());
        let cluster = Self { control_plane, client, kubelet, sts, shim };
        cluster
            .account(
                "old",
                json!({"rolecall.dev/role-arn.report": REPORT, "rolecall.dev/relative-uri": "true"}),
            )
            .await;
        cluster.account("new", json!({})).await;
        cluster.in_effect().await;
        cluster
    }

    async fn account(&self, name: &str, mut annotations: Value) {
        annotations["eks.amazonaws.com/role-arn"] = json!(ORDERS);
        let account = json!({"metadata": {"name": name, "annotations": annotations}});
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "shop");
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        for role in [ORDERS, REPORT] {
            self.sts.add_trust(role, TrustPolicy::service_account(ISSUER, "shop", name));
        }
    }

    /// Completes once the API server calls the shim.
    async fn in_effect(&self) {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        loop {
            let pod = self.pods().create(&dry_run, &plain("new")).await.unwrap();
            if !pod.annotations().is_empty() {
                return;
            }
            assert!(self.shim.is_running().unwrap(), "{}", self.shim.logs());
        }
    }

    /// Makes a pod of this ServiceAccount, which runs at `address` with its tokens on disk.
    async fn pod(&self, account: &str, address: &str) -> Pod {
        let pod = self.pods().create(&PostParams::default(), &plain(account)).await.unwrap();
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        let bound = Some((name.as_str(), uid.as_str()));
        let token = self.control_plane.token_request("shop", account, bound, "sts.amazonaws.com", 600).await;
        self.kubelet.write_token(&uid, "rolecall-token", "token", &token.unwrap()).unwrap();
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.control_plane.set_pod_status("shop", &name, &status).await.unwrap()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "shop")
    }
}

/// A pod of this node with nothing in it that speaks of AWS.
fn plain(account: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": account},
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": account,
            "containers": [{"name": "app", "image": "app"}, {"name": "report", "image": "report"}],
        },
    });
    serde_json::from_value(pod).unwrap()
}

/// The value of a container's variable.
fn value<'a>(pod: &'a Pod, container: &str, name: &str) -> &'a str {
    let mut containers = pod.spec.as_ref().unwrap().containers.iter();
    let container = containers.find(|found| found.name == container).unwrap();
    let variable = container.env.iter().flatten().find(|variable| variable.name == name);
    variable.and_then(|variable| variable.value.as_deref()).unwrap_or_else(|| panic!("no {name}: {pod:?}"))
}

fn shipped(manifest: &str) -> String {
    let path = format!("{}/../deploy/kustomize/shim/{manifest}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}
