//! Clients: one that costs as little as a client can, and one that waits as an SDK does.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{self, timeout_at},
};

/// What one pod sends, and from where.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) address: [u8; 4],
    pub(crate) request: Arc<[u8]>,
}

/// How much is asked.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    /// Whether a connection serves more than one request.
    pub(crate) reuse: bool,
}

/// What was done.
pub(crate) struct Done {
    pub(crate) requests: u32,
    pub(crate) time: Duration,
}

impl Done {
    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.requests) / self.time.as_secs_f64()
    }
}

impl Asker {
    /// The pod at `address`, whose SDK sends `token`.
    pub(crate) fn new(address: [u8; 4], token: Option<&str>) -> Self {
        Self::for_path(address, "/v1/credentials", token)
    }

    pub(crate) fn for_path(address: [u8; 4], path: &str, token: Option<&str>) -> Self {
        let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 169.254.170.23\r\nUser-Agent: rolecall-benches\r\nAccept: */*\r\n{token}\r\n"
        );
        Self { address, request: request.into_bytes().into() }
    }
}

/// The requests that `load` makes in `time`, by as many pods as there are `askers`.
pub(crate) async fn rate(server: SocketAddr, askers: &[Asker], load: Load, time: Duration) -> Result<Done> {
    let expect = answer(server, &askers[0], LIMIT).await?.len();
    let askers: Arc<[Asker]> = askers.into();
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for first in 0..load.connections {
        let askers = askers.clone();
        workers.spawn(async move {
            let (mut buffer, mut done) = (vec![0; 4096], 0);
            let mut turn = first;
            let mut stream = connect(server, askers[turn % askers.len()].address).await?;
            loop {
                exchange(&mut stream, &askers[turn % askers.len()].request, expect, &mut buffer).await?;
                done += 1;
                if time <= began.elapsed() {
                    return anyhow::Ok(done);
                }
                if !load.reuse {
                    turn += load.connections;
                    stream = connect(server, askers[turn % askers.len()].address).await?;
                }
            }
        });
    }
    let mut requests = 0;
    while let Some(done) = workers.join_next().await {
        requests += done??;
    }
    Ok(Done { requests, time: began.elapsed() })
}

/// Makes `count` requests one after another: all on one connection, or each on its own.
pub(crate) async fn repeat(server: SocketAddr, asker: &Asker, reuse: bool, count: u64) -> Result<()> {
    let expect = answer(server, asker, LIMIT).await?.len();
    let mut buffer = vec![0; 4096];
    let mut stream = connect(server, asker.address).await?;
    for _ in 0..count {
        exchange(&mut stream, &asker.request, expect, &mut buffer).await?;
        if !reuse {
            stream = connect(server, asker.address).await?;
        }
    }
    Ok(())
}

/// Longer than any answer takes.
const LIMIT: Duration = Duration::from_secs(60);

/// One answer of 200 with all its bytes, however it is framed. Only silence of `read_timeout` makes it fail, as with
/// many SDKs: from before it connects until the first byte, and between two reads. Nothing is tried twice.
///
/// # Errors
/// Silence, a reset, an early end, or another status.
pub(crate) async fn answer(server: SocketAddr, asker: &Asker, read_timeout: Duration) -> Result<Vec<u8>> {
    let mut until = time::Instant::now() + read_timeout;
    let connect = connect(server, asker.address);
    let mut stream = timeout_at(until, connect).await.context("silence while connecting")??;
    stream.write_all(&asker.request).await?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        let read = timeout_at(until, stream.read_buf(&mut bytes)).await;
        ensure!(read.context("silence")?? != 0, "the connection ended within the answer");
        until = time::Instant::now() + read_timeout;
        if is_complete(&bytes)? {
            ensure!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&bytes));
            return Ok(bytes);
        }
    }
}

/// One answer of 200 over the connection that is `kept`, or over a new one where there is none. It is kept for the
/// next request unless the server says that it ends it.
///
/// # Errors
/// A connection that breaks or ends, or another status; nothing is tried twice.
pub(crate) async fn ask(server: SocketAddr, asker: &Asker, kept: &mut Option<TcpStream>) -> Result<Vec<u8>> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => connect(server, asker.address).await.context("connect")?,
    };
    stream.write_all(&asker.request).await.context("send a request")?;
    let mut bytes = Vec::with_capacity(4096);
    while !is_complete(&bytes)? {
        let read = stream.read_buf(&mut bytes).await.context("read an answer")?;
        ensure!(read != 0, "the connection ended within the answer");
    }
    ensure!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&bytes));
    let head = String::from_utf8_lossy(&bytes[..head_length(&bytes).unwrap_or_default()]).to_lowercase();
    if !head.contains("\r\nconnection: close\r\n") {
        *kept = Some(stream);
    }
    Ok(bytes)
}

/// The part after the head.
pub(crate) fn body(answer: &[u8]) -> Result<&[u8]> {
    Ok(&answer[head_length(answer).context("an answer has a head")?..])
}

/// Sends a request and takes as many bytes as the answer is known to have.
async fn exchange(stream: &mut TcpStream, request: &[u8], expect: usize, buffer: &mut [u8]) -> Result<()> {
    stream.write_all(request).await?;
    let mut received = 0;
    while received < expect {
        let length = stream.read(&mut buffer[received..]).await?;
        ensure!(length != 0, "the connection ended within the answer");
        received += length;
    }
    let answer = &buffer[..received];
    let is_same = received == expect && answer.starts_with(b"HTTP/1.1 200 ");
    ensure!(is_same, "another answer than before: {}", String::from_utf8_lossy(answer));
    Ok(())
}

async fn connect(server: SocketAddr, from: [u8; 4]) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    // A reset at the end leaves no port waiting: tens of thousands of connections would use them all up.
    stream.set_zero_linger()?;
    Ok(stream)
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn is_complete(bytes: &[u8]) -> Result<bool> {
    let Some(head) = head_length(bytes) else { return Ok(false) };
    let text = std::str::from_utf8(&bytes[..head])?.to_lowercase();
    let value = |name| text.lines().find_map(|line| line.strip_prefix(name));
    if value("transfer-encoding: chunked").is_some() {
        return Ok(bytes.ends_with(b"\r\n0\r\n\r\n"));
    }
    let Some(length) = value("content-length: ") else { bail!("an answer without a length: {text}") };
    Ok(head + length.parse::<usize>()? <= bytes.len())
}
