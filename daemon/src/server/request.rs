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
    pub token: Option<&'a str>,
    /// The client speaks HTTP/1.0, which knows no chunks.
    pub is_http_1_0: bool,
}

impl<'a> Head<'a> {
    /// Checks method, path, headers and size. Nothing is normalised, decoded or forgiven.
    ///
    /// # Errors
    /// The refusal of the first rule that is broken.
    pub fn check<B>(request: &'a Request<B>) -> Result<Self, Refusal> {
        let headers = request.headers();
        if MAX_HEAD < size(request) {
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
        if headers.contains_key(header::TRANSFER_ENCODING)
            || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
        {
            return Err(Refusal::MalformedRequest("there is no body"));
        }
        let role = parse_path(uri.path()).ok_or(Refusal::NotFound)?;
        Ok(Self { role, token: token(headers)?, is_http_1_0: request.version() == Version::HTTP_10 })
    }
}

fn token(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Refusal::MalformedRequest("there is one Authorization header at most"));
    }
    let Some(value) = first else { return Ok(None) };
    let text =
        value.to_str().map_err(|_| Refusal::MalformedRequest("the Authorization header is not ASCII"))?;
    let token = text.trim();
    Ok((!token.is_empty()).then_some(token))
}

fn size<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    path + headers.sum::<usize>()
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
        let got = Head::check(&request);
        assert_eq!(got.as_ref().map(|head| (head.role, head.token)).map_err(Refusal::code), expect);
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
