//! The bytes of an answer: as a value for hyper, and written out for a request that has waited.

use std::{io::Write, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, response::Parts};

use super::{refusal::Refusal, slow::ReplyBody};

/// Go and Kotlin read an error's text only if it is exactly this.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What the client may be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    version: Version,
    /// The connection ends with this answer.
    pub(super) closes: bool,
}

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

impl Terms {
    /// Whether the connection outlives its answer. One of HTTP/1.0 does not: what it has to be told to stay open is of
    /// no use to anybody who waits.
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let version = request.version();
        Self { version, closes: version != Version::HTTP_11 || says_close(request.headers()) }
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    let mut options = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    options.any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// A whole answer.
pub(super) fn whole(parts: &Parts, body: &[u8], terms: Terms, date: SystemTime) -> Vec<u8> {
    let mut bytes = head(parts, terms, date);
    write!(bytes, "content-length: {}\r\n\r\n", body.len()).expect(MEMORY);
    bytes.extend_from_slice(body);
    bytes
}

/// The head of an answer whose body comes in chunks.
pub(super) fn begin(parts: &Parts, terms: Terms, date: SystemTime) -> Vec<u8> {
    let mut bytes = head(parts, terms, date);
    bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
    bytes
}

/// A chunk of the body (RFC 9112, section 7.1); one without data would be its end.
pub(super) fn chunk(bytes: &mut Vec<u8>, data: &[u8]) {
    write!(bytes, "{:x}\r\n", data.len()).expect(MEMORY);
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\r\n");
}

/// The end of the chunks.
pub(super) fn end(bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"0\r\n\r\n");
}

const MEMORY: &str = "writing into memory does not fail";

/// Without what says where the body ends, which is last.
fn head(parts: &Parts, terms: Terms, date: SystemTime) -> Vec<u8> {
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut bytes = Vec::new();
    write!(bytes, "{:?} {} {reason}\r\n", terms.version, parts.status.as_u16()).expect(MEMORY);
    for (name, value) in &parts.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    write!(bytes, "date: {}\r\n", httpdate::fmt_http_date(date)).expect(MEMORY);
    if terms.closes {
        bytes.extend_from_slice(b"connection: close\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const GOES_ON: Terms = Terms { version: Version::HTTP_11, closes: false };
    const CLOSES: Terms = Terms { version: Version::HTTP_10, closes: true };

    fn date() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_272_721)
    }

    fn written(response: Response<ReplyBody>, terms: Terms) -> String {
        let (parts, ReplyBody::Full(body)) = response.into_parts() else { panic!("it is whole") };
        String::from_utf8(whole(&parts, &body.unwrap(), terms, date())).unwrap()
    }

    #[test]
    fn a_whole_answer_has_its_length() {
        assert_eq!(
            written(credentials(Bytes::from_static(b"{}")), GOES_ON),
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Sat, 21 Nov 2026 14:52:01 GMT\r\n\
             content-length: 2\r\n\r\n{}"
        );
    }

    #[test]
    fn a_refusal_keeps_its_status_and_headers_and_says_that_the_connection_ends() {
        let text = written(refusal(&Refusal::StsUnavailable), CLOSES);
        assert!(text.starts_with("HTTP/1.0 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("\r\nretry-after: 5\r\n"), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    }

    #[test]
    fn a_begun_answer_comes_in_chunks() {
        let (parts, _) = credentials(Bytes::new()).into_parts();
        let mut bytes = begin(&parts, GOES_ON, date());
        chunk(&mut bytes, b" ");
        chunk(&mut bytes, &[b'x'; 26]);
        end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("\r\ntransfer-encoding: chunked"), "{head}");
        assert_eq!(body, format!("1\r\n \r\n1a\r\n{}\r\n0\r\n\r\n", "x".repeat(26)));
    }

    #[track_caller]
    fn check_terms(version: Version, connection: &[&str], closes: bool) {
        let mut request = Request::builder().version(version);
        for value in connection {
            request = request.header(header::CONNECTION, *value);
        }
        assert_eq!(Terms::of(&request.body(()).unwrap()), Terms { version, closes }, "{connection:?}");
    }

    #[test]
    fn a_connection_goes_on_unless_its_client_says_otherwise() {
        check_terms(Version::HTTP_11, &[], false);
        check_terms(Version::HTTP_11, &["keep-alive"], false);
        check_terms(Version::HTTP_11, &["closed"], false);
        check_terms(Version::HTTP_11, &["Close"], true);
        check_terms(Version::HTTP_11, &["keep-alive, close"], true);
        check_terms(Version::HTTP_11, &["te", "close"], true);
        check_terms(Version::HTTP_10, &["keep-alive"], true);
    }
}
