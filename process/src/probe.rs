//! The commands that ask a running program, over its Unix socket.

use std::{
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time};

use crate::telemetry::LogFilter;

/// How long the whole exchange may take: a kubelet gives up on an exec probe after 1 s unless told otherwise, and
/// one that is well answers in a millisecond.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Do the event loops turn?
    Live,
    /// Can pods be served?
    Ready,
    /// Which filter is in force?
    LogLevel,
    /// May this filter be in force from now on?
    SetLogLevel(LogFilter),
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was a yes.
    pub good: bool,
    pub text: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "nothing listens at {}: {source}; the program is not running yet, or its --admin-socket is another",
        path.display()
    )]
    NotThere { path: PathBuf, source: io::Error },
    #[error("open {}: {source}; ask as the program's own user", path.display())]
    NotAllowed { path: PathBuf, source: io::Error },
    #[error("connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the program at {} gave no answer within {TIMEOUT:?}", path.display())]
    TimedOut { path: PathBuf },
    #[error("talk to the program at {}: {source}", path.display())]
    Talk { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("start the event loop: {0}")]
    Runtime(io::Error),
}

/// Asks and prints; tells whether the answer was a yes.
///
/// What a probe says goes to standard error, where the kubelet and a person look for the reason; a log level is a
/// result and goes to standard output.
#[must_use]
pub fn run(question: &Question, socket: &Path) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = match runtime {
        Ok(runtime) => runtime.block_on(ask(question, socket)),
        Err(error) => Err(Error::Runtime(error)),
    };
    match answer {
        Ok(Answer { good: true, text }) if question.is_about_logs() => {
            let _ = io::stdout().write_all(text.as_bytes());
            true
        }
        Ok(Answer { good, text }) => {
            let _ = io::stderr().write_all(text.as_bytes());
            good
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            false
        }
    }
}

/// Asks the program that listens at `socket`.
///
/// # Errors
/// When none listens, or none answers in time.
pub async fn ask(question: &Question, socket: &Path) -> Result<Answer, Error> {
    time::timeout(TIMEOUT, exchange(question, socket))
        .await
        .unwrap_or_else(|_elapsed| Err(Error::TimedOut { path: socket.to_owned() }))
}

impl Question {
    fn is_about_logs(&self) -> bool {
        match self {
            Self::Live | Self::Ready => false,
            Self::LogLevel | Self::SetLogLevel(_) => true,
        }
    }

    fn to_request(&self) -> Request<Full<Bytes>> {
        let (method, path, body) = match self {
            Self::Live => (Method::GET, "/healthz", ""),
            Self::Ready => (Method::GET, "/readyz", ""),
            Self::LogLevel => (Method::GET, "/log-level", ""),
            Self::SetLogLevel(filter) => (Method::PUT, "/log-level", filter.as_str()),
        };
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .expect("every part of it is a literal")
    }
}

async fn exchange(question: &Question, socket: &Path) -> Result<Answer, Error> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NotThere { path, source },
            ErrorKind::PermissionDenied => Error::NotAllowed { path, source },
            _ => Error::Connect { path, source },
        }
    })?;
    let talk = move |source| Error::Talk { path: socket.to_owned(), source };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| talk(error.into()))?;
    let answer = async move {
        let response =
            sender.send_request(question.to_request()).await.map_err(|error| talk(error.into()))?;
        let good = response.status() == StatusCode::OK;
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(talk)?;
        Ok(Answer { good, text: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    };
    // The connection moves only while it is polled; how it ends matters no more than the answer says.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
