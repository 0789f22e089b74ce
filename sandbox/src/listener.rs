//! A loopback HTTP/1.1 server that can also refuse connections, reset them and come back on the same port.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// A reply's body, whole or streamed.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The task that accepts connections, and how to end it.
struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// How a handler ends a request without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// With a TCP reset.
    Reset,
    /// With an orderly end of the connection.
    Close,
}

pub(crate) type Answer = Result<Response<Body>, Hangup>;

type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>;

/// A listening address and the task that serves it. Dropping it closes every connection.
pub(crate) struct Listener {
    address: SocketAddr,
    handler: Handler,
    serving: Mutex<Option<Serving>>,
    /// Bound and never listening: keeps the port ours while nothing listens on it, so that connections are refused
    /// and nobody else is given the port.
    _reservation: TcpSocket,
}

impl Listener {
    /// Binds `address` (port 0 for any) and answers requests with `handler`.
    pub(crate) async fn start<F>(
        address: SocketAddr,
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let reservation = bind(address)?;
        let address = reservation.local_addr()?;
        let serving = Mutex::new(Some(serve(address, &handler)?));
        Ok(Self { address, handler, serving, _reservation: reservation })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection and refuses new ones, or listens again. Done when it returns.
    pub(crate) async fn set_outage(&self, outage: bool) -> io::Result<()> {
        if outage {
            let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Serving { stop, task }) = serving {
                // It cannot have ended by itself, and if it has, that is as well.
                let _ended = stop.send(());
                let _ended = task.await;
            }
        } else {
            let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
            if serving.is_none() {
                *serving = Some(serve(self.address, &self.handler)?);
            }
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.get_mut().unwrap_or_else(PoisonError::into_inner) {
            serving.task.abort();
        }
    }
}

impl fmt::Display for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hang up")
    }
}

impl std::error::Error for Hangup {}

/// Reads a request's body; `None` if it is longer than `limit`. What is over the limit is read and dropped, or the
/// client would be reset while it sends and not see its answer. One that breaks off gets none.
pub(crate) async fn read(mut body: Incoming, limit: usize) -> Result<Option<Bytes>, Hangup> {
    let mut read = Vec::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Hangup::Close)?.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        if length <= limit {
            read.extend_from_slice(&data);
        }
    }
    Ok((length <= limit).then(|| read.into()))
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn serve(address: SocketAddr, handler: &Handler) -> io::Result<Serving> {
    let listener = bind(address)?.listen(1024)?;
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept(listener, handler.clone(), stopped));
    Ok(Serving { stop, task })
}

/// Accepts connections until it is told to stop, and has closed all of them when it returns.
async fn accept(listener: TcpListener, handler: Handler, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    connections.spawn(async move {
                        // A connection that the client breaks off is the client's business.
                        let _broken = converse(stream, handler).await;
                    });
                }
                // Out of file descriptors, most likely: some of them are ours and will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Serves one connection to its end.
async fn converse(stream: TcpStream, handler: Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(move |request| handler(request)));
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let mut stream = connection.into_parts().io.into_inner();
    let hangup = ended.err().and_then(|error| {
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Hangup>()).copied()
    });
    match hangup {
        Some(Hangup::Reset) => stream.set_zero_linger(),
        Some(Hangup::Close) | None => stream.shutdown().await,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn listener() -> Listener {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Listener::start(any, async |request: Request<Incoming>| match request.uri().path() {
            "/reset" => Err(Hangup::Reset),
            "/close" => Err(Hangup::Close),
            _ => Ok(Response::new(Full::from("hello").boxed_unsync())),
        })
        .await
        .unwrap()
    }

    /// What the client reads until the connection ends.
    async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn a_request_is_answered() {
        let listener = listener().await;
        let reply = get(listener.address(), "/").await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("hello"), "{reply}");
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_a_reset_on_the_wire() {
        let listener = listener().await;
        let error = get(listener.address(), "/reset").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_close_is_seen_as_the_end_of_the_stream() {
        let listener = listener().await;
        assert_eq!(get(listener.address(), "/close").await.unwrap(), "");
    }

    #[tokio::test]
    async fn an_outage_refuses_connections_and_ends_on_the_same_port() {
        let listener = listener().await;
        let mut open = TcpStream::connect(listener.address()).await.unwrap();
        for _ in 0..3 {
            listener.set_outage(true).await.unwrap();
            let refused = get(listener.address(), "/").await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            listener.set_outage(true).await.unwrap();

            listener.set_outage(false).await.unwrap();
            listener.set_outage(false).await.unwrap();
            assert!(get(listener.address(), "/").await.unwrap().ends_with("hello"));
        }
        let ended = open.read(&mut [0; 16]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn a_dropped_listener_closes_its_connections() {
        let listener = listener().await;
        let mut open = TcpStream::connect(listener.address()).await.unwrap();
        drop(listener);
        let ended = open.read(&mut [0; 16]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
}
