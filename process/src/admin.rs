//! The doors for operators and probes: health and log level, and the metrics on an address of their own.
//!
//! They run on a thread and a runtime of their own, so that a stuck data plane can still be seen, and so that a
//! scrape adds nothing to anyone's latency.

mod listener;
mod pages;
mod socket;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
};

use prometheus_client::registry::Registry;
use tokio::{net, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{pages::Door, socket::SocketFile};
use crate::{liveness::Liveness, readiness::Readiness, telemetry::LogLevel};

/// Connections that one door serves at a time; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;

/// What [`Bound::bind`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where health is told over TCP; a loopback address. `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// The Unix socket of this process, which `rolecall-daemon probe` asks.
    pub socket: PathBuf,
    /// Where the metrics are. `None` for nowhere.
    pub metrics_listen: Option<SocketAddr>,
}

/// What the doors tell and change. Cloning is cheap.
#[derive(Clone)]
pub struct State {
    pub liveness: Liveness,
    pub readiness: Readiness,
    pub log_level: LogLevel,
    pub registry: Arc<Registry>,
}

/// Every door, reserved but not yet open.
pub struct Bound {
    listen: Option<TcpListener>,
    metrics_listen: Option<TcpListener>,
    socket: UnixListener,
    socket_file: SocketFile,
}

/// The open doors; they close when it is dropped, and the socket's file goes.
#[must_use = "the doors close when it is dropped"]
pub struct Admin {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    socket_file: SocketFile,
}

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "bind {flag} {address}: {source}; another process may hold it: choose another port, or off where nothing asks"
    )]
    Bind { flag: &'static str, address: SocketAddr, source: io::Error },
    #[error("bind --admin-socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("start the admin thread")]
    Start(#[source] io::Error),
}

impl Bound {
    /// Takes every address and the socket's path, or none.
    ///
    /// # Errors
    /// Names the flag and the address that cannot be had.
    pub fn bind(config: Config) -> Result<Self, Error> {
        let listen = config.listen.map(|address| bind_tcp("--admin-listen", address)).transpose()?;
        let metrics_listen =
            config.metrics_listen.map(|address| bind_tcp("--metrics-listen", address)).transpose()?;
        let (socket, socket_file) =
            socket::bind(&config.socket).map_err(|source| Error::Socket { path: config.socket, source })?;
        Ok(Self { listen, metrics_listen, socket, socket_file })
    }

    /// Where health is told over TCP.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where the metrics are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listen.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Opens the doors.
    ///
    /// # Errors
    /// When the system has no thread or no file descriptor left for them.
    pub fn serve(self, state: State) -> Result<Admin, Error> {
        let (address, metrics_address) = (self.address(), self.metrics_address());
        let Self { listen, metrics_listen, socket, socket_file } = self;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (started, has_started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || run(listen, metrics_listen, socket, state, &stopped, &started))
            .map_err(Error::Start)?;
        let admin = Admin { stop, thread: Some(thread), socket_file };
        match has_started.recv() {
            Ok(Ok(())) => {
                let shown = |address: Option<SocketAddr>| {
                    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
                };
                tracing::info!(
                    admin = shown(address),
                    metrics = shown(metrics_address),
                    socket = %admin.socket_file.path().display(),
                    "the admin doors are open"
                );
                Ok(admin)
            }
            Ok(Err(source)) => Err(Error::Start(source)),
            Err(mpsc::RecvError) => Err(Error::Start(io::Error::other("the thread panicked"))),
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Err(_panic)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!("the admin thread panicked");
        }
    }
}

fn bind_tcp(flag: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| Error::Bind { flag, address, source })
}

/// The admin thread.
fn run(
    listen: Option<TcpListener>,
    metrics_listen: Option<TcpListener>,
    socket: UnixListener,
    state: State,
    stop: &CancellationToken,
    started: &mpsc::SyncSender<io::Result<()>>,
) {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let _context = runtime.enter();
        let doors = open(listen, metrics_listen, socket, &state)?;
        Ok((runtime, doors))
    });
    let (runtime, mut doors) = match built {
        Ok(built) => built,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(()));
    runtime.block_on(async {
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = doors.join_next() => {
                tracing::error!(cause = ended.err().map(tracing::field::display), "an admin door closed");
            }
        }
    });
}

/// Starts one accept loop per door on the runtime of the caller.
fn open(
    listen: Option<TcpListener>,
    metrics_listen: Option<TcpListener>,
    socket: UnixListener,
    state: &State,
) -> io::Result<JoinSet<()>> {
    let mut doors = JoinSet::new();
    for (door, listener) in [(Door::Loopback, listen), (Door::Metrics, metrics_listen)] {
        let Some(listener) = listener else { continue };
        let listener = net::TcpListener::from_std(listener)?;
        let accept = async move || Ok(listener.accept().await?.0);
        doors.spawn(listener::run(MAX_CONNECTIONS, accept, pages::serving(door, state.clone())));
    }
    let socket = net::UnixListener::from_std(socket)?;
    let accept = async move || Ok(socket.accept().await?.0);
    doors.spawn(listener::run(MAX_CONNECTIONS, accept, pages::serving(Door::Socket, state.clone())));
    Ok(doors)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        os::unix::net::UnixStream,
        path::Path,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::{
        metrics,
        telemetry::{LogFormat, test::Captured},
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
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
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
        assert!(
            refused.status == 400 && refused.body.contains("\"loud\" is not a level"),
            "{}",
            refused.body
        );
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
            let error = Bound::bind(config).err().unwrap().to_string();
            assert!(
                error.contains(&format!("bind {flag} {address}: ")) && error.contains("in use"),
                "{error}"
            );
            assert!(!dir.path().join("admin.sock").exists());
        }
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
    fn doors_that_are_off_are_not_bound() {
        let dir = TempDir::new().unwrap();
        let bound = Bound::bind(Config { listen: None, metrics_listen: None, ..config(dir.path()) }).unwrap();
        assert_eq!((bound.address(), bound.metrics_address()), (None, None));
    }
}
