//! The daemon under test and the world around it.

use std::{future, io, net::SocketAddr, path::Path};

use rolecall_daemon::{
    app::{App, StartError},
    args,
    config::Config,
    node::{FollowError, Netlink, NodeAddresses},
};
use rolecall_process::telemetry;
use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    world::{NODE, World, WorldPod},
};

use super::client::{Client, Reply};

pub const ROLE: &str = "arn:aws:iam::111122223333:role/orders";
pub const OTHER_ROLE: &str = "arn:aws:iam::111122223333:role/reports";

/// A daemon in its world.
pub struct TestApp {
    pub world: World,
    pub app: App,
    _scratch: tempfile::TempDir,
}

impl TestApp {
    /// Starts a daemon that knows its pods.
    pub async fn start() -> Self {
        Self::with(World::start().await.unwrap(), "").await
    }

    /// Starts a daemon with more `flags` in `world`, and waits until it is ready.
    pub async fn with(world: World, flags: &str) -> Self {
        let app = Self::not_ready(world, flags).await;
        app.app.ready().await;
        app
    }

    /// Starts a daemon and does not wait.
    pub async fn not_ready(world: World, flags: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let app = start(&world, scratch.path(), flags, future::pending()).await.unwrap();
        Self { world, app, _scratch: scratch }
    }

    pub fn address(&self) -> SocketAddr {
        self.app.endpoint_addresses[0]
    }

    pub async fn client(&self, from: &str) -> Client {
        Client::connect(from, self.address()).await
    }

    /// One request on a connection of its own.
    pub async fn get(&self, from: &str, path: &str, token: Option<&str>) -> Reply {
        self.client(from).await.get(path, token).await
    }

    /// The outcome of a pod's ordinary request from `from`.
    pub async fn ask(&self, from: &str, pod: &WorldPod) -> String {
        let token = pod.token().unwrap();
        self.get(from, "/v1/credentials", Some(&token)).await.outcome()
    }

    /// What `/metrics` tells now.
    pub async fn metrics(&self) -> String {
        let mut client = Client::connect("127.0.0.1", self.app.metrics_address.unwrap()).await;
        client.get("/metrics", None).await.text()
    }

    /// The value of a metric, labels included in its name; zero where it is not there yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// Starts a daemon with more `flags` in `world`, whose node's addresses are followed by `follow`.
pub async fn start(
    world: &World,
    scratch: &Path,
    flags: &str,
    follow: impl Future<Output = FollowError> + Send + 'static,
) -> Result<App, StartError> {
    let kubeconfig = scratch.join("kubeconfig");
    std::fs::write(&kubeconfig, world.cluster.kubeconfig()).unwrap();
    let line = format!(
        "rolecall-daemon --node-name={NODE} --kubeconfig={} --pods-dir={} --listen=127.0.0.1:0 --metadata-firewall=off \
         --region=eu-west-1 --sts-endpoint={} --admin-listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0 \
         --admin-socket={} {flags}",
        kubeconfig.display(),
        world.kubelet.path().display(),
        world.sts.url(),
        scratch.join("admin.sock").display(),
    );
    let args = args::parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
    let config = Config::try_from(args.run).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    // Nobody reads the log here; the tests of the binary do.
    let (_, log) = telemetry::with_writer(&config.log, io::sink);
    let node = NodeAddresses::fixed(["127.0.0.1/32".parse().unwrap()]);
    App::start(config, Netlink::start().unwrap(), node, follow, log).await
}

/// A pod with a role, on the pod network.
pub fn pod(name: &str) -> PodBuilder {
    PodBuilder::new("shop", name).service_account(name).role(ROLE)
}
