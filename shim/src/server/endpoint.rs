//! Answers requests: reviews at `/mutate`, and health for probes that know HTTP alone.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use rolecall_process::readiness::Readiness;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    bodies::{Bodies, BodyError, MAX_BODY},
    metrics::{Metrics, Unanswered},
};
use crate::{
    cache::Known,
    mutate::{Mutation, Outcome, mutate},
    policy::Policy,
    review::{self, Review, ReviewError},
    wording,
};

/// Where the API server sends reviews, as with the EKS webhook.
pub const PATH: &str = "/mutate";

const TOO_LARGE: &str = "a review has at most 4 MiB, and fewer where it holds very many small objects\n";

/// How long a request's body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// How long the API server waits unless it says otherwise.
const CALLER_WAITS: Duration = Duration::from_secs(10);

/// What is left of that for the answer to be made and to arrive.
const TO_SPARE: Duration = Duration::from_millis(500);

/// Longest that a call waits for the start to be over.
const NOT_READY_FOR: Duration = Duration::from_secs(2);

/// What answers.
pub struct Endpoint {
    pub policy: Policy,
    pub known: Known,
    pub readiness: Readiness,
    /// Whether everything was known once.
    pub started: watch::Receiver<bool>,
    pub metrics: Metrics,
    pub bodies: Bodies,
}

impl Endpoint {
    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: hyper::body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (request.uri().path(), request.method()) {
            (PATH, &Method::POST) => self.answer_review(request).await,
            ("/healthz", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "ok\n"),
            ("/readyz", &Method::GET | &Method::HEAD) => self.answer_ready(),
            (PATH, _) => self.refuse(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview here\n"),
            _ => self.refuse(StatusCode::NOT_FOUND, "here are /mutate, /healthz and /readyz\n"),
        }
    }

    async fn answer_review<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: hyper::body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !is_json(request.headers()) {
            return self.refuse(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "invalid Content-Type, expected application/json\n",
            );
        }
        let waits = patience(request.uri().query());
        if (MAX_BODY as u64) < request.body().size_hint().lower() {
            return self.refuse(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
        }
        // The room is held until the answer is made: what was read of the body lives as long.
        let (body, _room) = match timeout(BODY_WITHIN, self.bodies.read(request.into_body())).await {
            Ok(Ok(read)) => read,
            Ok(Err(BodyError::TooLarge)) => return self.refuse(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE),
            Ok(Err(BodyError::NoRoom)) => {
                self.metrics.unanswered(Unanswered::NoRoom);
                return text(StatusCode::SERVICE_UNAVAILABLE, "too many bytes of reviews at once\n");
            }
            Ok(Err(BodyError::EndedEarly)) => {
                return self.refuse(StatusCode::BAD_REQUEST, "the body ended early\n");
            }
            Err(_elapsed) => return self.refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        let began = Instant::now();
        if timeout(NOT_READY_FOR.min(waits), self.started()).await.is_err() {
            // The configuration's failurePolicy decides: better than a pod that silently lacks its role.
            self.metrics.unanswered(Unanswered::NotReady);
            return text(StatusCode::SERVICE_UNAVAILABLE, "the shim is starting\n");
        }
        let read = caught(|| review::parse(&body));
        let work = began.elapsed();
        let review = match read {
            Some(Ok(review)) => review,
            Some(Err(error)) => return self.answer_mistake(&error, began),
            None => return self.panicked(),
        };
        let left = waits.saturating_sub(began.elapsed());
        self.answer_read(&review, left, began, work).await
    }

    async fn answer_read(
        &self,
        review: &Review,
        patience: Duration,
        began: Instant,
        work: Duration,
    ) -> Response<Full<Bytes>> {
        let decision = if review.is_pod_creation() {
            Some(self.known.decide(review.namespace(), review.pod(), &self.policy, patience).await)
        } else {
            None
        };
        let at = Instant::now();
        let made = caught(|| {
            let mutation = match &decision {
                Some(decision) => {
                    mutate(review.pod_json(), review.namespace(), decision, &self.policy, review.seed())
                }
                None => Mutation::not_a_pod(),
            };
            (review.answer(&mutation), mutation)
        });
        let Some((answer, mutation)) = made else { return self.panicked() };
        log(review, &mutation);
        self.metrics.reviewed(mutation.outcome, began.elapsed(), work + at.elapsed());
        json(answer)
    }

    fn answer_mistake(&self, mistake: &ReviewError, began: Instant) -> Response<Full<Bytes>> {
        warn!(%mistake, "a review cannot be read");
        match mistake.answer() {
            Some(answer) => {
                self.metrics.reviewed(Outcome::Denied, began.elapsed(), began.elapsed());
                json(answer)
            }
            None => {
                self.metrics.unanswered(Unanswered::Malformed);
                text(StatusCode::BAD_REQUEST, &format!("{mistake}\n"))
            }
        }
    }

    /// Completes once everything was known that answers are made of. That the drain has begun does not count: calls
    /// that still come are answered.
    async fn started(&self) {
        self.started.clone().wait_for(|started| *started).await.ok();
    }

    fn answer_ready(&self) -> Response<Full<Bytes>> {
        let missing = self.readiness.missing();
        if missing.is_empty() {
            return text(StatusCode::OK, "ok\n");
        }
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting for: {}\n", missing.join(", ")))
    }

    fn panicked(&self) -> Response<Full<Bytes>> {
        error!("a review could not be answered because of a mistake in this program; failurePolicy decides");
        self.metrics.unanswered(Unanswered::Panicked);
        text(StatusCode::INTERNAL_SERVER_ERROR, "the shim made a mistake; its log tells\n")
    }

    fn refuse(&self, status: StatusCode, why: &str) -> Response<Full<Bytes>> {
        self.metrics.unanswered(Unanswered::NotAReview);
        text(status, why)
    }
}

/// Most bytes of the warnings in one line of the log.
const MAX_LOGGED: usize = 32 * 1024;

/// One line per pod that was changed or that there is something to say about. Nothing of the pod but its name, and
/// nothing as long as somebody likes: a review says what it wants.
fn log(review: &Review, mutation: &Mutation) {
    let (namespace, pod) = (wording::name(review.namespace()), review.pod().shown_name());
    let (service_account, outcome) = (wording::name(review.service_account()), mutation.outcome.as_str());
    if !mutation.warnings.is_empty() {
        let (kept, left_out) = wording::fitting(mutation.warnings.clone(), MAX_LOGGED);
        let warnings = kept.join("; ");
        warn!(namespace, pod, service_account, outcome, warnings, left_out, "reviewed a pod with warnings");
    } else if !mutation.patch.is_empty() {
        info!(namespace, pod, service_account, outcome, "injected a pod");
    } else {
        debug!(namespace, pod, service_account, outcome, "left a pod as it is");
    }
}

/// How long the API server will wait from now on, less what the answer needs. It says so in the query.
fn patience(query: Option<&str>) -> Duration {
    let timeout = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| {
        let seconds = pair.strip_prefix("timeout=")?.strip_suffix('s')?;
        seconds.parse::<u16>().ok().map(|seconds| Duration::from_secs(seconds.into()))
    });
    timeout.unwrap_or(CALLER_WAITS).min(Duration::from_secs(30)).saturating_sub(TO_SPARE)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// A mistake in our own code must not end the connection, still less the process.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    response(StatusCode::OK, "application/json", body.into())
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(body.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
