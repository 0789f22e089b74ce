//! The life of the real binary: start, probes, log level, end.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::Arc,
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rolecall_process::{
    admin,
    liveness::Liveness,
    metrics,
    readiness::Readiness,
    telemetry::{self, LogFormat, LogLevel},
};
use tempfile::TempDir;

/// The daemon's doors alone, in this process, for the binary's commands to ask.
struct Doors {
    readiness: Readiness,
    log_level: LogLevel,
    socket: PathBuf,
    _admin: admin::Admin,
    _dispatch: tracing::Dispatch,
    _dir: TempDir,
}

/// A running binary, which is ended with the test.
struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Doors {
    fn open() -> Self {
        let dir = TempDir::new().unwrap();
        let config = telemetry::Config { format: LogFormat::Text, filter: "info".parse().unwrap() };
        let (dispatch, log) = telemetry::with_writer(&config, std::io::sink);
        let log_level = log.level;
        let readiness = Readiness::default();
        let socket = dir.path().join("admin.sock");
        let bound =
            admin::Bound::bind(admin::Config { listen: None, socket: socket.clone(), metrics_listen: None })
                .unwrap();
        let state = admin::State {
            liveness: Liveness::default(),
            readiness: readiness.clone(),
            log_level: log_level.clone(),
            registry: Arc::new(metrics::registry()),
        };
        let admin = bound.serve(state).unwrap();
        Self { readiness, log_level, socket, _admin: admin, _dispatch: dispatch, _dir: dir }
    }
}

impl Daemon {
    /// Starts it and waits until its doors are open.
    fn start(flags: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = command(dir.path());
        command.args(flags);
        let mut daemon = Self::spawn(command, dir);
        daemon.wait_for("the admin doors are open");
        daemon
    }

    fn spawn(mut command: Command, dir: TempDir) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, socket: dir.path().join("admin.sock"), _dir: dir }
    }

    /// Reads the log up to the line with `part`.
    fn wait_for(&mut self, part: &str) -> String {
        let mut all = String::new();
        while self.has_more(&all) && self.log.read_line(&mut all).unwrap() != 0 {
            let line = all.lines().last().unwrap();
            if line.contains(part) {
                return line.to_owned();
            }
        }
        panic!("the log ended without {part:?}:\n{all}");
    }

    /// Waits for something to read; a daemon that stays silent for a minute will not say it any more.
    fn has_more(&self, so_far: &str) -> bool {
        let mut polled = [PollFd::new(self.log.get_ref().as_fd(), PollFlags::POLLIN)];
        let ready = !self.log.buffer().is_empty() || poll(&mut polled, 60_000u16).unwrap() != 0;
        assert!(ready, "silence after:\n{so_far}");
        ready
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with settings that touch nothing outside of `dir` and loopback.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall-daemon"));
    command.env_clear().args([
        "--node-name=n",
        "--region=eu-west-1",
        "--sts-endpoint=http://127.0.0.1:9",
        "--listen=127.0.0.1:0",
        "--metadata-firewall=off",
    ]);
    // As variables, so that a test can override them.
    command.envs([("ROLECALL_ADMIN_LISTEN", "127.0.0.1:0"), ("ROLECALL_METRICS_LISTEN", "127.0.0.1:0")]);
    command.arg(format!("--admin-socket={}", dir.join("admin.sock").display()));
    command.arg(format!("--kubeconfig={}", kubeconfig(dir).display()));
    command.arg(format!("--pods-dir={}", dir.display()));
    command
}

/// Of a cluster that is away.
fn kubeconfig(dir: &Path) -> PathBuf {
    let path = dir.join("kubeconfig");
    let text = r#"{"apiVersion":"v1","kind":"Config","current-context":"a",
        "contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],
        "clusters":[{"name":"a","cluster":{"server":"http://127.0.0.1:9"}}],
        "users":[{"name":"a","user":{}}]}"#;
    fs::write(&path, text).unwrap();
    path
}

/// Runs a command of the binary against `socket`.
fn ask(words: &[&str], socket: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rolecall-daemon"))
        .env_clear()
        .args(words)
        .arg("--admin-socket")
        .arg(socket)
        .output()
        .unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str(), text(&output.stderr).as_str()),
        (Some(code), stdout, stderr)
    );
}

#[test]
fn a_probe_says_yes_by_its_exit_code_and_why_not_on_standard_error() {
    let doors = Doors::open();
    let latch = doors.readiness.latch("pods synced");
    check(&ask(&["probe", "ready"], &doors.socket), 1, "", "not ready, waiting for:\n- pods synced\n");
    check(&ask(&["probe", "live"], &doors.socket), 0, "", "alive\n");
    drop(latch);
    check(&ask(&["probe", "ready"], &doors.socket), 0, "", "ready\n");
}

#[test]
fn the_log_level_is_shown_and_set_from_the_command_line() {
    let doors = Doors::open();
    check(&ask(&["log-level"], &doors.socket), 0, "info\n", "");
    check(&ask(&["log-level", "debug"], &doors.socket), 0, "debug\n", "");
    assert_eq!(doors.log_level.get().as_str(), "debug");
}

#[test]
fn a_probe_of_no_daemon_says_so() {
    let dir = TempDir::new().unwrap();
    let absent = dir.path().join("absent.sock");
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for (socket, cause) in [(absent, "No such file"), (stale, "Connection refused")] {
        let output = ask(&["probe", "live"], &socket);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            message.starts_with(&format!("nothing listens at {}: {cause}", socket.display()))
                && message.ends_with("the program is not running yet, or its --admin-socket is another\n"),
            "{message}"
        );
    }
}

#[test]
fn a_probe_of_a_daemon_that_is_stuck_gives_up() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("admin.sock");
    // The kernel accepts for it; nobody reads.
    let _stuck = UnixListener::bind(&socket).unwrap();
    let message = format!("the program at {} gave no answer within 2s\n", socket.display());
    check(&ask(&["probe", "live"], &socket), 1, "", &message);
}

#[test]
fn the_daemon_answers_its_probe_and_ends_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start(&[]);
        check(&ask(&["probe", "live"], &daemon.socket), 0, "", "alive\n");
        daemon.signal(signal);
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
        assert!(!daemon.socket.exists());
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_that_stops_the_next() {
    let dir = TempDir::new().unwrap();
    for _ in 0..2 {
        let mut child = command(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let opened = lines.into_iter().any(|line| line.contains("the admin doors are open"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(opened && dir.path().join("admin.sock").exists());
    }
}

#[test]
fn its_memory_is_never_written_to_disk() {
    let daemon = Daemon::start(&[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<&str> = cores.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{cores}");
}

#[test]
fn it_takes_every_file_descriptor_it_may_have() {
    let dir = TempDir::new().unwrap();
    let direct = command(dir.path());
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 64; ulimit -Hn 512; exec \"$0\" \"$@\""]);
    shell.env_clear().arg(direct.get_program()).args(direct.get_args());
    shell.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut daemon = Daemon::spawn(shell, dir);
    let warning = daemon.wait_for("file descriptors");
    assert!(warning.contains("--max-connections 16384") && warning.contains("limit=512"), "{warning}");
    daemon.wait_for("the admin doors are open");
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(words[3..5], ["512", "512"], "{files}");
}

#[test]
fn every_line_of_a_json_log_is_an_object() {
    let mut daemon = Daemon::start(&["--log-format=json", "--log-level=debug"]);
    daemon.signal(Signal::SIGTERM);
    let mut lines = 0;
    for line in (&mut daemon.log).lines().map(Result::unwrap) {
        let value: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
        lines += 1;
    }
    assert!(0 < lines);
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_flag_and_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for flag in ["--admin-listen", "--metrics-listen"] {
        let dir = TempDir::new().unwrap();
        let mut command = command(dir.path());
        let output = command.arg(format!("{flag}={address}")).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(71), "{log}");
        assert!(log.contains(&format!("bind {flag} {address}: Address already in use")), "{log}");
        assert!(log.contains("choose another port, or off"), "{log}");
    }
}
