//! Pods that ask all the time, byte by byte: on connections that they keep, and on one for each request.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// What clients do about a connection that breaks before its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It is a failure.
    None,
    /// As every SDK does, they try once more: a process that is killed breaks what it has accepted.
    OnceMore,
}

/// Between two requests of a client: two clients stay below what one pod may ask in a second.
const PAUSE: Duration = Duration::from_millis(50);

/// Clients under way.
pub struct Load {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: SocketAddr,
    patience: Patience,
    stop: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Two clients for each token, one of either kind.
    pub fn start(endpoint: SocketAddr, tokens: &[String], patience: Patience) -> Self {
        let shared = Arc::new(Shared {
            endpoint,
            patience,
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            failures: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for token in tokens {
            for keeps_alive in [true, false] {
                let (shared, token) = (shared.clone(), token.clone());
                clients.spawn(async move { shared.ask_on(&token, keeps_alive).await });
            }
        }
        Self { clients, shared }
    }

    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Waits until `count` more requests were answered.
    pub async fn wait_for(&self, count: usize) {
        let enough = self.answered() + count;
        let answered = async {
            while self.answered() < enough {
                assert!(self.failures().is_empty(), "{:?}", self.failures());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(super::node::LIMIT, answered).await.unwrap();
    }

    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }

    /// Ends all clients; returns how many requests were answered, and what failed.
    pub async fn stop(mut self) -> (usize, Vec<String>) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        (self.answered(), self.failures())
    }
}

impl Shared {
    async fn ask_on(&self, token: &str, keeps_alive: bool) {
        let mut kept = None;
        while !self.stop.load(Ordering::SeqCst) {
            let mut result = self.ask(token, keeps_alive, &mut kept).await;
            if result.is_err() && self.patience == Patience::OnceMore {
                kept = None;
                result = self.ask(token, keeps_alive, &mut kept).await;
            }
            match result {
                Ok(()) => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
                Err(why) => {
                    self.failures.lock().unwrap().push(format!("keeps_alive={keeps_alive}: {why}"));
                    kept = None;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One request; the connection is kept for the next one where both sides want it.
    async fn ask(&self, token: &str, keeps_alive: bool, kept: &mut Option<TcpStream>) -> Result<(), String> {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.endpoint).await.map_err(|error| format!("connect: {error}"))?,
        };
        let connection = if keeps_alive { "keep-alive" } else { "close" };
        let request = format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\nConnection: {connection}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
        let (head, rest) = answer(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(format!("refused: {head}"));
        }
        if !rest.is_empty() {
            return Err(format!("{} bytes after the answer", rest.len()));
        }
        if keeps_alive && !head.to_lowercase().contains("connection: close") {
            *kept = Some(stream);
            return Ok(());
        }
        let mut more = Vec::new();
        stream.read_to_end(&mut more).await.map_err(|error| format!("the end: {error}"))?;
        if more.is_empty() { Ok(()) } else { Err(format!("answered twice: {} more bytes", more.len())) }
    }
}

/// The head of one answer, and what has come after its body.
async fn answer(stream: &mut TcpStream) -> Result<(String, Vec<u8>), String> {
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length:").and_then(|value| value.trim().parse::<usize>().ok())
            });
            match length {
                Some(length) if length <= body.len() => {
                    return Ok((head.to_owned(), body.as_bytes()[length..].to_vec()));
                }
                // A begun answer ends with an empty chunk.
                None if body.ends_with("0\r\n\r\n") => return Ok((head.to_owned(), Vec::new())),
                _ => {}
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) => return Err(format!("closed after {} bytes", received.len())),
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(error) => return Err(format!("{error} after {} bytes", received.len())),
        }
    }
}
