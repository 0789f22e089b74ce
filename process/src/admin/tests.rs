//! Open doors, asked byte by byte.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
};

use tempfile::TempDir;

use super::*;
use crate::{
    metrics, program,
    telemetry::{LogFormat, chain, test::Captured},
};

/// Open doors on free ports, and hands on what they show.
struct Fixture {
    address: SocketAddr,
    metrics_address: SocketAddr,
    socket: PathBuf,
    state: State,
    admin: Option<Admin>,
    _dir: TempDir,
    _dispatch: tracing::Dispatch,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (dispatch, log_level) = Captured::default().dispatch(LogFormat::Text, "info");
        let state = State {
            liveness: Liveness::default(),
            readiness: Readiness::default(),
            log_level,
            registry: Arc::new(metrics::registry()),
        };
        let bound = Bound::bind(config(dir.path())).unwrap();
        Self {
            address: bound.address().unwrap(),
            metrics_address: bound.metrics_address().unwrap(),
            socket: dir.path().join("admin.sock"),
            admin: Some(bound.serve(state.clone()).unwrap()),
            state,
            _dir: dir,
            _dispatch: dispatch,
        }
    }

    fn loopback(&self, request: &str) -> Reply {
        exchange(TcpStream::connect(self.address).unwrap(), request)
    }

    fn metrics(&self, request: &str) -> Reply {
        exchange(TcpStream::connect(self.metrics_address).unwrap(), request)
    }

    fn socket(&self, request: &str) -> Reply {
        exchange(UnixStream::connect(&self.socket).unwrap(), request)
    }
}

fn config(dir: &Path) -> Config {
    let any_port = Some("127.0.0.1:0".parse().unwrap());
    Config { listen: any_port, socket: dir.join("admin.sock"), metrics_listen: any_port }
}

/// Sends `METHOD /path`, with a body after a space if there is one, and reads to the end.
fn exchange(mut stream: impl Read + Write, request: &str) -> Reply {
    let mut words = request.splitn(3, ' ');
    let (method, path, body) =
        (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_lowercase(), body: body.to_owned() }
}

#[track_caller]
fn check(reply: Reply, status: u16, body: &str) {
    assert_eq!((reply.status, reply.body.as_str()), (status, body));
}

#[test]
fn readiness_lists_what_is_missing_on_both_doors() {
    let fixture = Fixture::new();
    let pods = fixture.state.readiness.latch("pods synced");
    let listeners = fixture.state.readiness.latch("listeners bound");
    let both = "not ready, waiting for:\n- pods synced\n- listeners bound\n";
    check(fixture.loopback("GET /readyz"), 503, both);
    check(fixture.socket("GET /readyz"), 503, both);
    drop(pods);
    check(fixture.socket("GET /readyz"), 503, "not ready, waiting for:\n- listeners bound\n");
    drop(listeners);
    check(fixture.loopback("GET /readyz"), 200, "ready\n");
    check(fixture.socket("GET /readyz"), 200, "ready\n");
}

#[test]
fn a_stuck_loop_is_named() {
    let fixture = Fixture::new();
    let heart = fixture.state.liveness.heart("data plane");
    check(fixture.socket("GET /healthz"), 200, "alive\n");
    heart.age(std::time::Duration::from_secs(12));
    let stuck = fixture.loopback("GET /healthz");
    assert!(
        stuck.status == 503 && stuck.body.starts_with("stuck:\n- data plane, silent for 1"),
        "{}",
        stuck.body
    );
    heart.beat();
    check(fixture.loopback("GET /healthz"), 200, "alive\n");
}

#[test]
fn metrics_are_at_their_own_address_alone() {
    let fixture = Fixture::new();
    let reply = fixture.metrics("GET /metrics");
    assert_eq!(reply.status, 200);
    assert!(
        reply.head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{}",
        reply.head
    );
    assert!(reply.body.contains("rolecall_build_info{version=") && reply.body.ends_with("# EOF\n"));
    for path in ["/healthz", "/readyz", "/log-level", "/", "/metrics/"] {
        check(fixture.metrics(&format!("GET {path}")), 404, "here is /metrics\n");
    }
    let not_here = "here are /healthz, /readyz and /log-level\n";
    check(fixture.loopback("GET /metrics"), 404, not_here);
    check(fixture.socket("GET /metrics"), 404, not_here);
}

#[test]
fn the_log_level_is_set_over_the_unix_socket_alone() {
    let fixture = Fixture::new();
    check(fixture.loopback("GET /log-level"), 200, "info\n");
    assert_eq!(fixture.loopback("PUT /log-level debug").status, 403);
    assert_eq!(fixture.state.log_level.get().as_str(), "info");
    check(fixture.socket("PUT /log-level info,kube=debug"), 200, "info,kube=debug\n");
    check(fixture.loopback("GET /log-level"), 200, "info,kube=debug\n");
    let refused = fixture.socket("PUT /log-level loud");
    assert!(refused.status == 400 && refused.body.contains("\"loud\" is not a level"), "{}", refused.body);
    assert_eq!(fixture.socket(&format!("PUT /log-level {}", "x".repeat(4097))).status, 413);
    assert_eq!(fixture.state.log_level.get().as_str(), "info,kube=debug");
}

#[test]
fn other_methods_are_refused_with_those_that_are_not() {
    let fixture = Fixture::new();
    for (reply, allow) in [
        (fixture.loopback("POST /readyz"), "allow: get, head\r\n"),
        (fixture.socket("DELETE /healthz"), "allow: get, head\r\n"),
        (fixture.socket("POST /log-level"), "allow: get, head, put\r\n"),
        (fixture.metrics("PUT /metrics"), "allow: get, head\r\n"),
    ] {
        assert!(reply.status == 405 && reply.head.contains(allow), "{}", reply.head);
    }
    check(fixture.socket("HEAD /readyz"), 200, "");
}

#[test]
fn a_port_that_is_taken_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (flag, config) in [
        ("--admin-listen", Config { listen: Some(address), ..config(dir.path()) }),
        ("--metrics-listen", Config { metrics_listen: Some(address), ..config(dir.path()) }),
    ] {
        let error = program::Error::boot(Bound::bind(config).err().unwrap());
        let said = chain(&error).to_string();
        let remedy =
            said.strip_prefix(&format!("bind {flag} {address}: Address already in use (os error 98). "));
        assert!(remedy.is_some_and(|remedy| remedy.contains("choose another port")), "{said}");
        assert!(!dir.path().join("admin.sock").exists());
    }
}

#[test]
fn a_socket_that_is_taken_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("admin.sock");
    let _taken = Bound::bind_socket(path.clone()).unwrap();
    let error = program::Error::boot(Bound::bind_socket(path.clone()).err().unwrap());
    let expect = format!("bind --admin-socket {}: another process listens there; ", path.display());
    let said = chain(&error).to_string();
    assert!(said.starts_with(&expect) && said.matches("listens there").count() == 1, "{said}");
}

#[test]
fn closed_doors_leave_nothing_behind() {
    let mut fixture = Fixture::new();
    // A client that says nothing must not keep the thread.
    let mut silent = TcpStream::connect(fixture.address).unwrap();
    drop(fixture.admin.take());
    assert!(!fixture.socket.exists());
    let end = silent.read(&mut [0]);
    assert!(end.as_ref().map_or(true, |&read| read == 0), "{end:?}");
}

#[test]
fn doors_over_tcp_open_later_and_close_before_the_socket_does() {
    let dir = TempDir::new().unwrap();
    let fixture = Fixture::new();
    let path = dir.path().join("admin.sock");
    let admin = Bound::bind_socket(path.clone()).unwrap().serve(fixture.state.clone()).unwrap();
    let socket = || exchange(UnixStream::connect(&path).unwrap(), "GET /healthz");
    check(socket(), 200, "alive\n");
    let any_port = Some("127.0.0.1:0".parse().unwrap());
    let doors = Doors::bind(any_port, any_port).unwrap();
    let (address, metrics_address) = (doors.address().unwrap(), doors.metrics_address().unwrap());
    admin.open(doors);
    check(exchange(TcpStream::connect(address).unwrap(), "GET /readyz"), 200, "ready\n");
    // Accepted before the doors close, answered after.
    let mut under_way = TcpStream::connect(address).unwrap();
    under_way.write_all(b"GET /readyz HTTP/1.1\r\n").unwrap();
    check(exchange(TcpStream::connect(address).unwrap(), "GET /readyz"), 200, "ready\n");
    admin.tcp_closer()();
    while TcpStream::connect(metrics_address).is_ok() || TcpStream::connect(address).is_ok() {}
    under_way.write_all(b"Host: x\r\n\r\n").unwrap();
    let mut text = String::new();
    under_way.read_to_string(&mut text).unwrap();
    assert!(text.contains(" 200 "), "{text:?}");
    check(socket(), 200, "alive\n");
}

#[test]
fn doors_that_are_off_are_not_bound() {
    let dir = TempDir::new().unwrap();
    let bound = Bound::bind(Config { listen: None, metrics_listen: None, ..config(dir.path()) }).unwrap();
    assert_eq!((bound.address(), bound.metrics_address()), (None, None));
}
