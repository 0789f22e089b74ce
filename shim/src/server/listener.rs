//! Accepts connections, sets up TLS and speaks HTTP, through bursts, errors and the drain.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rolecall_process::{accept::is_of_the_connection, drain};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tracing::{debug, warn};

use super::{
    endpoint::Endpoint,
    metrics::Metrics,
    places::{Admission, Arriving, Place, Places},
};

/// Pauses after failures to accept: the first, and the longest. Out of file descriptors, the kernel keeps the
/// connection in its queue, and accepting it again at once would fail again at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long TLS may take to be set up.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long an idle connection stays. The API server closes its own after 90 s; were we the first, a review could
/// be on its way just then.
const IDLE_FOR: Duration = Duration::from_secs(120);

/// Largest head of a request.
const READ_BUFFER: usize = 32 * 1024;

/// Serves the endpoint on any number of listening sockets. Cloning is cheap.
#[derive(Clone)]
pub struct Server {
    endpoint: Arc<Endpoint>,
    tls: TlsAcceptor,
    places: Places,
    metrics: Metrics,
    tasks: drain::Tasks,
    /// Begins before the drain: calls are still taken, but each is the last of its connection.
    leaving: drain::Watch,
}

impl Server {
    pub fn new(
        endpoint: Endpoint,
        tls: Arc<ServerConfig>,
        max_connections: usize,
        tasks: drain::Tasks,
        leaving: drain::Watch,
    ) -> Self {
        let metrics = endpoint.metrics.clone();
        let places = Places::new(max_connections);
        Self { endpoint: Arc::new(endpoint), tls: tls.into(), places, metrics, tasks, leaving }
    }

    /// Accepts on `listener` until the drain begins. No error ends it.
    pub async fn run(self, listener: TcpListener) {
        let drain = self.tasks.watch();
        let mut pause = PAUSES.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.begun() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = PAUSES.0;
                    // Never left in the kernel's queue, where one peer's would stand before another's.
                    let place = match self.places.take(peer.ip().to_canonical()) {
                        Admission::Free(place) => place,
                        Admission::Displacing(place) => {
                            self.metrics.displaced.inc();
                            place
                        }
                        Admission::Refused => {
                            self.metrics.refused.inc();
                            debug!(%peer, "there is no room for another connection");
                            continue;
                        }
                    };
                    self.tasks.spawn("connection", self.clone().keep(stream, peer, Arc::new(place)));
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

    /// Serves a connection until it ends or its place is another's.
    async fn keep(self, stream: TcpStream, peer: SocketAddr, place: Arc<Place>) {
        tokio::select! {
            () = self.serve(stream, peer, &place) => {}
            () = place.displaced() => debug!(%peer, "a connection gave way to one of a peer that holds fewer"),
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, place: &Arc<Place>) {
        let _open = Open::new(&self.metrics);
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        let stream = match timeout(HANDSHAKE_WITHIN, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                // A probe of a load balancer that says nothing looks the same.
                self.metrics.handshake_errors.inc();
                debug!(%error, %peer, "TLS was not set up");
                return;
            }
            Err(_elapsed) => {
                self.metrics.handshake_errors.inc();
                debug!(%peer, "TLS was not set up in time");
                return;
            }
        };
        let service = service_fn(|request: Request<Incoming>| async {
            let request = request.map(|body| Arriving { body, place: place.clone() });
            let mut response = self.endpoint.answer(request).await;
            place.set_answered(false);
            if self.leaving.has_begun() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_FOR)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let drain = self.tasks.watch();
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = drain.begun() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%error, %peer, "a connection ended early");
        }
    }
}

/// Counts an open connection.
struct Open(Metrics);

impl Open {
    fn new(metrics: &Metrics) -> Self {
        metrics.open.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}
