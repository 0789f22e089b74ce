//! A shim beside a real API server, deployed by the shipped manifests as far as there is a cluster for them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use nix::sys::signal::Signal;
use rolecall_e2e::{ControlPlane, Process, Scratch, binary, free_port, own_address};
use serde_json::{Value, json};

/// How long anything is waited for that is certain to come.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// One namespace with everything that the manifests put into a cluster, under names of its own.
pub(crate) struct Deployed {
    pub(crate) cluster: &'static ControlPlane,
    pub(crate) client: Client,
    /// The namespace, and the name of everything in it.
    pub(crate) name: &'static str,
    kubeconfig: PathBuf,
}

/// A replica.
pub(crate) struct Shim {
    pub(crate) process: Process,
    pub(crate) address: Ipv4Addr,
    port: u16,
    admin: u16,
    metrics: u16,
    _scratch: Scratch,
}

impl Deployed {
    /// Applies the manifests; `name` is the namespace too.
    pub(crate) async fn new(name: &'static str) -> Self {
        let cluster = ControlPlane::shared().await.unwrap();
        cluster.create_namespace(name).await.unwrap();
        for manifest in ["rbac.yaml", "secret.yaml", "service.yaml", "deployment.yaml"] {
            cluster.apply(&shipped(manifest, name), name).await.unwrap();
        }
        let kubeconfig = cluster.kubeconfig_for_service_account(name, name).await.unwrap();
        let deployed = Self { cluster, client: cluster.client().await.unwrap(), name, kubeconfig };
        deployed.account("orders").await;
        deployed
    }

    /// Makes a ServiceAccount with a role.
    pub(crate) async fn account(&self, name: &str) {
        let account = json!({
            "metadata": {"name": name, "annotations": {"eks.amazonaws.com/role-arn": ROLE}},
        });
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), self.name);
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
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

    pub(crate) async fn set_bundle(&self, bundle: &[u8]) {
        let webhooks = self.configuration().await.webhooks.unwrap_or_default();
        let webhooks: Vec<Value> = webhooks
            .into_iter()
            .map(|webhook| {
                let bundle = k8s_openapi::ByteString(bundle.to_vec());
                json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}})
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

    /// Completes once the API server calls the webhook: it learns of a configuration by a watch of its own.
    pub(crate) async fn in_effect(&self) {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let pods = self.pods();
        until("the webhook takes effect", async || {
            pods.create(&dry_run, &pod("orders")).await.is_ok_and(|pod| is_injected(&pod))
        })
        .await;
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

impl Shim {
    /// Starts a replica as a process, with the rights of the manifests. It is not ready yet.
    pub(crate) async fn start(deployed: &Deployed) -> Self {
        let address = own_address();
        Self::start_at(deployed, address, free_port(address).unwrap()).await
    }

    pub(crate) async fn start_at(deployed: &Deployed, address: Ipv4Addr, port: u16) -> Self {
        let scratch = Scratch::new("shim").unwrap();
        let (admin, metrics) = (free_port(address).unwrap(), free_port(address).unwrap());
        let mut command = Process::command(binary("rolecall-shim").unwrap());
        command
            .args(deployed.flags(address, port))
            .arg(format!("--admin-listen={address}:{admin}"))
            .arg(format!("--metrics-listen={address}:{metrics}"))
            .arg(format!("--admin-socket={}", scratch.path().join("admin.sock").display()));
        let process = Process::spawn("rolecall-shim", command, scratch.path()).unwrap();
        Self { process, address, port, admin, metrics, _scratch: scratch }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}/mutate", self.address, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn ready(&self) {
        let is_ready = async || get(self.address, self.admin, "/readyz").await.is_ok();
        self.process.wait_until_ready(PATIENCE, is_ready).await.unwrap();
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let text = get(self.address, self.metrics, "/metrics").await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.parse().ok()
    }

    /// Ends it as a kubelet does.
    pub(crate) async fn end(&self) {
        self.process.signal(Signal::SIGTERM).unwrap();
        let status = self.process.exit(Duration::from_secs(30)).await.unwrap();
        assert!(status.success(), "{status}\n{}", self.process.logs());
    }
}

/// Waits for what is certain to come.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("it does not come about that {what}"));
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
fn shipped(file: &str, name: &str) -> String {
    let path = format!("{}/../deploy/kustomize/shim/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("namespace: rolecall\n", &format!("namespace: {name}\n")).replace("rolecall-shim", name)
}

async fn get(address: Ipv4Addr, port: u16, path: &str) -> anyhow::Result<String> {
    let mut config = Config::new(format!("http://{address}:{port}").parse()?);
    config.proxy_url = None;
    Ok(Client::try_from(config)?.request_text(http::Request::get(path).body(Vec::new())?).await?)
}
