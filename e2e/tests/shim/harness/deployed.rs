//! A namespace with everything that the shipped manifests put into a cluster.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use rolecall_e2e::ControlPlane;
use rolecall_shim::review::SKIP_LABEL;
use serde_json::{Value, json};

use super::{ROLE, Relay, Stored, until};

/// Where the manifests of the shim are.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/shim");

/// One namespace with everything of the manifests, under names of its own, and the ServiceAccount `orders`.
pub(crate) struct Deployed {
    pub(crate) cluster: &'static ControlPlane,
    pub(crate) client: Client,
    /// The namespace, and the name of everything in it.
    pub(crate) name: &'static str,
    /// With the rights of the shim's ServiceAccount.
    pub(crate) kubeconfig: PathBuf,
}

impl Deployed {
    /// Applies the manifests; `name` is the namespace too.
    pub(crate) async fn new(name: &'static str) -> Self {
        let deployed = Self::without_rights(name).await;
        deployed.apply("rbac.yaml").await;
        deployed
    }

    /// Applies the manifests but for the rights.
    pub(crate) async fn without_rights(name: &'static str) -> Self {
        let cluster = ControlPlane::shared().await.unwrap();
        cluster.create_namespace(name).await.unwrap();
        cluster.create_service_account(name, name).await.unwrap();
        let kubeconfig = cluster.kubeconfig_for_service_account(name, name).await.unwrap();
        let deployed = Self::standing(name, kubeconfig).await;
        for manifest in ["secret.yaml", "service.yaml", "deployment.yaml"] {
            deployed.apply(manifest).await;
        }
        deployed.account("orders").await;
        deployed
    }

    /// What another test has deployed; a client of its own, for one lives no longer than its test's runtime.
    pub(crate) async fn standing(name: &'static str, kubeconfig: PathBuf) -> Self {
        let cluster = ControlPlane::shared().await.unwrap();
        Self { cluster, client: cluster.client().await.unwrap(), name, kubeconfig }
    }

    async fn apply(&self, manifest: &str) {
        self.cluster.apply(&shipped(manifest, self.name), self.name).await.unwrap();
    }

    /// Makes a ServiceAccount with a role, as the EKS webhook's users write it.
    pub(crate) async fn account(&self, name: &str) {
        self.account_with(name, json!({"eks.amazonaws.com/role-arn": ROLE})).await;
    }

    /// Makes a ServiceAccount with these annotations.
    pub(crate) async fn account_with(&self, name: &str, annotations: Value) {
        let account = json!({"metadata": {"name": name, "annotations": annotations}});
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), self.name);
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    }

    /// Gives a ServiceAccount these annotations too.
    pub(crate) async fn annotate(&self, name: &str, annotations: &Value) {
        let change = json!({"metadata": {"annotations": annotations}});
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), self.name);
        accounts.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Applies the shipped MutatingWebhookConfiguration with a URL for each webhook, for this namespace alone, and
    /// `change`d.
    pub(crate) async fn configure(&self, urls: &[String], change: impl Fn(&mut Value)) {
        let manifest = shipped("webhook.yaml", self.name);
        let mut configuration: Value = serde_saphyr::from_str(&manifest).unwrap();
        let shipped = configuration["webhooks"][0].take();
        let webhooks = urls.iter().enumerate().map(|(index, url)| {
            let mut webhook = shipped.clone();
            webhook["name"] = json!(format!("pods-{index}.rolecall.dev"));
            webhook["clientConfig"] = json!({"url": url});
            let here = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": [self.name]});
            webhook["namespaceSelector"]["matchExpressions"].as_array_mut().unwrap().push(here);
            change(&mut webhook);
            webhook
        });
        configuration["webhooks"] = webhooks.collect();
        self.cluster.apply(&configuration.to_string(), self.name).await.unwrap();
    }

    pub(crate) async fn configuration(&self) -> MutatingWebhookConfiguration {
        self.configurations().get(self.name).await.unwrap()
    }

    pub(crate) fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn bundle(&self) -> Vec<u8> {
        let webhook = self.configuration().await.webhooks.unwrap().remove(0);
        webhook.client_config.ca_bundle.unwrap_or_default().0
    }

    /// Exchanges what the API server trusts, in the place of cert-manager or of somebody who errs.
    pub(crate) async fn set_bundle(&self, bundle: &[u8]) {
        let bundle = ByteString(bundle.to_vec());
        self.patch_webhooks(json!({"clientConfig": {"caBundle": bundle}})).await;
    }

    /// The same, and completes once the API server calls with it: it learns of a configuration by a watch of its own.
    pub(crate) async fn trust(&self, bundle: &[u8]) {
        static VERSION: AtomicUsize = AtomicUsize::new(0);
        // A label that only this version of the configuration leaves out shows when it is in force.
        let label = format!("rolecall.test/version-{}", VERSION.fetch_add(1, Ordering::Relaxed));
        let is_absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let bundle = ByteString(bundle.to_vec());
        self.patch_webhooks(json!({
            "clientConfig": {"caBundle": bundle},
            "objectSelector": {"matchExpressions": [is_absent(SKIP_LABEL), is_absent(&label)]},
        }))
        .await;
        let mut left_out = pod("orders");
        left_out.metadata.labels = Some([(label, String::new())].into());
        until("the API server knows the new caBundle", async || {
            self.pods().create(&dry_run(), &left_out).await.is_ok_and(|pod| !is_injected(&pod))
        })
        .await;
    }

    /// Merges `change` into each webhook.
    async fn patch_webhooks(&self, change: Value) {
        let webhooks = self.configuration().await.webhooks.unwrap_or_default();
        let webhooks: Vec<Value> = webhooks
            .into_iter()
            .map(|webhook| {
                let mut changed = change.clone();
                changed["name"] = json!(webhook.name);
                changed
            })
            .collect();
        let patch = Patch::Strategic(json!({"webhooks": webhooks}));
        self.configurations().patch(self.name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.name)
    }

    /// Creates a pod as a controller does: the API server makes its name.
    pub(crate) async fn create(&self, account: &str) -> kube::Result<Pod> {
        self.pods().create(&PostParams::default(), &pod(account)).await
    }

    /// Asks the API server what it would make of such a pod, and makes none.
    pub(crate) async fn try_out(&self, account: &str) -> kube::Result<Pod> {
        self.pods().create(&dry_run(), &pod(account)).await
    }

    /// Creates a pod and reads what the API server has stored of it.
    pub(crate) async fn stored(&self, pod: Value) -> Stored {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let name = self.pods().create(&PostParams::default(), &pod).await.unwrap().name_any();
        Stored::new(&self.pods().get(&name).await.unwrap())
    }

    /// Applies the ConfigMap of bindings.
    pub(crate) async fn bind(&self, config: &str) {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "pod-identity-webhook"},
            "data": {"config": config},
        });
        self.cluster.apply(&map.to_string(), self.name).await.unwrap();
    }

    pub(crate) fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), self.name)
    }

    /// The Secret that the replicas share.
    pub(crate) async fn secret(&self) -> Secret {
        self.secrets().get(&self.secret_name()).await.unwrap()
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.name)
    }

    pub(crate) fn secret_name(&self) -> String {
        format!("{}-tls", self.name)
    }

    /// Completes once the API server calls the webhook, which injects.
    pub(crate) async fn in_effect(&self) {
        until("the webhook takes effect", async || {
            self.try_out("orders").await.is_ok_and(|pod| is_injected(&pod))
        })
        .await;
    }

    /// A way to the API server that the test can close, and a kubeconfig that leads through it.
    pub(crate) fn relay(&self, folder: &Path) -> (Relay, PathBuf) {
        let url = self.cluster.api_server_url();
        let relay = Relay::to(url.trim_start_matches("https://").parse().unwrap());
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let path = folder.join("relayed.kubeconfig");
        std::fs::write(&path, text.replace(&url, &format!("https://{}", relay.address()))).unwrap();
        (relay, path)
    }

    /// The flags of a replica at `address`.
    pub(crate) fn flags(&self, address: Ipv4Addr, port: u16) -> Vec<String> {
        let name = self.name;
        vec![
            format!("--listen={address}:{port}"),
            format!("--certificate-name={address}"),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--namespace={name}"),
            format!("--service-name={name}"),
            format!("--webhook-configuration={name}"),
            format!("--tls-secret={name}-tls"),
            "--watch-config-map".to_owned(),
            "--drain-delay=0".to_owned(),
        ]
    }
}

/// Whoever gets no answer keeps the pod out.
pub(crate) fn fail(webhook: &mut Value) {
    webhook["failurePolicy"] = json!("Fail");
}

pub(crate) fn pod(account: &str) -> Pod {
    let pod = json!({
        "metadata": {"generateName": "orders-"},
        "spec": {
            "serviceAccountName": account,
            "initContainers": [{"name": "migrate", "image": "example.test/app"}],
            "containers": [{"name": "app", "image": "example.test/app"}],
        },
    });
    serde_json::from_value(pod).unwrap()
}

/// Whether every container is pointed at the daemon, with a token.
pub(crate) fn is_injected(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.all(|container| {
        let has = |name: &str| container.env.iter().flatten().any(|variable| variable.name == name);
        has("AWS_CONTAINER_CREDENTIALS_FULL_URI") && has("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    })
}

/// A shipped manifest, with names and namespace of this test's own.
pub(crate) fn shipped(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(format!("{MANIFESTS}/{file}")).unwrap();
    text.replace("namespace: rolecall\n", &format!("namespace: {name}\n")).replace("rolecall-shim", name)
}

fn dry_run() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}
