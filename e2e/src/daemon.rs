//! The daemon as it ships, as a child process on loopback.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::plain_http;
use crate::{Process, Scratch, binary, free_port, own_address};

/// Longer than any step of a daemon takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    endpoint: String,
    admin: String,
    metrics: String,
    _scratch: Scratch,
}

/// What a daemon is started with.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The node whose pods it serves.
    pub node: &'a str,
    /// How it reaches the API server.
    pub kubeconfig: &'a Path,
    /// The kubelet's directory of pods.
    pub pods_dir: &'a Path,
    /// The URL of STS.
    pub sts: &'a str,
    /// More flags.
    pub flags: &'a [&'a str],
}

impl Daemon {
    /// Starts one and waits until it is ready.
    pub async fn start(settings: Settings<'_>) -> Result<Self> {
        let scratch = Scratch::new("daemon")?;
        let here = |address| free_port(address).map(|port| format!("{address}:{port}"));
        // Of loopback, SDKs accept this address alone.
        let endpoint = here(Ipv4Addr::LOCALHOST)?;
        let (admin, metrics) = (here(own_address())?, here(own_address())?);
        let mut command = Process::command(binary("rolecall-daemon")?);
        command
            .args(["--node-name", settings.node, "--region", "us-east-1", "--sts-endpoint", settings.sts])
            .args(["--listen", &endpoint, "--admin-listen", &admin, "--metrics-listen", &metrics])
            // On loopback, without rights.
            .args(["--metadata-firewall", "off"])
            .arg("--kubeconfig")
            .arg(settings.kubeconfig)
            .arg("--pods-dir")
            .arg(settings.pods_dir)
            .arg("--admin-socket")
            .arg(scratch.path().join("admin.sock"))
            .args(settings.flags);
        let process = Process::spawn("daemon", command, scratch.path())?;
        let daemon = Self { process, endpoint, admin, metrics, _scratch: scratch };
        let ready = async || plain_http::answers(&daemon.admin, "/readyz").await;
        daemon.process.wait_until_ready(LIMIT, ready).await?;
        Ok(daemon)
    }

    /// What the shim would put into a pod whose token is at `token_file`, with the daemon's address of this test.
    pub fn environment(&self, token_file: &Path) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}/v1/credentials", self.endpoint)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token_file.display().to_string()),
        ]
    }

    /// The status and body of an ordinary request.
    pub async fn get(&self, token: &str) -> Result<(u16, serde_json::Value)> {
        let request = http::Request::get("/v1/credentials")
            .header("authorization", token)
            .body(Vec::new())
            .context("make a request")?;
        plain_http::ask(&self.endpoint, request).await
    }

    /// The value of a metric, its labels included in the name; zero while it is not there.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = plain_http::send(&self.metrics, request).await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.map_or(Ok(0.0), str::parse)?)
    }

    /// Waits until a metric has a value that `condition` likes; fails after a minute, with the log. What brings it about
    /// must be under way.
    pub async fn wait_for_metric(&self, name: &str, condition: impl Fn(f64) -> bool) -> Result<()> {
        let liked = async {
            while !condition(self.metric(name).await?) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::time::timeout(LIMIT, liked)
            .await
            .with_context(|| format!("{name} was not as it should be after {LIMIT:?}\n{}", self.logs()))?
    }

    /// Waits for a text in its log.
    pub async fn wait_for_log(&self, part: &str) -> Result<()> {
        self.process.wait_until_ready(LIMIT, async || self.process.logs().contains(part)).await
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> Result<bool> {
        self.process.is_running()
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.exit(LIMIT).await?;
        Ok(())
    }

    /// Everything it has logged.
    pub fn logs(&self) -> String {
        self.process.logs()
    }
}
