//! The API server's paths.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::State;
use super::continuation::Continuation;
use super::selector::Selector;
use super::status::Refusal;
use super::store::{self, Pods};
use super::watch;
use crate::listener::{Answer, Body};
use crate::{clock, ids, listener};

/// The API server's own limit.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// A reply before it is on the wire.
enum Reply {
    Json(StatusCode, Value),
    Jwks(Value),
    Text(&'static str),
    Watch(Body),
}

/// The query parameters.
struct Parameters(HashMap<String, String>);

pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    state.note(|board| board.requests.push(format!("{} {}", head.method, head.uri)));
    let body = listener::read(body, BODY_LIMIT).await?;
    let turnstiles: Vec<_> = {
        let board = state.board();
        let held = board.held.iter().filter(|(prefix, _)| head.uri.path().starts_with(prefix));
        held.map(|(_, turnstile)| turnstile.clone()).collect()
    };
    for turnstile in turnstiles {
        turnstile.pass().await;
    }
    let reply = match body {
        Some(body) => route(&state, &head, &body),
        None => Err(Refusal::too_large()),
    };
    Ok(reply.unwrap_or_else(|refusal| Reply::Json(refusal.status, refusal.object())).into_response())
}

fn route(state: &Arc<State>, head: &Parts, body: &[u8]) -> Result<Reply, Refusal> {
    authenticate(state, head)?;
    let path: Vec<&str> = head.uri.path().trim_start_matches('/').split('/').collect();
    match (&head.method, path.as_slice()) {
        (&Method::GET, ["api", "v1", "pods"]) => pods(state, head, None),
        (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => pods(state, head, Some(namespace)),
        (&Method::GET, ["api", "v1", "namespaces", namespace, "pods", name]) => {
            let pod = state.store.get(namespace, name);
            let pod = pod.ok_or_else(|| Refusal::not_found(&format!("pods \"{name}\"")))?;
            Ok(Reply::Json(StatusCode::OK, with_type(&pod)))
        }
        (
            &Method::POST,
            ["api", "v1", "namespaces", namespace, "events"]
            | ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"],
        ) => create_event(state, namespace, body),
        (
            &Method::PATCH,
            ["api", "v1", "namespaces", namespace, "events", name]
            | ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events", name],
        ) => patch_event(state, namespace, name, body),
        (&Method::GET, ["openid", "v1", "jwks"]) => Ok(Reply::Jwks(state.issuer.jwks())),
        (&Method::GET, [".well-known", "openid-configuration"]) => {
            Ok(Reply::Json(StatusCode::OK, state.issuer.openid_configuration()))
        }
        (&Method::GET, ["version"]) => Ok(Reply::Json(
            StatusCode::OK,
            json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.3", "platform": "linux/amd64" }),
        )),
        (&Method::GET, ["healthz" | "livez" | "readyz"]) => Ok(Reply::Text("ok")),
        _ => Err(Refusal::not_found("the requested resource")),
    }
}

fn authenticate(state: &State, head: &Parts) -> Result<(), Refusal> {
    let board = state.board();
    let Some(token) = &board.bearer else { return Ok(()) };
    let sent = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let is_right = sent.and_then(|sent| sent.strip_prefix("Bearer ")) == Some(token.as_str());
    is_right.then_some(()).ok_or_else(Refusal::unauthorized)
}

fn pods(state: &Arc<State>, head: &Parts, namespace: Option<&str>) -> Result<Reply, Refusal> {
    let parameters = Parameters::parse(head);
    let mut selector = Selector::parse(parameters.text("fieldSelector")).map_err(Refusal::bad_request)?;
    if let Some(namespace) = namespace {
        selector = selector.in_namespace(namespace);
    }
    if !parameters.text("labelSelector").is_empty() {
        return Err(Refusal::bad_request("labels cannot be selected by here"));
    }
    if parameters.flag("watch") {
        return watch_pods(state, &parameters, selector);
    }
    list_pods(state, &parameters, &selector)
}

fn watch_pods(state: &Arc<State>, parameters: &Parameters, selector: Selector) -> Result<Reply, Refusal> {
    let send_initial_events = parameters.flag("sendInitialEvents");
    if send_initial_events && parameters.text("resourceVersionMatch") != "NotOlderThan" {
        let message = "resourceVersionMatch must be NotOlderThan with sendInitialEvents";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let request = watch::Request {
        selector,
        version: parameters.number("resourceVersion")?,
        timeout: parameters.number("timeoutSeconds")?.map(Duration::from_secs),
        bookmarks: parameters.flag("allowWatchBookmarks"),
        send_initial_events,
    };
    Ok(Reply::Watch(watch::body(state, request)))
}

fn list_pods(state: &State, parameters: &Parameters, selector: &Selector) -> Result<Reply, Refusal> {
    let limit = parameters.number("limit")?.filter(|limit| *limit != 0);
    let page = match parameters.text("continue") {
        "" => {
            let (version, pods) =
                if limit.is_some() { state.store.snapshot() } else { state.store.current() };
            let asked = parameters.number("resourceVersion")?.unwrap_or_default();
            if version < asked {
                return Err(Refusal::too_large_version(asked, version));
            }
            if parameters.text("resourceVersionMatch") == "Exact" {
                (asked, state.store.at(asked)?, Bound::Unbounded)
            } else {
                (version, pods, Bound::Unbounded)
            }
        }
        token => {
            let place = Continuation::decode(token).ok_or_else(|| {
                Refusal::bad_request("continue key is not valid: not a token of this server")
            })?;
            (place.version, state.store.at(place.version)?, Bound::Excluded(place.after))
        }
    };
    let (version, pods, begin) = page;
    Ok(Reply::Json(StatusCode::OK, page_of(&pods, version, begin, limit, selector)))
}

/// One page of a list as a `PodList`.
fn page_of(
    pods: &Pods,
    version: u64,
    begin: Bound<store::Key>,
    limit: Option<u64>,
    selector: &Selector,
) -> Value {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let mut selected =
        pods.range((begin, Bound::Unbounded)).filter(|(_, pod)| selector.matches(pod)).peekable();
    let mut items = Vec::new();
    let mut last = None;
    while items.len() < limit
        && let Some((key, pod)) = selected.next()
    {
        items.push(Value::clone(pod));
        last = Some(key);
    }
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let (Some(_), Some(last)) = (selected.peek(), last) {
        metadata["continue"] = Continuation { version, after: last.clone() }.encode().into();
        if selector.is_empty() {
            metadata["remainingItemCount"] = selected.count().into();
        }
    }
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items })
}

fn create_event(state: &State, namespace: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let mut event: Value = parse(body)?;
    let metadata = &mut event["metadata"];
    metadata["namespace"] = namespace.into();
    if metadata["name"].as_str().is_none_or(str::is_empty) {
        let prefix = metadata["generateName"].as_str().unwrap_or_default().to_owned();
        metadata["name"] = format!("{prefix}{}", ids::base32(5).to_lowercase()).into();
    }
    metadata["uid"] = ids::uuid().into();
    metadata["creationTimestamp"] = clock::iso8601(clock::now()).into();
    let taken = is_named(namespace, metadata["name"].as_str().unwrap_or_default());
    state.note(|board| {
        if board.events.iter().any(taken) {
            return Err(Refusal::new(StatusCode::CONFLICT, "AlreadyExists", "events: the name is taken"));
        }
        board.events.push(event.clone());
        Ok(Reply::Json(StatusCode::CREATED, event))
    })
}

fn patch_event(state: &State, namespace: &str, name: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let patch = parse(body)?;
    let named = is_named(namespace, name);
    state.note(|board| {
        let event = board.events.iter_mut().find(|event| named(event));
        let event = event.ok_or_else(|| Refusal::not_found(&format!("events \"{name}\"")))?;
        store::merge(event, &patch);
        Ok(Reply::Json(StatusCode::OK, event.clone()))
    })
}

fn is_named(namespace: &str, name: &str) -> impl Fn(&Value) -> bool + use<> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    move |object| object["metadata"]["namespace"] == *namespace && object["metadata"]["name"] == *name
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    let object: Option<Value> = serde_json::from_slice(body).ok().filter(Value::is_object);
    object.ok_or_else(|| Refusal::bad_request("the body is not a JSON object"))
}

/// Items of a list carry no type; a single object does.
fn with_type(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["kind"] = "Pod".into();
    pod["apiVersion"] = "v1".into();
    pod
}

impl Parameters {
    fn parse(head: &Parts) -> Self {
        let query = head.uri.query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.text(name) {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| Refusal::bad_request(format!("invalid {name}: {text}")))
            }
        }
    }
}

impl Reply {
    fn into_response(self) -> Response<Body> {
        let full = |text: String| Full::<Bytes>::from(text).map_err(|never: Infallible| match never {});
        let (status, content_type, body) = match self {
            Self::Json(status, value) => (status, "application/json", full(value.to_string()).boxed_unsync()),
            Self::Jwks(value) => {
                (StatusCode::OK, "application/jwk-set+json", full(value.to_string()).boxed_unsync())
            }
            Self::Text(text) => (StatusCode::OK, "text/plain", full(text.to_owned()).boxed_unsync()),
            Self::Watch(body) => (StatusCode::OK, "application/json", body),
        };
        let reply = Response::builder().status(status).header(CONTENT_TYPE, content_type).body(body);
        reply.expect("the headers are constant")
    }
}
