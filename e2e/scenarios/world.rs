//! The world of the scenarios: a cluster of two nodes, an STS that it trusts, and Rolecall.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Client;
use kube::api::{Api, ListParams};
use rolecall_e2e::cluster::underlay::GATEWAY;
use rolecall_e2e::cluster::{Image, Node, image_root, wait_for};
use rolecall_e2e::control_plane::ISSUER;
use rolecall_e2e::{Cluster, Process, tool};
use rolecall_sandbox::sts::{StsConfig, StsServer, TrustPolicy};
use serde_json::json;

use crate::pods::Pods;
use crate::sdks::machine_image;

/// Where STS listens; the overlay of the installation says the same.
const STS_PORT: u16 = 8100;

/// The namespace of the scenarios' pods.
pub(crate) const NAMESPACE: &str = "shop";

/// The namespace of Rolecall.
pub(crate) const ROLECALL: &str = "rolecall";

/// The image of the probe.
pub(crate) const PROBE: &str = "localhost/probe:1";

/// What the run was given: programs and images that were built before.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// The images of daemon and shim.
    pub(crate) images: Vec<PathBuf>,
    /// The probe.
    pub(crate) probe: PathBuf,
}

/// A running world.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) sts: StsServer,
    pub(crate) client: Client,
    /// Those of [`World::service_account`].
    roles: Mutex<BTreeSet<String>>,
    folder: PathBuf,
}

impl World {
    /// Starts cluster and STS. Rolecall is not installed yet.
    pub(crate) async fn start(folder: &Path, built: &Built) -> Result<Self> {
        let mut images = built.images.clone();
        images.push(probe_image(folder, &built.probe)?);
        images.push(machine_image(folder)?);
        let cluster = Cluster::start(folder, 2, &images).await?;
        let listen = SocketAddr::new(IpAddr::V4(GATEWAY), STS_PORT);
        let sts = StsServer::start(StsConfig { listen, ..StsConfig::default() }).await?;
        let jwks = cluster.control_plane().jwks().await?;
        sts.register_jwks(ISSUER, serde_json::from_str(&jwks)?);
        let client = cluster.client().await?;
        let world = Self { cluster, sts, client, roles: Mutex::default(), folder: folder.to_owned() };
        world.make_namespace(NAMESPACE).await?;
        Ok(world)
    }

    /// Installs Rolecall from `deploy/`, or what is missing of it, and waits until pods are injected.
    pub(crate) async fn install(&self) -> Result<()> {
        self.kubectl(&["apply", "-k", &overlay("install").display().to_string()])?;
        self.wait_for_rollout().await?;
        // The API server learns of a webhook some time after it was made.
        self.service_account(NAMESPACE, "first").await?;
        let pods = self.pods(NAMESPACE);
        tokio::time::timeout(Duration::from_secs(60), async {
            while !pods.would_be_injected("first").await? {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        })
        .await
        .context("pods are not injected")?
    }

    /// Shows that the loss of a node leaves a replica of the shim.
    pub(crate) async fn ensure_shims_are_apart(&self) -> Result<()> {
        let shims = ListParams::default().labels("app.kubernetes.io/name=rolecall-shim");
        let shims = self.pods(ROLECALL).api().list(&shims).await?;
        let nodes: BTreeSet<String> = shims.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
        ensure!(nodes.len() == self.cluster.nodes().len(), "all replicas of the shim are on {nodes:?}");
        Ok(())
    }

    /// Puts in the daemon's place what removes from each node what the daemon has left there, and waits for it.
    pub(crate) async fn clean_up_nodes(&self) -> Result<()> {
        self.kubectl(&["apply", "-k", &overlay("cleanup").display().to_string()])?;
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), ROLECALL);
        wait_for(&daemons, "rolecall-daemon", is_rolled_out).await.with_context(|| self.state_of_rolecall())
    }

    /// Removes what [`World::install`] has made, as `kubectl delete -k` does.
    pub(crate) fn uninstall(&self) -> Result<()> {
        self.kubectl(&[
            "delete",
            "--wait=true",
            "--ignore-not-found",
            "-k",
            &overlay("install").display().to_string(),
        ])
        .map(drop)
    }

    /// Waits until every daemon and every replica of the shim is up to date and ready.
    pub(crate) async fn wait_for_rollout(&self) -> Result<()> {
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), ROLECALL);
        wait_for(&daemons, "rolecall-daemon", is_rolled_out)
            .await
            .with_context(|| self.state_of_rolecall())?;
        let shims: Api<Deployment> = Api::namespaced(self.client.clone(), ROLECALL);
        wait_for(&shims, "rolecall-shim", is_available).await.with_context(|| self.state_of_rolecall())
    }

    /// Makes a namespace and waits until pods can be created in it.
    pub(crate) async fn make_namespace(&self, name: &str) -> Result<()> {
        let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.cluster.control_plane().apply(&manifest.to_string(), name).await?;
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(self.client.clone(), name);
        wait_for(&accounts, "default", |account: Option<&_>| account.is_some()).await
    }

    /// Makes a ServiceAccount with a role of its own that trusts it, and returns the role.
    pub(crate) async fn service_account(&self, namespace: &str, name: &str) -> Result<String> {
        let role = format!("arn:aws:iam::111122223333:role/{name}");
        self.roles.lock().unwrap_or_else(PoisonError::into_inner).insert(role.clone());
        self.sts.trust(&role, TrustPolicy::service_account(ISSUER, namespace, name));
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "annotations": {"rolecall.dev/role-arn": role},
            },
        });
        self.cluster.control_plane().apply(&manifest.to_string(), namespace).await?;
        Ok(role)
    }

    /// Ends the pods of the scenarios and whatever STS was told to do, and brings back what a scenario that failed on
    /// the way has taken away: the API server, STS, a part of Rolecall.
    pub(crate) async fn reset(&self) -> Result<()> {
        let control_plane = self.cluster.control_plane();
        if !control_plane.api_server_is_running()? {
            control_plane.start_api_server().await.context("start the API server again")?;
        }
        self.sts.set_outage(false).await.context("bring STS back")?;
        self.sts.behave();
        self.sts.set_session_seconds(None);
        for role in self.roles.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            self.sts.set_role_session_seconds(role, None);
        }
        self.pods(NAMESPACE).clear().await?;
        // Scales the shim back as well; what is there already stays as it is.
        self.install().await
    }

    /// The pods of a namespace.
    pub(crate) fn pods(&self, namespace: &str) -> Pods {
        Pods::new(self.client.clone(), namespace)
    }

    /// Runs kubectl with all rights to its end, which must be a success, and returns what it wrote.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = kubectl()?;
        command.arg("--kubeconfig").arg(self.cluster.control_plane().kubeconfig_path()).args(arguments);
        // STS is served by the same threads.
        tokio::task::block_in_place(|| output(command))
    }

    /// Starts kubectl with all rights, which ends when the handle is dropped.
    pub(crate) fn spawn_kubectl(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = Process::command(tool("kubernetes")?.join("kubectl"));
        command.arg("--kubeconfig").arg(self.cluster.control_plane().kubeconfig_path()).args(arguments);
        Process::spawn("kubectl", command, &self.folder)
    }

    fn state_of_rolecall(&self) -> String {
        let describe = self.kubectl(&["describe", "pods", "--namespace", ROLECALL]);
        let logs = self.kubectl(&["logs", "--namespace", ROLECALL, "daemonset/rolecall-daemon", "--tail=40"]);
        let text = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
        format!("{}\n{}", text(describe), text(logs))
    }
}

/// What the daemon of a node counts under a name, its labels included; zero while it is not there.
pub(crate) fn counted(node: &Node, name: &str) -> Result<u64> {
    let metrics = node.run(["curl", "--silent", "--fail", "http://127.0.0.1:9911/metrics"])?;
    let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    count.map_or(Ok(0), str::parse).with_context(|| format!("read {name}"))
}

fn is_rolled_out(daemons: Option<&DaemonSet>) -> bool {
    let Some((set, status)) = daemons.and_then(|set| Some((set, set.status.as_ref()?))) else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation == set.metadata.generation
        && wanted > 0
        && status.updated_number_scheduled == Some(wanted)
        && status.number_ready == wanted
        && status.current_number_scheduled == wanted
        && status.number_unavailable.unwrap_or(0) == 0
}

fn is_available(shims: Option<&Deployment>) -> bool {
    let Some((shim, status)) = shims.and_then(|shim| Some((shim, shim.status.as_ref()?))) else {
        return false;
    };
    let wanted = shim.spec.as_ref().and_then(|spec| spec.replicas);
    status.observed_generation == shim.metadata.generation
        && status.available_replicas == wanted
        && status.updated_replicas == wanted
        && status.replicas == wanted
}

/// Writes the image of the probe.
pub(crate) fn probe_image(folder: &Path, probe: &Path) -> Result<PathBuf> {
    let root = image_root(folder, "probe")?;
    std::fs::copy(probe, root.join("probe")).with_context(|| format!("copy {}", probe.display()))?;
    Image { name: PROBE, root: &root, entrypoint: &["/probe"] }.write()
}

/// What adapts `deploy/` to this cluster.
fn overlay(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
}

fn kubectl() -> Result<Command> {
    Ok(Command::new(tool("kubernetes")?.join("kubectl")))
}

fn output(mut command: Command) -> Result<String> {
    let described = format!("{command:?}");
    let ended = command.output().with_context(|| format!("run {described}"))?;
    ensure!(ended.status.success(), "{described}: {}", String::from_utf8_lossy(&ended.stderr).trim());
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
