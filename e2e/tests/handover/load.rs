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

/// Between two requests of a client: two clients stay below what one pod may ask in a second.
const PAUSE: Duration = Duration::from_millis(50);

/// Clients under way.
///
/// What fails is a failure, with one exception: a process that is killed breaks what it has accepted. So a connection
/// that was opened before a [`Load::death`] was over may break after that has begun.
pub struct Load {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: SocketAddr,
    stop: AtomicBool,
    opened: AtomicUsize,
    answered: AtomicUsize,
    broken: AtomicUsize,
    deaths: Deaths,
    failures: Mutex<Vec<String>>,
}

/// Deaths of daemons, of which there is one at a time.
#[derive(Default)]
struct Deaths {
    begun: AtomicUsize,
    over: AtomicUsize,
    /// Nobody holds the listening sockets until it is over.
    nobody_listens: AtomicBool,
}

/// An open connection.
struct Connection {
    stream: TcpStream,
    /// How many deaths were over by then.
    opened_after: usize,
}

/// Why a request has no good answer.
enum Failure {
    /// No connection, after as many deaths.
    NotOpened(usize, String),
    /// It broke.
    Broken(usize, String),
    /// The answer is not what it must be.
    Wrong(String),
}

impl Load {
    /// Two clients for each token, one of either kind.
    pub fn start(endpoint: SocketAddr, tokens: &[String]) -> Self {
        let shared = Arc::new(Shared {
            endpoint,
            stop: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            broken: AtomicUsize::new(0),
            deaths: Deaths::default(),
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

    /// A daemon is about to be killed; `nobody_listens` where no other has the sockets.
    pub fn death(&self, nobody_listens: bool) {
        let deaths = &self.shared.deaths;
        deaths.nobody_listens.store(nobody_listens, Ordering::SeqCst);
        deaths.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// Whoever connects from now on meets one that lives.
    pub fn death_is_over(&self) {
        let deaths = &self.shared.deaths;
        deaths.over.store(deaths.begun.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// How many connections have broken that might.
    pub fn broken(&self) -> usize {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// Waits until `count` more requests were answered.
    pub async fn wait_for(&self, count: usize) {
        self.until(&self.shared.answered, self.answered() + count).await;
    }

    /// Waits until `count` connections have broken that might, since the start.
    pub async fn wait_until_broken(&self, count: usize) {
        self.until(&self.shared.broken, count).await;
    }

    /// Waits until `count` connections were opened since the start, whether anybody has accepted them or not.
    pub async fn wait_for_connections(&self, count: usize) {
        self.until(&self.shared.opened, count).await;
    }

    async fn until(&self, counted: &AtomicUsize, enough: usize) {
        let counted = async {
            while counted.load(Ordering::SeqCst) < enough {
                assert!(self.failures().is_empty(), "{:?}", self.failures());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(super::node::LIMIT, counted).await.unwrap();
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
            match self.ask(token, keeps_alive, &mut kept).await {
                Ok(()) => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
                Err(failure) => match self.deaths.excuse(failure) {
                    Ok(()) => drop(self.broken.fetch_add(1, Ordering::SeqCst)),
                    Err(why) => {
                        self.failures.lock().unwrap().push(format!("keeps_alive={keeps_alive}: {why}"));
                    }
                },
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let opened_after = self.deaths.over.load(Ordering::SeqCst);
        match TcpStream::connect(self.endpoint).await {
            Ok(stream) => {
                self.opened.fetch_add(1, Ordering::SeqCst);
                Ok(Connection { stream, opened_after })
            }
            Err(error) => Err(Failure::NotOpened(opened_after, format!("connect: {error}"))),
        }
    }

    /// One request; the connection is kept for the next one where both sides want it.
    async fn ask(
        &self,
        token: &str,
        keeps_alive: bool,
        kept: &mut Option<Connection>,
    ) -> Result<(), Failure> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let opened_after = connection.opened_after;
        let broken = |why| Failure::Broken(opened_after, why);
        let stream = &mut connection.stream;
        let wish = if keeps_alive { "keep-alive" } else { "close" };
        let request = format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\nConnection: {wish}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| broken(format!("send: {error}")))?;
        let (head, rest) = answer(stream).await.map_err(broken)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(Failure::Wrong(format!("refused: {head}")));
        }
        if !rest.is_empty() {
            return Err(Failure::Wrong(format!("{} bytes after the answer", rest.len())));
        }
        if keeps_alive && !head.to_lowercase().contains("connection: close") {
            *kept = Some(connection);
            return Ok(());
        }
        let mut more = Vec::new();
        stream.read_to_end(&mut more).await.map_err(|error| broken(format!("the end: {error}")))?;
        match more.len() {
            0 => Ok(()),
            bytes => Err(Failure::Wrong(format!("answered twice: {bytes} more bytes"))),
        }
    }
}

impl Deaths {
    /// Nothing where a death explains `failure`, or else what it is.
    fn excuse(&self, failure: Failure) -> Result<(), String> {
        let has_begun = |opened_after| opened_after < self.begun.load(Ordering::SeqCst);
        match failure {
            Failure::Broken(opened_after, _) if has_begun(opened_after) => Ok(()),
            Failure::NotOpened(opened_after, _)
                if has_begun(opened_after) && self.nobody_listens.load(Ordering::SeqCst) =>
            {
                Ok(())
            }
            Failure::Broken(_, why) | Failure::NotOpened(_, why) | Failure::Wrong(why) => Err(why),
        }
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
