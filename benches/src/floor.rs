//! The floor: hyper with nothing behind it, answering with the daemon's own headers and body.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Starts a server that answers every request with the body of `reply`, an answer of the daemon.
pub(crate) async fn start(reply: Vec<u8>) -> Result<SocketAddr> {
    let head = reply.windows(4).position(|window| window == b"\r\n\r\n").context("an answer has a head")?;
    let body = Bytes::copy_from_slice(&reply[head + 4..]);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            let _ = stream.set_nodelay(true);
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
    });
    Ok(address)
}
