//! The daemon under test and the world around it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rolecall_daemon::{app::App, args, config::Config, node::NodeAddresses};
use rolecall_process::telemetry::{self, LogFormat};
use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    world::{NODE, World, WorldPod},
};
use tracing_subscriber::fmt::MakeWriter;

use super::client::{Client, Reply};

pub const ROLE: &str = "arn:aws:iam::111122223333:role/orders";
pub const OTHER_ROLE: &str = "arn:aws:iam::111122223333:role/reports";

/// A daemon in its world.
pub struct TestApp {
    pub world: World,
    pub app: App,
    pub logs: Logs,
    _scratch: tempfile::TempDir,
    _logging: tracing::subscriber::DefaultGuard,
}

/// Everything that was logged.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

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
        let kubeconfig = scratch.path().join("kubeconfig");
        std::fs::write(&kubeconfig, world.cluster.kubeconfig()).unwrap();
        let line = format!(
            "rolecall-daemon --node-name={NODE} --kubeconfig={} --pods-dir={} --listen=127.0.0.1:0 \
             --region=eu-west-1 --sts-endpoint={} --admin-listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0 \
             --admin-socket={} --log-level=debug {flags}",
            kubeconfig.display(),
            world.kubelet.path().display(),
            world.sts.url(),
            scratch.path().join("admin.sock").display(),
        );
        let args = args::parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
        let config = Config::try_from(args.run).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let logs = Logs::default();
        let log = telemetry::Config { format: LogFormat::Json, ..config.log.clone() };
        let (dispatch, log_level) = telemetry::with_writer(&log, logs.clone());
        // Each test runs its own single-threaded runtime, so a thread's subscriber is the test's.
        let logging = tracing::dispatcher::set_default(&dispatch);
        let node = NodeAddresses::fixed(["127.0.0.1/32".parse().unwrap()]);
        let app = App::start(config, node, log_level).await.unwrap();
        Self { world, app, logs, _scratch: scratch, _logging: logging }
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

    /// Waits until `condition` holds of the logs; what makes it hold must be under way.
    pub async fn logged(&self, condition: impl Fn(&str) -> bool) {
        while !condition(&self.logs.text()) {
            tokio::task::yield_now().await;
        }
    }
}

impl Logs {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A pod with a role, on the pod network.
pub fn pod(name: &str) -> PodBuilder {
    PodBuilder::new("shop", name).service_account(name).role(ROLE)
}
