//! Accepts connections and serves them, through bursts, errors and the drain.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Sleep, sleep},
};
use tracing::{debug, warn};

use super::{
    endpoint::{Endpoint, Peer},
    limits::{Connection, Limits, Source},
    slow::{ReplyBody, ResetSwitch},
};
use crate::node::NodeAddresses;
use rolecall_process::drain;

/// Pauses after failures to accept: the first, and the longest. Out of file descriptors, the kernel keeps the
/// connection in its queue, and accepting it again at once would fail again at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Largest head that is read at all; the endpoint refuses from half of it on, with words.
const READ_BUFFER: usize = 32 * 1024;

/// Limits of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Open connections of all pods together.
    pub max_connections: usize,
    /// Time for a request's head to arrive, for an idle connection to stay, and for a client to read.
    pub header_timeout: Duration,
}

/// What the listeners show.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    open: Gauge,
    accept_errors: Counter,
    cut_off: Counter,
}

/// Serves the endpoint on any number of listening sockets. Cloning is cheap.
#[derive(Clone)]
pub struct Server {
    config: Config,
    endpoint: Arc<Endpoint>,
    limits: Limits,
    node: NodeAddresses,
    connections: Arc<Semaphore>,
    /// Places for the node's own addresses: pods on the host network share these, so they have no limit of one pod,
    /// and must not take every place.
    on_node: Arc<Semaphore>,
    metrics: Metrics,
    tasks: drain::Tasks,
    terms: Terms,
}

/// Until when connections are accepted, and whether there is somebody else to connect to.
#[derive(Clone)]
pub struct Terms {
    /// Begins when nothing is to be accepted any more.
    pub on_duty: drain::Watch,
    /// Begins when another daemon accepts. Connections that are open then end with their next answer: one that is
    /// closed while its client sends a request would lose it, and the client has somewhere to go in its own time.
    pub has_handed_over: drain::Watch,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("connections_open", "Open connections of the endpoint", metrics.open.clone());
        registry.register("accept_errors", "Failures to accept a connection", metrics.accept_errors.clone());
        registry.register(
            "connections_cut_off",
            "Connections reset at once because their pod had far too many",
            metrics.cut_off.clone(),
        );
        metrics
    }
}

impl Server {
    pub fn new(
        config: Config,
        endpoint: Endpoint,
        limits: Limits,
        node: NodeAddresses,
        metrics: Metrics,
        tasks: drain::Tasks,
        terms: Terms,
    ) -> Self {
        let connections = Arc::new(Semaphore::new(config.max_connections));
        let on_node = Arc::new(Semaphore::new(config.max_connections.div_ceil(2)));
        Self {
            config,
            endpoint: Arc::new(endpoint),
            limits,
            node,
            connections,
            on_node,
            metrics,
            tasks,
            terms,
        }
    }

    /// Accepts on `listener` for as long as that is its duty. No error ends it.
    pub async fn run(self, listener: TcpListener) {
        let on_duty = self.terms.on_duty.clone();
        let mut pause = PAUSES.0;
        loop {
            // Taken before accepting: what cannot be served stays in the kernel's queue.
            let place = tokio::select! {
                biased;
                // Also while every place is taken: a socket that is kept open is in the next daemon's way.
                () = on_duty.begun() => return,
                place = self.connections.clone().acquire_owned() => place,
            };
            let Ok(place) = place else { return };
            let accepted = tokio::select! {
                biased;
                () = on_duty.begun() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = PAUSES.0;
                    let connection = self.clone().serve(stream, peer);
                    self.tasks.spawn("connection", async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    if !is_of_the_connection(&error) {
                        warn!(%error, "cannot accept a connection; trying on");
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSES.1);
                    }
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        let address = peer.ip().to_canonical();
        let budget = self.limits.of(Source::Address(address));
        let place = if self.node.contains(address) {
            self.on_node.clone().try_acquire_owned().map_or(Connection::CutOff, Connection::served)
        } else {
            budget.connect()
        };
        let too_many = match place {
            Connection::Served(_) => false,
            Connection::Refused(_) => true,
            Connection::CutOff => {
                self.metrics.cut_off.inc();
                // A reset frees the port at once on both sides.
                let _ = stream.set_zero_linger();
                return;
            }
        };
        let _open = Open::new(&self.metrics.open);
        let peer = Peer::new(address, budget);
        self.speak_http(stream, peer, too_many).await;
        drop(place);
    }

    async fn speak_http(&self, stream: TcpStream, peer: Peer, too_many: bool) {
        let io = TokioIo::new(Resettable::new(stream, peer.reset.clone(), self.config.header_timeout));
        let (endpoint, peer, handed_over) = (&*self.endpoint, &peer, &self.terms.has_handed_over);
        let service = service_fn(|request: Request<Incoming>| async move {
            let mut response = if too_many {
                endpoint.refuse_connection(peer)
            } else {
                endpoint.answer(request, peer).await
            };
            if handed_over.has_begun() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<Response<ReplyBody>, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(READ_BUFFER)
            .keep_alive(!too_many)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        let drain = self.tasks.watch();
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = drain.begun() => {
                if !self.terms.has_handed_over.has_begun() {
                    connection.as_mut().graceful_shutdown();
                }
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%error, peer = %peer.address, "a connection ended early");
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener; the next one is accepted at once.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Counts an open connection.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A stream that ends with a reset while its switch is pressed and with a close otherwise, and that ends when its
/// client does not read.
struct Resettable {
    stream: TcpStream,
    reset: ResetSwitch,
    /// What the socket was last told of the switch.
    lingers_for_zero: bool,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Resettable {
    fn new(stream: TcpStream, reset: ResetSwitch, write_timeout: Duration) -> Self {
        Self { stream, reset, lingers_for_zero: false, write_timeout, stalled: None }
    }

    /// Closing a socket that lingers for zero seconds sends RST in place of FIN (socket(7)). It is told so with the
    /// bytes, not at the end, for the end may be the process's own.
    fn follow_switch(&mut self) {
        let pressed = self.reset.is_pressed();
        if pressed != self.lingers_for_zero {
            let linger = linger { l_onoff: pressed.into(), l_linger: 0 };
            let _ = setsockopt(&self.stream, sockopt::Linger, &linger);
            self.lingers_for_zero = pressed;
        }
    }

    /// Lets a write wait for the client to read, but not for ever.
    fn within_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Resettable {
    fn drop(&mut self) {
        self.follow_switch();
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.follow_switch();
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.follow_switch();
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.is_pressed() {
            // A FIN now would reach the client before the reset does.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
