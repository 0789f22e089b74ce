//! One HTTP request.

use std::net::SocketAddr;

use ::http::header::{AUTHORIZATION, HOST};
use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Status and body of the answer, on a connection of its own.
pub(super) async fn get(address: SocketAddr, path: &str, token: Option<&str>) -> Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(path).header(HOST, address.to_string());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        anyhow::Ok((status, reply.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may be over a moment before its last bytes are read.
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
