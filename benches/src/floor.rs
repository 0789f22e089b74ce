//! The floor: hyper with nothing behind it, answering with the daemon's own headers and body.

use std::{convert::Infallible, io::Write, net::SocketAddr, thread::available_parallelism};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpSocket;

/// Where it listens: an address that is no pod's.
const LISTEN: &str = "10.255.255.1:0";

/// Says where it listens, and answers every request with `body` until it is killed. It has as many threads as the
/// daemon has for its data plane.
pub(crate) fn run(body: String) -> Result<()> {
    let threads = available_parallelism().map_or(1, usize::from).clamp(1, 4);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        // A task accepts, as in the daemon: the main thread is none of the pool's, so from there each connection would
        // have to wake another thread.
        .block_on(async { tokio::spawn(serve(body.into())).await? })
}

async fn serve(body: Bytes) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Accepted sockets inherit it, as the daemon's do: one system call less for each.
    socket.set_nodelay(true)?;
    socket.bind(LISTEN.parse::<SocketAddr>()?)?;
    let listener = socket.listen(1024)?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr()?)?;
    out.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(|_| {
                let mut response = Response::new(Full::new(body.clone()));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                std::future::ready(Ok::<_, Infallible>(response))
            });
            // An error is a client that has hung up.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
