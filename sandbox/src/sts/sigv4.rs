//! Signature Version 4: whose credentials a request was signed with.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use url::form_urlencoded;

use super::account::{Account, IssuedSession};
use super::error::StsError;
use crate::{clock, ids};

/// How far a signature's time may be from ours.
const TOLERANCE: Duration = Duration::from_mins(15);

/// The parts of an `Authorization` header.
#[derive(Debug, PartialEq, Eq)]
struct Authorization<'a> {
    access_key_id: &'a str,
    /// `<date>/<region>/<service>/aws4_request`.
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

/// What a signature is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Sts,
    S3,
}

/// The session whose credentials the request to this service was signed with.
pub(super) fn authenticate(
    account: &Account,
    head: &Parts,
    body: &[u8],
    service: Service,
    now: SystemTime,
) -> Result<IssuedSession, StsError> {
    let header =
        text(&head.headers, AUTHORIZATION.as_str()).ok_or_else(StsError::missing_authentication_token)?;
    let authorization = Authorization::parse(header, service).ok_or_else(|| {
        StsError::incomplete_signature("Authorization header is not of Signature Version 4")
    })?;
    let signed_at = text(&head.headers, "x-amz-date").ok_or_else(|| {
        StsError::incomplete_signature("Authorization header requires existence of 'X-Amz-Date'")
    })?;

    let session = account.session(authorization.access_key_id).ok_or_else(StsError::invalid_client_token)?;
    if text(&head.headers, "x-amz-security-token") != Some(&session.session_token) {
        return Err(StsError::invalid_client_token());
    }
    if !authorization.covers(&["host", "x-amz-date", "x-amz-security-token"]) {
        return Err(StsError::incomplete_signature(
            "'Host', 'X-Amz-Date' and the session token must be signed",
        ));
    }
    let expect = signature(head, body, &authorization, signed_at, &session.secret_access_key)
        .ok_or_else(StsError::signature_mismatch)?;
    verify_slices_are_equal(expect.as_bytes(), authorization.signature.as_bytes())
        .map_err(|_| StsError::signature_mismatch())?;

    let at = clock::parse_amz_date(signed_at).ok_or_else(|| StsError::signature_out_of_time(signed_at))?;
    if at + TOLERANCE < now || now + TOLERANCE < at {
        return Err(StsError::signature_out_of_time(signed_at));
    }
    if session.expires_at <= now {
        return Err(StsError::expired_session());
    }
    Ok(session)
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::S3 => "s3",
        }
    }
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str, service: Service) -> Option<Self> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
        };
        let (access_key_id, scope) = field("Credential")?.split_once('/')?;
        let &[date, _, scoped_to, "aws4_request"] = scope.split('/').collect::<Vec<_>>().as_slice() else {
            return None;
        };
        (date.len() == 8 && scoped_to == service.name()).then_some(())?;
        Some(Self {
            access_key_id,
            scope,
            signed_headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }

    fn covers(&self, headers: &[&str]) -> bool {
        headers.iter().all(|header| self.signed_headers.split(';').any(|signed| signed == *header))
    }
}

/// The signature that the holder of `secret` would have made; `None` if the signed headers are not all there.
fn signature(
    head: &Parts,
    body: &[u8],
    authorization: &Authorization<'_>,
    signed_at: &str,
    secret: &str,
) -> Option<String> {
    let request = canonical_request(head, body, authorization.signed_headers)?;
    let string_to_sign = format!(
        "AWS4-HMAC-SHA256\n{signed_at}\n{}\n{}",
        authorization.scope,
        sha256_hex(request.as_bytes()),
    );
    let key = authorization
        .scope
        .split('/')
        .fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    Some(ids::hex(&hmac(&key, string_to_sign.as_bytes())))
}

fn canonical_request(head: &Parts, body: &[u8], signed_headers: &str) -> Option<String> {
    let mut query: Vec<(String, String)> =
        form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .map(|(key, value)| (percent_encode(&key), percent_encode(&value)))
            .collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(key, value)| format!("{key}={value}")).collect();

    let mut headers = String::new();
    for name in signed_headers.split(';') {
        let values: Vec<&str> =
            head.headers.get_all(name).iter().map(|value| value.to_str().ok()).collect::<Option<_>>()?;
        if values.is_empty() {
            return None;
        }
        let values: Vec<String> =
            values.into_iter().map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        headers.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    Some(format!(
        "{}\n{}\n{}\n{headers}\n{signed_headers}\n{}",
        head.method,
        head.uri.path(),
        query.join("&"),
        sha256_hex(body),
    ))
}

/// Every byte but the unreserved ones of RFC 3986.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    sign(&Key::new(HMAC_SHA256, key), message).as_ref().to_vec()
}

fn sha256_hex(bytes: &[u8]) -> String {
    ids::hex(digest(&SHA256, bytes).as_ref())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: &str = "20150830/us-east-1/sts/aws4_request";

    fn authorization(signed_headers: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE/{SCOPE}, SignedHeaders={signed_headers}, Signature=abc"
        )
    }

    #[test]
    fn a_header_is_taken_apart() {
        let header = authorization("host;x-amz-date");
        let read = Authorization::parse(&header, Service::Sts).unwrap();
        let expect = Authorization {
            access_key_id: "ASIAEXAMPLE",
            scope: SCOPE,
            signed_headers: "host;x-amz-date",
            signature: "abc",
        };
        assert_eq!(read, expect);
        assert_eq!(Authorization::parse(&header.replace(", ", ","), Service::Sts), Some(expect));
        assert!(Authorization::parse(&header.replace("/sts/", "/s3/"), Service::S3).is_some());
        assert_eq!(Authorization::parse(&header, Service::S3), None, "signed for another service");
        assert!(read.covers(&["host"]) && !read.covers(&["host", "x-amz-security-token"]));
    }

    #[test]
    fn other_schemes_and_services_are_refused() {
        for header in [
            "Bearer abc".to_owned(),
            authorization("host").replace("/sts/", "/s3/"),
            authorization("host").replace("/sts/", "/ec2/"),
            authorization("host").replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            authorization("host").replace("Signature=abc", ""),
        ] {
            assert_eq!(Authorization::parse(&header, Service::Sts), None, "{header}");
        }
    }

    #[test]
    fn the_canonical_request_is_sorted_encoded_and_trimmed() {
        let (head, ()) = http::Request::get("/?b=x%20y&a=%2F*&a=1")
            .header("Host", "sts.amazonaws.com")
            .header("X-Two", "  a   b ")
            .header("X-Two", "c")
            .body(())
            .unwrap()
            .into_parts();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            canonical_request(&head, b"", "host;x-two").unwrap(),
            format!(
                "GET\n/\na=%2F%2A&a=1&b=x%20y\nhost:sts.amazonaws.com\nx-two:a b,c\n\nhost;x-two\n{empty}"
            )
        );
        assert_eq!(canonical_request(&head, b"", "host;x-three"), None);
    }
}
