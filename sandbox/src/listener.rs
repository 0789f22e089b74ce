//! A loopback HTTP/1.1 server, with TLS or without, that can also refuse connections, reset them and come back on the
//! same port.

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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;

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

/// What becomes of a connection.
#[derive(Clone)]
struct Service {
    /// Where TLS is spoken.
    acceptor: Option<TlsAcceptor>,
    handler: Handler,
}

/// A listening address and the task that serves it. Dropping it closes every connection.
pub(crate) struct Listener {
    address: SocketAddr,
    service: Service,
    serving: Mutex<Option<Serving>>,
    /// Bound and never listening: keeps the port ours while nothing listens on it, so that connections are refused
    /// and nobody else is given the port.
    _reservation: TcpSocket,
}

impl Listener {
    /// Binds `address` (port 0 for any) and answers requests with `handler`: over TLS with a certificate of the
    /// `authority`, if there is one.
    pub(crate) async fn start<F>(
        address: SocketAddr,
        authority: Option<&Authority>,
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let service = Service {
            acceptor: authority.map(|authority| authority.acceptor(address.ip())),
            handler: Arc::new(move |request| Box::pin(handler(request))),
        };
        let reservation = bind(address)?;
        let address = reservation.local_addr()?;
        let serving = Mutex::new(Some(serve(address, &service)?));
        Ok(Self { address, service, serving, _reservation: reservation })
    }

    /// Such as `http://127.0.0.1:40123`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.service.acceptor.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
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
                *serving = Some(serve(self.address, &self.service)?);
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

fn serve(address: SocketAddr, service: &Service) -> io::Result<Serving> {
    let listener = bind(address)?.listen(1024)?;
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept(listener, service.clone(), stopped));
    Ok(Serving { stop, task })
}

/// Accepts connections until it is told to stop, and has closed all of them when it returns.
async fn accept(listener: TcpListener, service: Service, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let service = service.clone();
                    connections.spawn(async move {
                        // A connection that the client breaks off is the client's business.
                        let _broken = converse(stream, service).await;
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
async fn converse(stream: TcpStream, service: Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Service { acceptor, handler } = service;
    match acceptor {
        None => answer(stream, |stream| stream, handler).await,
        Some(acceptor) => answer(acceptor.accept(stream).await?, |stream| stream.get_ref().0, handler).await,
    }
}

/// Answers the requests on a stream until it ends; `carrier` is what carries it.
async fn answer<S>(stream: S, carrier: fn(&S) -> &TcpStream, handler: Handler) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(move |request| handler(request)));
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let mut stream = connection.into_parts().io.into_inner();
    let hangup = ended.err().and_then(|error| {
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Hangup>()).copied()
    });
    match hangup {
        // The drop that follows ends it then without a word, of TLS neither.
        Some(Hangup::Reset) => carrier(&stream).set_zero_linger(),
        Some(Hangup::Close) | None => stream.shutdown().await,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::AsyncReadExt;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore};

    use super::*;

    async fn listener() -> Listener {
        start(None).await
    }

    async fn start(authority: Option<&Authority>) -> Listener {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Listener::start(any, authority, async |request: Request<Incoming>| match request.uri().path() {
            "/reset" => Err(Hangup::Reset),
            "/close" => Err(Hangup::Close),
            _ => Ok(Response::new(Full::from("hello").boxed_unsync())),
        })
        .await
        .unwrap()
    }

    /// What the client reads until the connection ends.
    async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
        ask(TcpStream::connect(address).await?, path).await
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// A connection of a client that trusts this authority alone and asks for the server of this name.
    async fn connect(
        address: SocketAddr,
        trusted: &Authority,
        name: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }

    #[tokio::test]
    async fn a_request_is_answered() {
        let listener = listener().await;
        let reply = get(listener.address, "/").await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("hello"), "{reply}");
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_a_reset_on_the_wire() {
        let listener = listener().await;
        let error = get(listener.address, "/reset").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_close_is_seen_as_the_end_of_the_stream() {
        let listener = listener().await;
        assert_eq!(get(listener.address, "/close").await.unwrap(), "");
    }

    #[tokio::test]
    async fn an_outage_refuses_connections_and_ends_on_the_same_port() {
        let listener = listener().await;
        let mut open = TcpStream::connect(listener.address).await.unwrap();
        for _ in 0..3 {
            listener.set_outage(true).await.unwrap();
            let refused = get(listener.address, "/").await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            listener.set_outage(true).await.unwrap();

            listener.set_outage(false).await.unwrap();
            listener.set_outage(false).await.unwrap();
            assert!(get(listener.address, "/").await.unwrap().ends_with("hello"));
        }
        let ended = open.read(&mut [0; 16]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn a_dropped_listener_closes_its_connections() {
        let listener = listener().await;
        let mut open = TcpStream::connect(listener.address).await.unwrap();
        drop(listener);
        let ended = open.read(&mut [0; 16]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn a_request_over_tls_is_answered_to_those_who_trust_the_authority() {
        let authority = Authority::new();
        let listener = start(Some(&authority)).await;
        assert_eq!(listener.url(), format!("https://{}", listener.address));
        for name in ["127.0.0.1", "localhost"] {
            let stream = connect(listener.address, &authority, name).await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            assert!(ask(stream, "/").await.unwrap().ends_with("hello"));
        }
        for (trusted, name) in [(&Authority::new(), "127.0.0.1"), (&authority, "127.0.0.2")] {
            let refused = connect(listener.address, trusted, name).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
        }
        let plain = get(listener.address, "/").await;
        assert!(!plain.is_ok_and(|reply| reply.contains("hello")), "it speaks plain HTTP too");
    }

    #[tokio::test]
    async fn tls_ends_with_a_reset_or_in_order() {
        let authority = Authority::new();
        let listener = start(Some(&authority)).await;
        let connect = async || connect(listener.address, &authority, "localhost").await.unwrap();
        let error = ask(connect().await, "/reset").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(ask(connect().await, "/close").await.unwrap(), "");
    }

    #[tokio::test]
    async fn an_outage_ends_tls_and_it_comes_back_with_the_same_certificate() {
        let authority = Authority::new();
        let listener = start(Some(&authority)).await;
        let connect = async || connect(listener.address, &authority, "localhost").await;
        let mut open = connect().await.unwrap();
        listener.set_outage(true).await.unwrap();
        let ended = open.read(&mut [0; 16]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert_eq!(connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

        listener.set_outage(false).await.unwrap();
        assert!(ask(connect().await.unwrap(), "/").await.unwrap().ends_with("hello"));
    }

    #[tokio::test]
    async fn a_client_that_sets_up_no_tls_holds_nobody_up() {
        let authority = Authority::new();
        let listener = start(Some(&authority)).await;
        let _silent = TcpStream::connect(listener.address).await.unwrap();
        let stream = connect(listener.address, &authority, "localhost").await.unwrap();
        assert!(ask(stream, "/").await.unwrap().ends_with("hello"));
    }
}
