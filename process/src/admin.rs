//! The doors for operators and probes: health and log level, and the metrics on an address of their own.
//!
//! They run on a thread and a runtime of their own, so that a stuck data plane can still be seen, and so that a
//! scrape adds nothing to anyone's latency.

mod listener;
mod pages;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
};

use prometheus_client::registry::Registry;
use tokio::{
    net,
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::pages::Door;
use crate::{
    address::with_remedy,
    liveness::Liveness,
    readiness::Readiness,
    socket::{self, SocketFile},
    telemetry::LogLevel,
};

/// Connections that one door serves at a time; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;

/// What [`Bound::bind`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where health is told over TCP; a loopback address. `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// The Unix socket of this process, which the program's own `probe` asks.
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

/// The doors over TCP, reserved but not yet open.
#[derive(Debug, Default)]
pub struct Doors {
    pub listen: Option<TcpListener>,
    pub metrics_listen: Option<TcpListener>,
}

/// The socket and perhaps the doors over TCP, reserved but not yet open.
pub struct Bound {
    doors: Doors,
    socket: UnixListener,
    socket_file: SocketFile,
}

/// The open doors; they close when it is dropped, and the socket's file goes.
#[must_use = "the doors close when it is dropped"]
pub struct Admin {
    stop: CancellationToken,
    /// Closes the doors over TCP.
    close_tcp: CancellationToken,
    more: UnboundedSender<Doors>,
    thread: Option<thread::JoinHandle<()>>,
    socket_file: SocketFile,
}

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bind {flag} {address}")]
    Bind { flag: &'static str, address: SocketAddr, source: io::Error },
    #[error("bind --admin-socket {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("start the admin thread")]
    Start(#[source] io::Error),
}

impl Doors {
    /// Takes every address, or none.
    ///
    /// # Errors
    /// Names the flag and the address that cannot be had.
    pub fn bind(listen: Option<SocketAddr>, metrics_listen: Option<SocketAddr>) -> Result<Self, Error> {
        Ok(Self {
            listen: listen.map(|address| bind_tcp("--admin-listen", address)).transpose()?,
            metrics_listen: metrics_listen
                .map(|address| bind_tcp("--metrics-listen", address))
                .transpose()?,
        })
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

    fn log_open(&self, socket: &SocketFile) {
        let shown = |address: Option<SocketAddr>| {
            address.map_or_else(|| "off".to_owned(), |address| address.to_string())
        };
        tracing::info!(
            admin = shown(self.address()),
            metrics = shown(self.metrics_address()),
            socket = %socket.path().display(),
            "the admin doors are open"
        );
    }
}

impl Bound {
    /// Takes every address and the socket's path, or none.
    ///
    /// # Errors
    /// Names the flag and the address that cannot be had.
    pub fn bind(config: Config) -> Result<Self, Error> {
        let doors = Doors::bind(config.listen, config.metrics_listen)?;
        Ok(Self { doors, ..Self::bind_socket(config.socket)? })
    }

    /// Takes the socket's path alone; the doors over TCP come later, by [`Admin::open`].
    ///
    /// # Errors
    /// When the path cannot be had.
    pub fn bind_socket(path: PathBuf) -> Result<Self, Error> {
        let (socket, socket_file) = socket::bind(&path).map_err(|source| Error::Socket { path, source })?;
        Ok(Self { doors: Doors::default(), socket, socket_file })
    }

    /// Where health is told over TCP.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.doors.address()
    }

    /// Where the metrics are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.doors.metrics_address()
    }

    /// Opens what was bound.
    ///
    /// # Errors
    /// When the system has no thread or no file descriptor left for it.
    pub fn serve(self, state: State) -> Result<Admin, Error> {
        let Self { doors, socket, socket_file } = self;
        let (stop, close_tcp) = (CancellationToken::new(), CancellationToken::new());
        let (more, further) = tokio::sync::mpsc::unbounded_channel();
        let (started, has_started) = mpsc::sync_channel(1);
        let stopping = Stopping { stopped: stop.clone(), tcp_closed: close_tcp.clone() };
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || run(socket, state, further, &stopping, &started))
            .map_err(Error::Start)?;
        let admin = Admin { stop, close_tcp, more, thread: Some(thread), socket_file };
        match has_started.recv() {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(Error::Start(source)),
            Err(mpsc::RecvError) => return Err(Error::Start(io::Error::other("the thread panicked"))),
        }
        if doors.listen.is_some() || doors.metrics_listen.is_some() {
            admin.open(doors);
        }
        Ok(admin)
    }
}

impl Admin {
    /// Opens doors over TCP beside the socket.
    pub fn open(&self, doors: Doors) {
        doors.log_open(&self.socket_file);
        // The receiver lives as long as the thread, which only ends with `self` or by a panic, which is logged.
        let _ = self.more.send(doors);
    }

    /// What closes the doors over TCP for good, when another process has them; requests under way are answered. The
    /// socket stays open.
    pub fn tcp_closer(&self) -> impl FnOnce() + Send + use<> {
        let close_tcp = self.close_tcp.clone();
        move || close_tcp.cancel()
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
    listener.map_err(|cause| {
        let remedy = "Another process may hold it: choose another port, or off where nothing asks";
        Error::Bind { flag, address, source: with_remedy(cause, remedy) }
    })
}

/// What ends the doors.
struct Stopping {
    stopped: CancellationToken,
    tcp_closed: CancellationToken,
}

/// The admin thread.
fn run(
    socket: UnixListener,
    state: State,
    mut further: UnboundedReceiver<Doors>,
    stopping: &Stopping,
    started: &mpsc::SyncSender<io::Result<()>>,
) {
    let mut doors = JoinSet::new();
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let _context = runtime.enter();
        open_socket(&mut doors, socket, state.clone())?;
        Ok(runtime)
    });
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(()));
    runtime.block_on(async {
        loop {
            tokio::select! {
                () = stopping.stopped.cancelled() => return,
                Some(more) = further.recv() => {
                    if let Err(error) = open_tcp(&mut doors, more, &state, &stopping.tcp_closed) {
                        tracing::error!(%error, "open an admin door");
                    }
                }
                Some(ended) = doors.join_next() => {
                    // Those over TCP end when they are told to.
                    if ended.is_err() || !stopping.tcp_closed.is_cancelled() {
                        tracing::error!(cause = ended.err().map(tracing::field::display), "an admin door closed");
                    }
                }
            }
        }
    });
}

fn open_socket(doors: &mut JoinSet<()>, socket: UnixListener, state: State) -> io::Result<()> {
    let socket = net::UnixListener::from_std(socket)?;
    let accept = async move || Ok(socket.accept().await?.0);
    let never = CancellationToken::new();
    doors.spawn(listener::run(MAX_CONNECTIONS, accept, pages::serving(Door::Socket, state), never));
    Ok(())
}

/// Starts one accept loop per door on the runtime of the caller.
fn open_tcp(
    doors: &mut JoinSet<()>,
    Doors { listen, metrics_listen }: Doors,
    state: &State,
    closed: &CancellationToken,
) -> io::Result<()> {
    for (door, listener) in [(Door::Loopback, listen), (Door::Metrics, metrics_listen)] {
        let Some(listener) = listener else { continue };
        listener.set_nonblocking(true)?;
        let listener = net::TcpListener::from_std(listener)?;
        let accept = async move || Ok(listener.accept().await?.0);
        let serve = pages::serving(door, state.clone());
        doors.spawn(listener::run(MAX_CONNECTIONS, accept, serve, closed.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
