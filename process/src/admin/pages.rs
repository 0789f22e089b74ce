//! What each door answers.

use std::{convert::Infallible, fmt::Write, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};

use super::State;
use crate::telemetry::LogFilter;

/// From the connection on, until the head of the request is there.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// From the connection on, until the answer is out: who reads no faster gives its place to another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest log filter that is taken, in bytes.
const MAX_BODY: usize = 4096;

/// The content type of what `prometheus_client` writes.
///
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Through which door a request came, which decides what it may see and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// TCP, which every process of the node can reach: it tells and changes nothing.
    Loopback,
    /// The Unix socket, which root alone can open.
    Socket,
    /// TCP, which the cluster's Prometheus can reach: the metrics alone.
    Metrics,
}

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves one request per connection, as [`Door`] allows.
pub(super) fn serving<S>(door: Door, state: State) -> impl Fn(S) -> Connection
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    move |stream| {
        let state = state.clone();
        let service = service_fn(move |request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(door, &state, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        Box::pin(async move {
            // Neither outcome is news: a peer that hangs up or dawdles is its own business.
            let _ = time::timeout(CONNECTION_TIMEOUT, connection).await;
        })
    }
}

async fn answer(door: Door, state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match (door, request.uri().path()) {
        (Door::Metrics, "/metrics") if reads => metrics(state),
        (Door::Metrics, "/metrics") => not_allowed("GET, HEAD"),
        (Door::Loopback | Door::Socket, "/healthz") if reads => healthz(state),
        (Door::Loopback | Door::Socket, "/readyz") if reads => readyz(state),
        (Door::Loopback | Door::Socket, "/healthz" | "/readyz") => not_allowed("GET, HEAD"),
        (Door::Loopback | Door::Socket, "/log-level") if reads => {
            text(StatusCode::OK, format!("{}\n", state.log_level.get()))
        }
        (Door::Socket, "/log-level") if request.method() == Method::PUT => {
            set_log_level(state, request.into_body()).await
        }
        (Door::Loopback, "/log-level") if request.method() == Method::PUT => text(
            StatusCode::FORBIDDEN,
            "the level is set over the Unix socket: run this program's log-level FILTER\n".to_owned(),
        ),
        (Door::Loopback | Door::Socket, "/log-level") => not_allowed("GET, HEAD, PUT"),
        (Door::Loopback | Door::Socket, _) => {
            text(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /log-level\n".to_owned())
        }
        (Door::Metrics, _) => text(StatusCode::NOT_FOUND, "here is /metrics\n".to_owned()),
    }
}

fn healthz(state: &State) -> Response<Full<Bytes>> {
    let stuck = state.liveness.stuck();
    if stuck.is_empty() {
        return text(StatusCode::OK, "alive\n".to_owned());
    }
    let mut body = "stuck:\n".to_owned();
    for loop_ in stuck {
        let _ = writeln!(body, "- {}, silent for {} s", loop_.name, loop_.silent_for.as_secs());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, body)
}

fn readyz(state: &State) -> Response<Full<Bytes>> {
    let missing = state.readiness.missing();
    if missing.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    let mut body = "not ready, waiting for:\n".to_owned();
    for what in missing {
        let _ = writeln!(body, "- {what}");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, body)
}

fn metrics(state: &State) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &state.registry) {
        Ok(()) => typed(StatusCode::OK, OPENMETRICS, body),
        Err(error) => {
            tracing::error!(%error, "encode the metrics");
            text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n".to_owned())
        }
    }
}

async fn set_log_level(state: &State, body: Incoming) -> Response<Full<Bytes>> {
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, format!("a filter has at most {MAX_BODY} bytes\n"));
    };
    let body = body.to_bytes();
    let filter: LogFilter = match str::from_utf8(&body).unwrap_or_default().parse() {
        Ok(filter) => filter,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let former = state.log_level.get();
    if let Err(error) = state.log_level.set(filter.clone()) {
        tracing::error!(%error, "set the log level");
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    }
    tracing::info!(%former, now = %filter, "the log level was set");
    text(StatusCode::OK, format!("{filter}\n"))
}

fn not_allowed(allow: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("this page takes {allow}\n"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, PLAIN, body)
}

fn typed(status: StatusCode, content_type: HeaderValue, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
