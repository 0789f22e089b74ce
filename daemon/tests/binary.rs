//! The real binary in the sandbox: what it writes, how it runs out of files, how it drains.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    reason = "tests fail by panicking, run in real time, and share a client"
)]

#[path = "daemon/client.rs"]
mod client;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use client::{Client, End, Reply};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    issuer::{Algorithm, Issuer},
    sts::{Behavior, SECRET_MARK, SESSION_MARK},
    world::{NODE, World, WorldPod},
};
use tempfile::TempDir;
use tokio::time::timeout;

/// A test that waits for longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

const OWN: &str = "/v1/credentials";
const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// A running binary in its world. Its log is in a file.
struct Daemon {
    world: World,
    child: Child,
    endpoint: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
    dir: TempDir,
    command: Command,
}

/// Who reads a log from a pipe, as a container runtime does.
struct Reader(Child);

impl Daemon {
    async fn start(limit_of_files: Option<u32>, flags: &[&str]) -> Self {
        Self::start_with(limit_of_files, flags, |log| fs::File::create(log).unwrap().into()).await
    }

    /// Starts it with the standard error that `stderr` makes for a log that ends up in the file it is given.
    async fn start_with(
        limit_of_files: Option<u32>,
        flags: &[&str],
        stderr: impl FnOnce(&Path) -> Stdio,
    ) -> Self {
        let world = World::start().await.unwrap();
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("log");
        let kubeconfig = dir.path().join("kubeconfig");
        fs::write(&kubeconfig, world.cluster.kubeconfig()).unwrap();
        let [endpoint, admin, metrics] = free_addresses();
        let limit = limit_of_files.map_or_else(String::new, |files| format!("ulimit -n {files}; "));
        let mut command = Command::new("sh");
        command.env_clear().args([
            "-c",
            &format!("{limit}exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_rolecall-daemon"),
        ]);
        command.args([
            format!("--node-name={NODE}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--pods-dir={}", world.kubelet.path().display()),
            format!("--sts-endpoint={}", world.sts.url()),
            format!("--listen={endpoint}"),
            "--metadata-firewall=off".to_owned(),
            format!("--admin-listen={admin}"),
            format!("--metrics-listen={metrics}"),
            format!("--admin-socket={}", dir.path().join("admin.sock").display()),
        ]);
        command.args(flags).stdout(Stdio::null()).stderr(stderr(&log));
        let child = command.spawn().unwrap();
        let daemon = Self { world, child, endpoint, admin, metrics, log, dir, command };
        daemon.started().await;
        daemon
    }

    async fn started(&self) {
        self.logged("the pods of the node are known").await;
        self.logged("the admin doors are open").await;
    }

    /// Ends it without a chance to do anything.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew, with a new log.
    async fn start_again(&mut self) {
        self.child = self.command.stderr(fs::File::create(&self.log).unwrap()).spawn().unwrap();
        self.started().await;
    }

    /// Waits for a text in the log.
    async fn logged(&self, part: &str) {
        let there = async {
            while !self.log().contains(part) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(PATIENCE, there).await.is_err() {
            panic!("no {part:?} in the log:\n{}", self.log());
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn get(&self, to: SocketAddr, path: &str, token: Option<&str>) -> Reply {
        Client::connect("127.0.0.1", to).await.get(path, token).await
    }

    async fn ask(&self, token: &str) -> String {
        self.get(self.endpoint, OWN, Some(token)).await.outcome()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.get(self.metrics, "/metrics", None).await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Has new pods ask, about whom there is much to log, until lines are dropped.
    async fn drops_lines(&self, pods: &mut Vec<WorldPod>) {
        let dropped = "rolecall_log_lines_dropped_total";
        let before = self.metric(dropped).await;
        while self.metric(dropped).await == before {
            let pod = self.world.pod(pod(&format!("orders-{}", pods.len()))).unwrap();
            assert_eq!(self.ask(&pod.token().unwrap()).await, "200 orders");
            pods.push(pod);
        }
    }

    fn terminate(&self) {
        signal(&self.child, Signal::SIGTERM);
    }

    /// Waits until it has ended by itself, and says how.
    async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Reader {
    /// Starts to read into `log`, and gives what is to be written to.
    fn start(log: &Path) -> (Self, Stdio) {
        let file = fs::File::create(log).unwrap();
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
        let pipe = cat.stdin.take().unwrap();
        (Self(cat), pipe.into())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id().try_into().unwrap()), signal).unwrap();
}

fn free_addresses() -> [SocketAddr; 3] {
    [(); 3]
        .map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap())
}

/// On the host network: the peer is the node's own address, and the token decides.
fn pod(name: &str) -> PodBuilder {
    PodBuilder::new("shop", name).service_account(name).role(ROLE).host_network(true)
}

/// Every part of a token that would help a thief.
fn parts(token: &str) -> impl Iterator<Item = String> {
    let parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts.into_iter().skip(1)
}

#[tokio::test]
async fn nothing_that_is_written_tells_a_secret() {
    for format in ["text", "json"] {
        let everything = "trace,hyper=trace,kube=trace,aws=trace,tower=trace,rustls=trace,h2=trace";
        let flags = [
            format!("--log-format={format}"),
            format!("--log-level={everything}"),
            "--max-waiting-per-pod=2".into(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let daemon = Daemon::start(None, &flags).await;
        let mut secrets = vec![SECRET_MARK.to_owned(), SESSION_MARK.to_owned(), "PODSECRET".to_owned()];
        let token_of = |pod: &WorldPod, secrets: &mut Vec<String>| {
            let token = pod.token().unwrap();
            secrets.extend(parts(&token));
            token
        };
        let mut written = String::new();

        // Credentials, warm and asked for.
        let good = daemon.world.pod(pod("good").annotation("note", "PODSECRET")).unwrap();
        let token = token_of(&good, &mut secrets);
        assert_eq!(daemon.ask(&token).await, "200 orders");
        assert_eq!(daemon.ask(&token).await, "200 orders");
        // Another role in the path, which is denied.
        let denied = format!("{OWN}/arn:aws:iam::111122223333:role/denied");
        written += &daemon.get(daemon.endpoint, &denied, Some(&token)).await.text();
        // Tokens that are refused, each for its own reason.
        let claims = || good.claims();
        let foreign = Issuer::new("https://kubernetes.default.svc", Algorithm::Es256);
        for bad in [
            daemon.world.issuer.mint(&claims().expired()),
            daemon.world.issuer.mint(&claims().audiences(&["vault"])),
            daemon.world.issuer.mint(&claims().node("elsewhere")),
            foreign.mint(&claims()),
            format!("Bearer {token}"),
            token[..token.len() - 8].to_owned(),
        ] {
            secrets.extend(parts(&bad));
            written += &daemon.get(daemon.endpoint, OWN, Some(&bad)).await.text();
        }
        written += &daemon.get(daemon.endpoint, OWN, None).await.text();
        written += &daemon.get(daemon.endpoint, &format!("{OWN}?token={token}"), Some(&token)).await.text();
        // STS refuses the token, fails in every way, and answers nonsense.
        for (name, behavior) in [
            ("throttled", Behavior::throttled()),
            ("unavailable", Behavior::unavailable()),
            ("reset", Behavior::reset()),
            ("garbage", Behavior::garbage()),
        ] {
            daemon.world.sts.fail_next(2, behavior);
            let pod = daemon.world.pod(pod(name)).unwrap();
            let token = token_of(&pod, &mut secrets);
            let mut client = Client::connect("127.0.0.1", daemon.endpoint).await;
            client.ask(OWN, Some(&token)).await;
            client.reply().await;
        }
        let refused = daemon.world.prepare(pod("refused"));
        refused.trust();
        refused.register();
        let stale = daemon.world.issuer.mint(&refused.claims().expired());
        refused.write(&stale).unwrap();
        secrets.extend(parts(&stale));
        written += &daemon.get(daemon.endpoint, OWN, Some(&stale)).await.text();
        // A slow answer that is given up on, and one that is hung up on.
        let gate = daemon.world.sts.hold();
        let slow = daemon.world.pod(pod("slow")).unwrap();
        let token = token_of(&slow, &mut secrets);
        let mut client = Client::connect("127.0.0.1", daemon.endpoint).await;
        client.ask(OWN, Some(&token)).await;
        client.read_until(|text| text.contains("\r\n\r\n")).await;
        drop(client);
        gate.release_all();
        // The API server goes, comes back, and says what cannot be read.
        daemon.world.cluster.set_outage(true).await.unwrap();
        while daemon.metric("rolecall_pod_watch_connected").await != 0.0 {}
        daemon.logged("lost the API server").await;
        daemon.world.cluster.set_outage(false).await.unwrap();
        let late = daemon.world.pod(pod("late")).unwrap();
        let token = token_of(&late, &mut secrets);
        assert_eq!(daemon.ask(&token).await, "200 orders");
        daemon.logged("reached the API server again").await;
        late.remove().unwrap();

        for path in ["/healthz", "/readyz", "/log-level", "/metrics"] {
            written += &daemon.get(daemon.admin, path, None).await.text();
        }
        written += &daemon.get(daemon.metrics, "/metrics", None).await.text();
        let told = |events: &[serde_json::Value]| events.iter().any(|event| event["reason"] == "StsDenied");
        daemon.world.cluster.wait_for_events(told).await;
        daemon.terminate();
        daemon.logged("ended").await;
        written += &daemon.log();
        written += &serde_json::to_string(&daemon.world.cluster.events()).unwrap();
        assert!(
            written.contains("assumed role") && written.contains("sts_denied"),
            "the search has something to find"
        );
        for secret in secrets {
            assert!(8 <= secret.len());
            let at = written.find(&secret);
            assert!(
                at.is_none(),
                "a secret was written: …{}",
                &written[at.unwrap_or(0).saturating_sub(300)..at.unwrap_or(0)]
            );
        }
    }
}

#[tokio::test]
async fn a_daemon_that_is_out_of_files_goes_on_when_there_are_some_again() {
    let daemon = Daemon::start(Some(64), &[]).await;
    let orders = daemon.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    assert_eq!(daemon.ask(&token).await, "200 orders");
    let mut clients = Vec::new();
    for _ in 0..80 {
        clients.push(Client::connect("127.0.0.1", daemon.endpoint).await);
    }
    daemon.logged("cannot accept a connection").await;
    drop(clients);
    assert_eq!(daemon.ask(&token).await, "200 orders");
    assert!(0.0 < daemon.metric("rolecall_accept_errors_total").await);
}

#[tokio::test]
async fn a_drain_finishes_what_was_begun_and_takes_nothing_new() {
    let mut daemon = Daemon::start(None, &[]).await;
    let gate = daemon.world.sts.hold();
    let orders = daemon.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    let mut idle = Client::connect("127.0.0.1", daemon.endpoint).await;
    assert_eq!(idle.get("/", None).await.outcome(), "404 not_found");
    let mut waiting = Client::connect("127.0.0.1", daemon.endpoint).await;
    waiting.ask(OWN, Some(&token)).await;
    waiting.read_until(|text| text.contains("\r\n\r\n")).await;
    daemon.terminate();
    daemon.logged("the drain begins").await;
    assert_eq!(idle.end().await, End::Closed, "an idle connection is closed at once");
    assert_eq!(daemon.get(daemon.admin, "/readyz", None).await.status, 503);
    // Each task hears of the drain for itself; soon nobody listens any more.
    while tokio::net::TcpStream::connect(daemon.endpoint).await.is_ok() {}
    gate.release_all();
    assert_eq!(waiting.reply().await.outcome(), "200 orders");
    assert!(daemon.child.wait().unwrap().success());
    assert!(!daemon.dir.path().join("admin.sock").exists());
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_and_says_what_was_left() {
    let mut daemon = Daemon::start(None, &["--drain-deadline=1s"]).await;
    let _gate = daemon.world.sts.hold();
    let orders = daemon.world.pod(pod("orders")).unwrap();
    let mut waiting = Client::connect("127.0.0.1", daemon.endpoint).await;
    waiting.ask(OWN, Some(&orders.token().unwrap())).await;
    waiting.read_until(|text| text.contains("\r\n\r\n")).await;
    daemon.terminate();
    assert_eq!(waiting.end().await, End::Reset);
    assert!(daemon.child.wait().unwrap().success());
    let log = daemon.log();
    assert!(log.contains("cut off at the end of the drain") && log.contains("connection"), "{log}");
}

#[tokio::test]
async fn the_same_refusal_of_the_same_pod_is_logged_once() {
    let mut daemon = Daemon::start(None, &["--log-format=json"]).await;
    let orders = daemon.world.pod(pod("orders")).unwrap();
    let token = orders.token().unwrap();
    assert_eq!(daemon.ask(&token).await, "200 orders");
    for _ in 0..5 {
        daemon.get(daemon.endpoint, OWN, None).await;
        daemon.get(daemon.endpoint, &format!("{OWN}/x"), Some(&token)).await;
    }
    assert_eq!(daemon.metric("rolecall_refusals_total{code=\"role_malformed\"}").await, 5.0);
    // With its end every line is written.
    daemon.terminate();
    assert!(daemon.child.wait().unwrap().success());
    let log = daemon.log();
    let lines =
        |code: &str| log.lines().filter(|line| line.contains(&format!("\"code\":\"{code}\""))).count();
    assert_eq!((lines("host_network_needs_token"), lines("role_malformed")), (1, 1), "{log}");
}

#[tokio::test]
async fn a_reader_of_the_log_that_stands_still_holds_up_nobody() {
    let mut reader = None;
    let mut daemon = Daemon::start_with(None, &["--log-level=trace,aws=trace"], |log| {
        let (started, pipe) = Reader::start(log);
        reader = Some(started);
        pipe
    })
    .await;
    let Reader(reader) = reader.as_ref().unwrap();
    let mut pods = Vec::new();
    signal(reader, Signal::SIGSTOP);
    timeout(PATIENCE, daemon.drops_lines(&mut pods)).await.expect("requests wait for who reads the log");
    assert_eq!(daemon.get(daemon.admin, "/healthz", None).await.status, 200);
    // Who reads on learns of it.
    signal(reader, Signal::SIGCONT);
    daemon.logged("lines are missing").await;
    // Nor does the end wait for long: the kubelet would kill it after 30 s.
    signal(reader, Signal::SIGSTOP);
    timeout(PATIENCE, daemon.drops_lines(&mut pods)).await.expect("requests wait for who reads the log");
    daemon.terminate();
    let status = timeout(Duration::from_secs(15), daemon.ended()).await.expect("it does not end");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_daemon_that_is_killed_resets_what_it_had_begun() {
    let mut daemon = Daemon::start(None, &[]).await;
    let _gate = daemon.world.sts.hold();
    let orders = daemon.world.pod(pod("orders")).unwrap();
    let mut idle = Client::connect("127.0.0.1", daemon.endpoint).await;
    assert_eq!(idle.get("/", None).await.outcome(), "404 not_found");
    let mut begun = Client::connect("127.0.0.1", daemon.endpoint).await;
    begun.ask(OWN, Some(&orders.token().unwrap())).await;
    begun.read_until(|text| text.contains("1\r\n \r\n")).await;
    daemon.kill();
    // The kernel ends both; an end in order would pass for a complete answer with some clients.
    assert_eq!(begun.end().await, End::Reset);
    assert_eq!(idle.end().await, End::Closed);
}

#[tokio::test]
async fn a_daemon_that_was_killed_warms_its_pods_from_disk_the_most_urgent_first() {
    let mut daemon = Daemon::start(None, &["--sts-concurrency=1"]).await;
    // The API server lists them by name, which is none of the orders that count.
    let young = "2026-01-02T00:00:00Z";
    let pods = [
        ("a-drains", "Running", young),
        ("b-runs-for-long", "Running", "2025-01-01T00:00:00Z"),
        ("c-runs", "Running", young),
        ("d-starts-in-vain", "Pending", "2025-01-01T00:00:00Z"),
        ("e-starts", "Pending", young),
    ];
    let mut tokens = Vec::new();
    for (name, phase, created_at) in pods {
        let pod = daemon.world.pod(pod(name).phase(phase)).unwrap();
        let created = serde_json::json!({"metadata": {"creationTimestamp": created_at}});
        daemon.world.cluster.patch("shop", name, &created).unwrap();
        tokens.push(pod.token().unwrap());
    }
    daemon.world.cluster.terminate("shop", "a-drains").unwrap();
    for token in &tokens {
        assert_eq!(daemon.ask(token).await, "200 orders");
    }
    let calls = daemon.world.sts.call_count();
    assert_eq!(calls, pods.len());

    daemon.kill();
    daemon.start_again().await;
    daemon.world.sts.wait_for_requests(2 * calls).await;
    let order: Vec<String> =
        daemon.world.sts.calls()[calls..].iter().filter_map(|call| call.session_name.clone()).collect();
    assert_eq!(
        order,
        ["shop.e-starts", "shop.d-starts-in-vain", "shop.c-runs", "shop.b-runs-for-long", "shop.a-drains"]
    );
    for token in &tokens {
        assert_eq!(daemon.ask(token).await, "200 orders");
    }
    assert_eq!(daemon.world.sts.call_count(), 2 * calls, "nobody had to ask for it");
}
