//! The bytes of an answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{refusal::Refusal, slow::ReplyBody};

/// Go and Kotlin read an error's text only if it is exactly this.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Credentials that are ready: the document has its length.
pub(super) fn credentials(document: Bytes) -> Response<ReplyBody> {
    reply(StatusCode::OK, ReplyBody::Full(Some(document)))
}

/// Credentials that are on their way: without a length, HTTP/1.1 sends chunks.
pub(super) fn begun(body: ReplyBody) -> Response<ReplyBody> {
    reply(StatusCode::OK, body)
}

pub(super) fn refusal(refusal: &Refusal) -> Response<ReplyBody> {
    let mut response = reply(refusal.status(), ReplyBody::Full(Some(refusal.document().into())));
    let headers = response.headers_mut();
    if let Some(after) = refusal.retry_after() {
        headers.insert(header::RETRY_AFTER, after.as_secs().into());
    }
    if *refusal == Refusal::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

fn reply(status: StatusCode, body: ReplyBody) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}
