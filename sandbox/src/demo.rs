//! The demo: a daemon, two pods, and the lines with which another shell becomes one of them.

mod check;
mod daemon;
mod http;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::http::StatusCode;
use anyhow::{Context, Result, anyhow};
use rolecall_contract::endpoint;
use rolecall_sandbox::{PodBuilder, World, WorldPod};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use daemon::Daemon;

/// Region of the demo's STS.
const REGION: &str = "us-east-1";

/// Lifetime of the pods' tokens: the one that a pod asks for at the least is 10 minutes, the usual one an hour.
const TOKEN_LIFETIME: Duration = Duration::from_hours(1);

/// The kubelet rotates a token when 80 % of its lifetime have gone.
const ROTATE_AFTER: Duration = TOKEN_LIFETIME.saturating_mul(4).checked_div(5).expect("5 is not 0");

/// Time for the daemon to be ready, and for the pods to be warm after that.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was typed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The daemon's binary.
    #[arg(long, value_name = "FILE")]
    daemon: PathBuf,

    /// Loopback port of the credentials endpoint; a free one if not given.
    #[arg(long, env = "DEMO_PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,

    /// Ask for both pods' credentials with boto3 and curl, print who got which role, and exit.
    #[arg(long)]
    check: bool,

    /// The Python that has boto3, for --check.
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

/// Where the daemon listens.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    endpoint: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

/// Runs the demo until it is interrupted, or its check is done.
pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let world = World::start().await.context("start the sandbox")?;
    let files = TempDir::with_prefix("rolecall-demo-").context("create a temporary directory")?;
    let addresses = Addresses::choose(args.port)?;
    let mut daemon = Daemon::start(&args.daemon, &world, files.path(), addresses)?;

    let outcome = tokio::select! {
        outcome = demonstrate(args, &world, addresses) => outcome,
        exit = daemon.exited() => exit.and_then(|status| Err(anyhow!("the daemon has ended by itself: {status}"))),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = hangup.recv() => Ok(ExitCode::SUCCESS),
    };
    daemon.stop().await?;
    outcome
}

async fn demonstrate(args: &Args, world: &World, addresses: Addresses) -> Result<ExitCode> {
    wait_until_ready(addresses.admin).await?;
    let pods = [start_pod(world, "orders")?, start_pod(world, "reports")?];
    for pod in &pods {
        wait_until_warm(addresses.endpoint, pod).await?;
    }
    if args.check {
        return check::run(&args.python, world, addresses.endpoint, &pods).await;
    }
    println!("{}", invitation(world, addresses.endpoint, &pods)?);
    loop {
        sleep(ROTATE_AFTER).await;
        for pod in &pods {
            pod.write_token().with_context(|| format!("rotate the token of {}", pod.name()))?;
        }
    }
}

/// A pod as it comes to be in a cluster. It is on the host network, for its requests will come from this machine's
/// own addresses, where only a token says which pod it is that asks.
fn start_pod(world: &World, name: &str) -> Result<WorldPod> {
    let builder = PodBuilder::new("demo", name)
        .service_account(name)
        .role(&format!("arn:aws:iam::111122223333:role/{name}"))
        .host_network(true);
    let pod = world.prepare(builder).with_token_lifetime(TOKEN_LIFETIME);
    pod.trust();
    pod.register();
    pod.write_token().with_context(|| format!("write the token of {name}"))?;
    pod.run_at(&["192.0.2.10"]);
    Ok(pod)
}

async fn wait_until_ready(admin: SocketAddr) -> Result<()> {
    let ready = async {
        while !http::get(admin, "/readyz", None).await.is_ok_and(|(status, _)| status == StatusCode::OK) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.with_context(|| format!("the daemon is not ready after {PATIENCE:?}"))
}

async fn wait_until_warm(endpoint: SocketAddr, pod: &WorldPod) -> Result<()> {
    let mut last = "no answer".to_owned();
    let warm = async {
        loop {
            match http::get(endpoint, endpoint::CREDENTIALS_PATH, Some(&pod.token()?)).await {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((status, body)) => last = format!("{status}: {}", String::from_utf8_lossy(&body)),
                Err(error) => last = format!("{error:#}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    match timeout(PATIENCE, warm).await {
        Ok(warm) => warm,
        Err(_) => Err(anyhow!("{} has no credentials after {PATIENCE:?}: {last}", pod.name())),
    }
}

/// The lines to paste.
fn invitation(world: &World, endpoint: SocketAddr, pods: &[WorldPod]) -> Result<String> {
    let uri = format!("http://{endpoint}{}", endpoint::CREDENTIALS_PATH);
    let sts = world.sts.url();
    let mut text = format!(
        "\nBoth pods are warm. In another shell, for any AWS SDK or CLI:\n\n\
         \x20 unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_WEB_IDENTITY_TOKEN_FILE\n\
         \x20 export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null\n\
         \x20 export AWS_REGION={REGION} AWS_DEFAULT_REGION={REGION} AWS_ENDPOINT_URL_STS={sts}\n\
         \x20 export {}={uri}\n",
        endpoint::FULL_URI_ENV,
    );
    if daemon::PROXY_VARIABLES.iter().any(|variable| std::env::var_os(variable).is_some()) {
        text.push_str("  export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1\n");
    }
    for pod in pods {
        let file = pod.token_path().context("the demo's pods have a token")?;
        let (name, file) = (pod.name(), file.display());
        text.push_str(&format!(
            "\n  # as demo/{name}:\n\
             \x20 export {}={file}\n\
             \x20 aws sts get-caller-identity\n\
             \x20 curl -H \"Authorization: $(cat {file})\" {uri}\n",
            endpoint::TOKEN_FILE_ENV,
        ));
    }
    text.push_str("\nCtrl-C ends the demo.\n");
    Ok(text)
}

impl Addresses {
    /// Finds free ports. They are bound together, so that they differ, and let go for the daemon to take.
    fn choose(endpoint_port: u16) -> Result<Self> {
        let bind = |port| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .with_context(|| format!("port {port} cannot be used: choose another with --port"))
        };
        let (endpoint, admin, metrics) = (bind(endpoint_port)?, bind(0)?, bind(0)?);
        Ok(Self {
            endpoint: endpoint.local_addr()?,
            admin: admin.local_addr()?,
            metrics: metrics.local_addr()?,
        })
    }
}
