//! A client that costs as little as a client can: it writes the request and counts the bytes of the answer.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

/// Where the pod of the benchmark lives.
const POD: &str = "127.0.0.2:0";

/// How much is asked.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    /// Of each connection, or one after another where connections are not reused.
    pub(crate) requests: usize,
    pub(crate) reuse: bool,
}

/// A request as an SDK sends it.
pub(crate) fn request(token: &str) -> Vec<u8> {
    format!("GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\nAuthorization: {token}\r\n\r\n")
        .into_bytes()
}

/// One answer, head included.
pub(crate) async fn once(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(address).await?;
    stream.write_all(request).await?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        ensure!(stream.read_buf(&mut buffer).await? != 0, "the connection ended within the answer");
        if let Some(length) = complete(&buffer)? {
            buffer.truncate(length);
            ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer));
            return Ok(buffer);
        }
    }
}

/// The time that `load` takes.
pub(crate) async fn run(address: SocketAddr, request: &[u8], load: Load) -> Result<Duration> {
    let expect = once(address, request).await?.len();
    let request: Arc<[u8]> = request.into();
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..load.connections {
        let request = request.clone();
        workers.spawn(async move {
            let mut buffer = vec![0; 4096];
            let mut stream = connect(address).await?;
            for _ in 0..load.requests {
                if !load.reuse {
                    stream = connect(address).await?;
                }
                stream.write_all(&request).await?;
                let mut received = 0;
                while received < expect {
                    let length = stream.read(&mut buffer).await?;
                    ensure!(length != 0, "the connection ended within the answer");
                    received += length;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    Ok(began.elapsed())
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(POD.parse()?)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    // A reset at the end leaves no port waiting: tens of thousands of connections would use them all up.
    stream.set_zero_linger()?;
    Ok(stream)
}

/// The length of the answer at the start of `bytes`, if it is all there.
fn complete(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head])?.to_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no content-length")?;
    let whole = head + 4 + length.parse::<usize>()?;
    Ok((whole <= bytes.len()).then_some(whole))
}
