//! A client that sees every byte, and how a connection ends.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// A connection from an address of our choice.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Closed,
    /// RST.
    Reset,
}

impl Client {
    pub async fn connect(from: &str, to: SocketAddr) -> Self {
        let from: IpAddr = from.parse().unwrap();
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self { stream: socket.connect(to).await.unwrap(), received: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Sends as long as the other end takes it; false once it has ended the connection.
    pub async fn try_send(&mut self, bytes: &str) -> bool {
        self.stream.write_all(bytes.as_bytes()).await.is_ok()
    }

    /// Asks as an SDK does.
    pub async fn ask(&mut self, path: &str, token: Option<&str>) {
        let authorization = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: 169.254.170.23\r\n{authorization}\r\n")).await;
    }

    /// Asks and reads the whole answer.
    pub async fn get(&mut self, path: &str, token: Option<&str>) -> Reply {
        self.ask(path, token).await;
        self.reply().await
    }

    /// Reads until `seen` finds what it looks for in what was received and not consumed yet.
    pub async fn read_until(&mut self, seen: impl Fn(&str) -> bool) -> String {
        loop {
            let text = String::from_utf8(self.received.clone()).unwrap();
            if seen(&text) {
                return text;
            }
            if let Err(end) = self.read_more().await {
                panic!("{end:?} after {text:?}");
            }
        }
    }

    /// Whether anything has arrived that was not read yet.
    pub fn has_received(&self) -> bool {
        let mut buffer = [0; 1];
        !self.received.is_empty()
            || matches!(futures_util::FutureExt::now_or_never(self.stream.peek(&mut buffer)), Some(Ok(1)))
    }

    /// Reads one answer, of either encoding.
    pub async fn reply(&mut self) -> Reply {
        let head = self.read_until(|text| text.contains("\r\n\r\n")).await;
        let (head, _) = head.split_once("\r\n\r\n").unwrap();
        self.received.drain(..head.len() + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let body = if header("transfer-encoding").as_deref() == Some("chunked") {
            self.chunks().await
        } else {
            let length = header("content-length").unwrap().parse().unwrap();
            self.take(length).await
        };
        Reply { status, headers, body }
    }

    /// Reads to the end of the connection; what came is dropped.
    pub async fn end(&mut self) -> End {
        loop {
            if let Err(end) = self.read_more().await {
                return end;
            }
        }
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let text = self.read_until(|text| text.contains("\r\n")).await;
            let (size, _) = text.split_once("\r\n").unwrap();
            let length = usize::from_str_radix(size, 16).unwrap();
            self.received.drain(..size.len() + 2);
            body.extend(self.take(length).await);
            self.take(2).await;
            if length == 0 {
                return body;
            }
        }
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            self.read_more().await.unwrap();
        }
        self.received.drain(..length).collect()
    }

    async fn read_more(&mut self) -> Result<(), End> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer).await {
            Ok(0) => Err(End::Closed),
            Ok(length) => {
                self.received.extend(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `200 <role name>` or `<status> <code>`.
    pub fn outcome(&self) -> String {
        let json = self.json();
        let what = match self.status {
            200 => json["RoleArn"].as_str().and_then(|role| role.rsplit('/').next()),
            _ => json["code"].as_str(),
        };
        format!("{} {}", self.status, what.unwrap_or_default())
    }
}
