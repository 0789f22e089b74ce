//! A shim beside a real API server, deployed by the shipped manifests as far as there is a cluster for them.

mod deployed;
mod load;
mod relay;
mod replica;
mod stored;
mod volume;
pub(crate) mod webhook;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rolecall_e2e::{Process, Scratch, binary, free_port, own_address};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) use deployed::{Deployed, fail, is_injected, pod, shipped};
pub(crate) use load::under_load;
pub(crate) use relay::Relay;
pub(crate) use replica::Replica;
pub(crate) use stored::Stored;
pub(crate) use volume::Volume;

/// How long anything is waited for that is certain to come.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// A replica as a process.
pub(crate) struct Shim {
    pub(crate) process: Process,
    pub(crate) address: Ipv4Addr,
    port: u16,
    admin: u16,
    metrics: u16,
    _scratch: Scratch,
}

impl Shim {
    /// Starts a replica with the rights of the manifests. It is not ready yet.
    pub(crate) async fn start(deployed: &Deployed) -> Self {
        Self::start_with(deployed, &[]).await
    }

    /// The same, with more flags; of one that is there already, the last counts.
    pub(crate) async fn start_with(deployed: &Deployed, flags: &[&str]) -> Self {
        let address = own_address();
        Self::start_at(deployed, address, free_port(address).unwrap(), flags).await
    }

    pub(crate) async fn start_at(deployed: &Deployed, address: Ipv4Addr, port: u16, flags: &[&str]) -> Self {
        let mut line = deployed.flags(address, port);
        line.extend(flags.iter().map(|&flag| flag.to_owned()));
        Self::run(&binary("rolecall-shim").unwrap(), (address, port), &line, &[]).await
    }

    /// Runs `program` with these arguments and variables; the doors for the test are put in by variables.
    pub(crate) async fn run(
        program: &Path,
        (address, port): (Ipv4Addr, u16),
        line: &[String],
        variables: &[(&str, String)],
    ) -> Self {
        let scratch = Scratch::new("shim").unwrap();
        let (admin, metrics) = (free_port(address).unwrap(), free_port(address).unwrap());
        let mut command = Process::command(program);
        command
            .args(line)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("ROLECALL_SHIM_ADMIN_LISTEN", format!("{address}:{admin}"))
            .env("ROLECALL_SHIM_METRICS_LISTEN", format!("{address}:{metrics}"))
            .env("ROLECALL_SHIM_ADMIN_SOCKET", scratch.path().join("admin.sock"));
        let process = Process::spawn("rolecall-shim", command, scratch.path()).unwrap();
        Self { process, address, port, admin, metrics, _scratch: scratch }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}/mutate", self.address, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it is called.
    pub(crate) fn socket(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    pub(crate) async fn ready(&self) {
        let is_ready = async || self.missing().await.is_some_and(|missing| missing.is_empty());
        self.process.wait_until_ready(PATIENCE, is_ready).await.unwrap();
    }

    /// What it waits for before it is ready; `None` while it does not say.
    pub(crate) async fn missing(&self) -> Option<Vec<String>> {
        let (status, body) = get(self.address, self.admin, "/readyz").await.ok()?;
        let missing = body.lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect();
        matches!(status, 200 | 503).then_some(missing)
    }

    /// The page of its metrics; `None` while it does not answer.
    pub(crate) async fn metrics(&self) -> Option<String> {
        let (status, body) = get(self.address, self.metrics, "/metrics").await.ok()?;
        (status == 200).then_some(body)
    }

    /// The value of a metric, its labels included in the name.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.parse().ok()
    }

    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.process.logs().contains(text)
    }

    /// Ends it as a kubelet does.
    pub(crate) async fn end(&self) {
        self.process.signal(Signal::SIGTERM).unwrap();
        self.ended().await;
    }

    /// Waits for an end that was asked for.
    pub(crate) async fn ended(&self) {
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

/// Whole seconds, as certificates have them.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// Status and body of a page.
async fn get(address: Ipv4Addr, port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}
