//! The daemon with one warm pod, in the sandbox.

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use rolecall_daemon::{app::App, args, config::Config, node::NodeAddresses};
use rolecall_process::telemetry;
use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    world::{NODE, World},
};

pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    /// The warm pod's token; the pod lives at 127.0.0.2.
    pub(crate) token: String,
    _app: App,
    _world: World,
    _scratch: tempfile::TempDir,
}

pub(crate) async fn start() -> Result<Daemon> {
    let world = World::start().await?;
    let scratch = tempfile::tempdir()?;
    let kubeconfig = scratch.path().join("kubeconfig");
    std::fs::write(&kubeconfig, world.cluster.kubeconfig())?;
    let line = format!(
        "rolecall-daemon --node-name={NODE} --kubeconfig={} --pods-dir={} --sts-endpoint={} --listen=127.0.0.1:0 --metadata-firewall=off \
         --admin-listen=off --metrics-listen=off --admin-socket={} --max-requests-per-second-per-pod=1000000 \
         --log-level=error",
        kubeconfig.display(),
        world.kubelet.path().display(),
        world.sts.url(),
        scratch.path().join("admin.sock").display(),
    );
    let args = args::parse_from(line.split_whitespace())?;
    let config = Config::try_from(args.run).map_err(|mistakes| anyhow!("{mistakes:?}"))?;
    let log_level = telemetry::init(&config.log)?;
    let node = NodeAddresses::fixed(["127.0.0.1/32".parse()?]);
    let app = App::start(config, node, log_level).await?;
    app.ready().await;
    let role = "arn:aws:iam::111122223333:role/bench";
    let pod =
        world.pod(PodBuilder::new("bench", "bench").service_account("bench").role(role).ip("127.0.0.2"))?;
    let token = pod.token()?;
    Ok(Daemon { address: app.endpoint_addresses[0], token, _app: app, _world: world, _scratch: scratch })
}
