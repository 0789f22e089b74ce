//! The form of a request, checked before anything else is done for it.

use http::{HeaderMap, Method, Request, Version, header};
use rolecall_contract::endpoint::{PathRole, parse_path};

use super::refusal::Refusal;

/// Largest head that is looked at: the request line and the headers together. A real one has about 1.5 kB.
pub const MAX_HEAD: usize = 16 * 1024;

/// A request whose form is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    pub role: PathRole<'a>,
    /// The token as it was sent, without the white space around it; an empty header is none.
    pub token: Option<&'a [u8]>,
    /// The client speaks HTTP/1.0, which knows no chunks.
    pub is_http_1_0: bool,
}

impl<'a> Head<'a> {
    /// Checks method, path, headers and size. Nothing is normalised, decoded or forgiven.
    ///
    /// # Errors
    /// The refusal of the first rule that is broken.
    pub fn check<B>(request: &'a Request<B>) -> Result<Self, Refusal> {
        let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        let headers = Headers::read(request.headers());
        if MAX_HEAD < path + headers.size {
            return Err(Refusal::RequestTooLarge);
        }
        if request.method() != Method::GET {
            return Err(Refusal::MethodNotAllowed);
        }
        let uri = request.uri();
        if uri.scheme().is_some() || uri.authority().is_some() {
            return Err(Refusal::MalformedRequest("the target is a path, not a URL; this is no proxy"));
        }
        if uri.query().is_some() {
            return Err(Refusal::MalformedRequest("there is no query string"));
        }
        if headers.tell_of_a_body {
            return Err(Refusal::MalformedRequest("there is no body"));
        }
        let role = parse_path(uri.path()).ok_or(Refusal::NotFound)?;
        if headers.has_two_tokens {
            return Err(Refusal::MalformedRequest("there is one Authorization header at most"));
        }
        let token = headers.token.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty());
        Ok(Self { role, token, is_http_1_0: request.version() == Version::HTTP_10 })
    }

    /// The token as text. Only one that was never seen before need be looked at so closely.
    ///
    /// # Errors
    /// It is not ASCII.
    pub fn token_text(&self) -> Result<Option<&'a str>, Refusal> {
        let text = |token| std::str::from_utf8(token).ok().filter(|text| text.is_ascii());
        self.token.map(|token| text(token).ok_or(NOT_ASCII)).transpose()
    }
}

const NOT_ASCII: Refusal = Refusal::MalformedRequest("the Authorization header is not ASCII");

/// What the headers say, looked at once.
#[derive(Default)]
struct Headers<'a> {
    size: usize,
    tell_of_a_body: bool,
    token: Option<&'a [u8]>,
    has_two_tokens: bool,
}

impl<'a> Headers<'a> {
    fn read(headers: &'a HeaderMap) -> Self {
        let mut read = Self::default();
        for (name, value) in headers {
            read.size += name.as_str().len() + value.len() + 4;
            if name == header::AUTHORIZATION {
                read.has_two_tokens |= read.token.replace(value.as_bytes()).is_some();
            } else if name == header::TRANSFER_ENCODING {
                read.tell_of_a_body = true;
            } else if name == header::CONTENT_LENGTH {
                read.tell_of_a_body |= value.as_bytes() != b"0";
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> http::request::Builder {
        Request::builder().method("GET").uri(target)
    }

    #[track_caller]
    fn check(request: http::request::Builder, expect: Result<(PathRole<'_>, Option<&str>), &str>) {
        let request = request.body(()).unwrap();
        let got = Head::check(&request).and_then(|head| Ok((head.role, head.token_text()?)));
        assert_eq!(got.as_ref().map_err(Refusal::code).copied(), expect);
    }

    #[test]
    fn the_two_paths_are_served_and_no_other() {
        check(get("/v1/credentials"), Ok((PathRole::Own, None)));
        check(
            get("/v1/credentials/arn:aws:iam::1:role/x"),
            Ok((PathRole::Named("arn:aws:iam::1:role/x"), None)),
        );
        for other in [
            "/",
            "/v1/credentials2",
            "/V1/credentials",
            "/v1//credentials",
            "/v1/./credentials",
            "/v1/%63redentials",
            "/v1\\credentials",
            "/latest/meta-data/iam/security-credentials/",
        ] {
            check(get(other), Err("not_found"));
        }
    }

    #[test]
    fn a_path_is_not_decoded() {
        check(get("/v1/credentials/arn%3Aaws"), Ok((PathRole::Named("arn%3Aaws"), None)));
        check(get("/v1/credentials/../credentials"), Ok((PathRole::Named("../credentials"), None)));
    }

    #[test]
    fn the_token_is_raw() {
        check(get("/v1/credentials").header("authorization", " a.b.c "), Ok((PathRole::Own, Some("a.b.c"))));
        check(
            get("/v1/credentials").header("authorization", "Bearer a"),
            Ok((PathRole::Own, Some("Bearer a"))),
        );
        check(get("/v1/credentials").header("authorization", ""), Ok((PathRole::Own, None)));
        check(get("/v1/credentials").header("authorization", "  "), Ok((PathRole::Own, None)));
    }

    #[test]
    fn two_tokens_are_none() {
        let two = get("/v1/credentials").header("authorization", "a").header("authorization", "a");
        check(two, Err("malformed_request"));
        let three = get("/v1/credentials").header("authorization", "").header("authorization", "a");
        check(three.header("authorization", ""), Err("malformed_request"));
    }

    #[test]
    fn a_token_is_ascii() {
        for token in [&b"a\xff"[..], "aé".as_bytes()] {
            check(get("/v1/credentials").header("authorization", token), Err("malformed_request"));
        }
    }

    #[test]
    fn what_is_no_plain_get_is_refused() {
        for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "BREW"] {
            check(Request::builder().method(method).uri("/v1/credentials"), Err("method_not_allowed"));
        }
        check(get("/v1/credentials?x=1"), Err("malformed_request"));
        check(get("/v1/credentials?"), Err("malformed_request"));
        check(get("http://169.254.169.254/latest/"), Err("malformed_request"));
        check(get("/v1/credentials").header("content-length", "3"), Err("malformed_request"));
        check(get("/v1/credentials").header("transfer-encoding", "chunked"), Err("malformed_request"));
        check(get("/v1/credentials").header("content-length", "0"), Ok((PathRole::Own, None)));
    }

    #[test]
    fn a_large_head_is_refused_before_it_is_read() {
        let token = "t".repeat(MAX_HEAD);
        check(get("/v1/credentials").header("authorization", &token), Err("request_too_large"));
        check(get(&format!("/v1/credentials/{token}")), Err("request_too_large"));
    }
}
