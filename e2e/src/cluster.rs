//! A whole Kubernetes cluster on this machine: control plane, controllers, scheduler, and nodes that run containers.
//!
//! It needs root, and to be within [`crate::isolation`]: it makes links, addresses and mounts as if the machine were
//! its own.

pub mod cgroups;
mod images;
mod node;
pub mod underlay;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1;
use kube::api::Api;
use kube::client::Client;
use kube::runtime::wait::{Condition, await_condition};

use crate::control_plane::{ControlPlane, Site};
use crate::process::Process;
use crate::tools;
pub use images::Image;
pub use node::Node;
use underlay::GATEWAY;

/// Longer than a node takes to be ready on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// A running cluster. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    // Nodes go before the API server that they would miss.
    nodes: Vec<Node>,
    _controllers: [Process; 2],
    control_plane: ControlPlane,
    images: Vec<PathBuf>,
}

impl Cluster {
    /// Starts one in `folder`, whose name is also that of its control group, and waits until every node is ready.
    pub async fn start(folder: &Path, nodes: u8, images: &[PathBuf]) -> Result<Self> {
        underlay::make()?;
        let control_plane = ControlPlane::start_at(Site::Network { address: GATEWAY }).await?;
        let controllers =
            [start_controller_manager(&control_plane, folder)?, start_scheduler(&control_plane, folder)?];

        let pause = images::compile_pause(folder)?;
        let mut all = vec![images::pause(folder, &pause)?];
        all.extend_from_slice(images);
        let mut cluster = Self { nodes: Vec::new(), _controllers: controllers, control_plane, images: all };

        let cgroup = folder.file_name().context("the folder of the cluster has a name")?.to_string_lossy();
        for index in 1..=nodes {
            let folder = folder.join(format!("node-{index}"));
            let cgroup = format!("{cgroup}/node-{index}");
            let node = Node::new(&cluster.control_plane, index, folder, cgroup, &pause)?;
            cluster.nodes.push(node);
        }
        for index in 0..cluster.nodes.len() {
            cluster.power_on(index).await?;
        }
        for node in &cluster.nodes {
            cluster.wait_until_ready(node).await?;
        }
        Ok(cluster)
    }

    /// The API server and what is behind it.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The nodes, the first one being `node-1`.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node to do something to.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Powers a node on. It is not ready yet when this returns.
    pub async fn power_on(&mut self, index: usize) -> Result<()> {
        self.nodes[index].power_on(&self.images).await
    }

    /// Waits until the API server calls a node ready.
    pub async fn wait_until_ready(&self, node: &Node) -> Result<()> {
        let nodes: Api<v1::Node> = Api::all(self.control_plane.client().await?);
        wait_for(&nodes, node.name(), is_ready).await.with_context(|| node.logs())
    }

    /// A client with all rights.
    pub async fn client(&self) -> Result<Client> {
        self.control_plane.client().await
    }
}

/// Waits until an object of the API is as `condition` says; fails after some minutes.
pub async fn wait_for<K>(objects: &Api<K>, name: &str, condition: impl Condition<K>) -> Result<()>
where
    K: Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + kube::Resource + 'static,
{
    match tokio::time::timeout(LIMIT, await_condition(objects.clone(), name, condition)).await {
        Ok(seen) => seen.map(drop).with_context(|| format!("watch {name}")),
        Err(_) => bail!("{name} was not as it should be after {LIMIT:?}"),
    }
}

fn is_ready(node: Option<&v1::Node>) -> bool {
    let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn start_controller_manager(control_plane: &ControlPlane, folder: &Path) -> Result<Process> {
    let component = control_plane.kubeconfig_for_component("system:kube-controller-manager", None, &[])?;
    let key = control_plane.signing_key_path().context("there is a signing key")?;
    let mut command = Process::command(tools::path("kubernetes")?.join("kube-controller-manager"));
    command
        .arg(format!("--kubeconfig={}", component.kubeconfig.display()))
        .arg(format!("--service-account-private-key-file={}", key.display()))
        .arg(format!("--root-ca-file={}", control_plane.ca_path().display()))
        .args(["--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true"]);
    Process::spawn("kube-controller-manager", command, folder)
}

fn start_scheduler(control_plane: &ControlPlane, folder: &Path) -> Result<Process> {
    let component = control_plane.kubeconfig_for_component("system:kube-scheduler", None, &[])?;
    let mut command = Process::command(tools::path("kubernetes")?.join("kube-scheduler"));
    command
        .arg(format!("--kubeconfig={}", component.kubeconfig.display()))
        .args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    Process::spawn("kube-scheduler", command, folder)
}

/// Makes a folder for the content of an image.
pub fn image_root(folder: &Path, name: &str) -> Result<PathBuf> {
    let root = folder.join("images").join(name);
    fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
    Ok(root)
}
