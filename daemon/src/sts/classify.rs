//! What a failed attempt means, and what of AWS's words may be passed on.

use std::{error::Error, io, sync::Arc};

use aws_sdk_sts::{
    error::{ProvideErrorMetadata, SdkError},
    operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::ConnectorError};
use aws_types::request_id::RequestId;

use crate::{credentials::StsError, token::Token};

/// Longest message that is passed on, in bytes.
const MAX_MESSAGE_LENGTH: usize = 512;

/// Words from this length on are left out: it is how long a part of a token is, and no word of a language.
const MAX_WORD_LENGTH: usize = 200;

/// Shorter parts of a token are no secret: they are found in other words by chance.
const MIN_SECRET_LENGTH: usize = 16;

type SdkFailure = SdkError<AssumeRoleWithWebIdentityError, HttpResponse>;

/// Says what the SDK's failure of an exchange of `token` means.
pub(super) fn classify(error: &SdkFailure, token: &Token) -> StsError {
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let said = Said {
                code: answer.err().code(),
                message: answer.err().message().unwrap_or_default(),
                request_id: answer.raw().request_id(),
            };
            said.meaning(status, token)
        }
        SdkError::DispatchFailure(failure) => {
            let cause = match failure.as_connector_error() {
                Some(error) => connection_cause(error),
                None => "cannot send the request".to_owned(),
            };
            StsError::unreachable(harmless(&cause, token))
        }
        SdkError::TimeoutError(_) => StsError::unreachable("timed out"),
        SdkError::ResponseError(answer) => {
            StsError::unreachable(format!("cannot read the answer with status {}", answer.raw().status()))
        }
        SdkError::ConstructionFailure(_) => {
            StsError::unreachable(harmless(&format!("cannot make the request: {}", deepest(error)), token))
        }
        // The SDK may add kinds; none of them is an answer.
        _ => StsError::unreachable("the SDK failed"),
    }
}

/// What STS, or something that answered in its place, said.
struct Said<'a> {
    code: Option<&'a str>,
    message: &'a str,
    request_id: Option<&'a str>,
}

impl Said<'_> {
    fn meaning(&self, status: u16, token: &Token) -> StsError {
        let code = self.code.filter(|code| is_code(code));
        let message: Arc<str> = harmless(self.message, token).into();
        let request_id = self.request_id.filter(|id| is_request_id(id)).map(Arc::from);
        let Some(code) = code else {
            return match status {
                429 => StsError::Throttled { code: "TooManyRequests".into(), message, request_id },
                200..300 => StsError::unreachable(format!("cannot read the answer with status {status}")),
                // No error document of AWS: a proxy or a gateway spoke.
                _ => StsError::unreachable(format!("status {status} without an error document of AWS")),
            };
        };
        let named = Arc::from(code);
        let unreachable = || StsError::unreachable(format!("status {status}: {code}: {message}"));
        match code {
            _ if is_throttling(code) || status == 429 => {
                StsError::Throttled { code: named, message, request_id }
            }
            _ if 500 <= status => unreachable(),
            "IDPCommunicationError"
            | "RequestTimeout"
            | "RequestTimeoutException"
            | "InternalFailure"
            | "InternalError"
            | "ServiceUnavailable" => unreachable(),
            // STS could not fetch the cluster's keys: it passes, and the token is as good as any other.
            "InvalidIdentityToken" if message.contains("retrieve verification key") => unreachable(),
            "InvalidIdentityToken" | "ExpiredTokenException" | "ExpiredToken" | "IDPRejectedClaim" => {
                StsError::TokenRefused { code: named, message, request_id }
            }
            _ => StsError::Denied { code: named, message, request_id },
        }
    }
}

fn is_throttling(code: &str) -> bool {
    code.starts_with("Throttl")
        || code.starts_with("TooManyRequests")
        || matches!(
            code,
            "RequestLimitExceeded"
                | "RequestThrottled"
                | "RequestThrottledException"
                | "SlowDown"
                | "BandwidthLimitExceeded"
                | "LimitExceededException"
                | "PriorRequestNotComplete"
        )
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len())
        && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_')
}

fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Why there was no connection, in few words where they are known.
fn connection_cause(error: &ConnectorError) -> String {
    if error.is_timeout() {
        return "timed out while connecting".to_owned();
    }
    let chain: Vec<_> = chain(error).collect();
    let kind = chain.iter().rev().find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    if chain.iter().any(|error| error.to_string() == "dns error") {
        return format!("cannot resolve the endpoint's name: {}", deepest(error));
    }
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "no route to host".to_owned()
        }
        Some(io::ErrorKind::TimedOut) => "timed out while connecting".to_owned(),
        _ => format!("cannot connect: {}", deepest(error)),
    }
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// `text` without anything of `token`, control characters and length. AWS's messages have none of these.
fn harmless(text: &str, token: &Token) -> String {
    let secrets = || token.expose().split('.').filter(|part| MIN_SECRET_LENGTH <= part.len());
    let may_pass =
        |word: &str| word.len() < MAX_WORD_LENGTH && !secrets().any(|secret| word.contains(secret));
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> =
        text.split_whitespace().map(|word| if may_pass(word) { word } else { "…" }).collect();
    let mut text = words.join(" ");
    text.truncate(text.floor_char_boundary(MAX_MESSAGE_LENGTH));
    text
}
