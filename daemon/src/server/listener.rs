//! Accepts connections and serves them, through bursts, errors and the drain.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tracing::warn;

use super::{
    connection::Service,
    endpoint::{Endpoint, Limits, Peer},
    limits::{Connection, Source},
    stream::ClientStream,
};
use crate::node::NodeAddresses;
use rolecall_process::{accept::is_of_the_connection, drain};

/// Pauses after failures to accept: the first, and the longest. Out of file descriptors, the kernel keeps the
/// connection in its queue, and accepting it again at once would fail again at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

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
pub struct Server(Arc<Shared>);

/// What all connections have in common.
struct Shared {
    config: Config,
    endpoint: Endpoint,
    limits: Limits,
    node: NodeAddresses,
    connections: Arc<Semaphore>,
    /// Places for the node's own addresses: pods on the host network share these, so they have no limit of one pod,
    /// and must not take every place.
    on_node: Arc<Semaphore>,
    /// Places for addresses that no pod is known to have: whoever forges some must not take every place either.
    strangers: Arc<Semaphore>,
    metrics: Metrics,
    tasks: drain::TasksOf,
    /// Begins when connections are to end with what they are at.
    drain: drain::Watch,
    terms: Terms,
}

/// Until when connections are accepted, and whether there is somebody else to connect to.
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
            "Connections reset at once: of a pod with far too many, or when the node's or unknown addresses have their half",
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
        let half = || Arc::new(Semaphore::new(config.max_connections.div_ceil(2)));
        let (on_node, strangers) = (half(), half());
        Self(Arc::new(Shared {
            config,
            endpoint,
            limits,
            node,
            connections,
            on_node,
            strangers,
            metrics,
            drain: tasks.watch(),
            tasks: tasks.of("connection"),
            terms,
        }))
    }

    /// Accepts on `listener` for as long as that is its duty. No error ends it.
    pub async fn run(self, listener: TcpListener) {
        // One for all connections: to wait for it anew takes a lock.
        let mut off_duty = pin!(self.0.terms.on_duty.begun());
        let mut pause = PAUSES.0;
        loop {
            // Taken before accepting: what cannot be served stays in the kernel's queue.
            let place = tokio::select! {
                biased;
                // Also while every place is taken: a socket that is kept open is in the next daemon's way.
                () = &mut off_duty => return,
                place = self.0.connections.clone().acquire_owned() => place,
            };
            let Ok(place) = place else { return };
            let accepted = tokio::select! {
                biased;
                () = &mut off_duty => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = PAUSES.0;
                    self.0.tasks.spawn(self.0.clone().serve(stream, peer, place));
                }
                Err(error) => {
                    self.0.metrics.accept_errors.inc();
                    if !is_of_the_connection(&error) {
                        warn!(%error, "cannot accept a connection; trying on");
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSES.1);
                    }
                }
            }
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
        let address = peer.ip().to_canonical();
        let is_on_node = self.node.contains(address);
        // Pods share the node's addresses: what is known of one connection is of no use to another.
        let budget = match is_on_node {
            true => self.limits.unshared(),
            false => self.limits.of(Source::Address(address)),
        };
        let shared_places = if is_on_node {
            Some(&self.on_node)
        } else {
            self.endpoint.is_stranger(address, &budget).then_some(&self.strangers)
        };
        let shared_place = shared_places.map(|places| places.clone().try_acquire_owned()).transpose();
        let place = match &shared_place {
            Err(_) => Connection::CutOff,
            Ok(_) => budget.connect(),
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
        let stream = ClientStream::new(stream, peer.reset.clone(), self.config.header_timeout);
        let service = Service {
            endpoint: &self.endpoint,
            peer,
            too_many,
            header_timeout: self.config.header_timeout,
            drain: &self.drain,
            has_handed_over: &self.terms.has_handed_over,
        };
        service.speak(stream).await;
        drop((place, shared_place));
    }
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
