//! Everything that the endpoint refuses: status, stable code, and words that say what to do.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use rolecall_contract::{RoleArn, RoleArnError};
use serde::Serialize;

use crate::{identity::PodIdentity, token::verify::TokenFault};

/// Why a request is refused. `docs/protocol.md` has a row for each.
///
/// The words go to the pod, so they never name the node, a token or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request breaks a rule of the endpoint; which one.
    MalformedRequest(&'static str),
    MethodNotAllowed,
    RequestTooLarge,
    /// The pod was told to send its token, and the request has none.
    TokenRequired,
    TokenInvalid(TokenFault),
    TokenExpired,
    /// A good token from a place that is not its pod's.
    WrongPod,
    /// The node's own address says nothing about which pod asks.
    HostNetworkNeedsToken,
    PodFinished,
    /// The pod has no role of its own, and the path names none.
    NoRole,
    /// A path that is not served.
    NotFound,
    RoleMalformed(RoleArnError),
    /// The operator does not let pods name a role in the path.
    RoleNotAllowed,
    TooManyRoles {
        limit: usize,
    },
    /// The pod has a role but no token that STS would take.
    NoTokenVolume,
    /// STS denies the role to the pod; AWS's code and text.
    StsDenied {
        pod: PodIdentity,
        role: RoleArn,
        code: Arc<str>,
        message: Arc<str>,
    },
    /// STS does not take the pod's token; AWS's code and text.
    StsTokenRefused {
        code: Arc<str>,
        message: Arc<str>,
    },
    /// No pod is known at the address.
    PodUnknown,
    /// The daemon does not know its node's pods, or the cluster's keys, yet.
    NotReady,
    /// Several pods claim the address.
    AddressAmbiguous,
    /// The kubelet has not written the pod's token.
    TokenMissing,
    /// STS was out of reach, or throttled, to the end.
    StsUnavailable,
    /// A limit of ours; which one.
    TooManyRequests(&'static str),
}

impl Refusal {
    /// The stable code, for programs, metrics and log searches.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedRequest(_) => "malformed_request",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTooLarge => "request_too_large",
            Self::TokenRequired => "token_required",
            Self::TokenInvalid(_) => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::WrongPod => "wrong_pod",
            Self::HostNetworkNeedsToken => "host_network_needs_token",
            Self::PodFinished => "pod_finished",
            Self::NoRole => "no_role",
            Self::NotFound => "not_found",
            Self::RoleMalformed(_) => "role_malformed",
            Self::RoleNotAllowed => "role_not_allowed",
            Self::TooManyRoles { .. } => "too_many_roles",
            Self::NoTokenVolume => "no_token_volume",
            Self::StsDenied { .. } => "sts_denied",
            Self::StsTokenRefused { .. } => "sts_token_refused",
            Self::PodUnknown => "pod_unknown",
            Self::NotReady => "not_ready",
            Self::AddressAmbiguous => "address_ambiguous",
            Self::TokenMissing => "token_missing",
            Self::StsUnavailable => "sts_unavailable",
            Self::TooManyRequests(_) => "too_many_requests",
        }
    }

    /// Never 200, and never 429: Rust's and Java's SDK take it as final.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MalformedRequest(_) => StatusCode::BAD_REQUEST,
            Self::TokenRequired => StatusCode::UNAUTHORIZED,
            Self::TokenInvalid(_)
            | Self::TokenExpired
            | Self::WrongPod
            | Self::HostNetworkNeedsToken
            | Self::PodFinished
            | Self::RoleMalformed(_)
            | Self::RoleNotAllowed
            | Self::TooManyRoles { .. }
            | Self::NoTokenVolume
            | Self::StsDenied { .. }
            | Self::StsTokenRefused { .. } => StatusCode::FORBIDDEN,
            Self::NoRole | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::PodUnknown
            | Self::NotReady
            | Self::AddressAmbiguous
            | Self::TokenMissing
            | Self::StsUnavailable
            | Self::TooManyRequests(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What is wrong and what to do.
    pub fn message(&self) -> String {
        match self {
            Self::MalformedRequest(rule) => format!("The request is malformed: {rule}."),
            Self::MethodNotAllowed => "Only GET is served.".into(),
            Self::RequestTooLarge => "The head of the request is larger than 16 KiB.".into(),
            Self::TokenRequired => {
                "This pod must send its token: set AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE to the \
                path of its projected token, and use an SDK that sends it."
                    .into()
            }
            Self::TokenInvalid(fault) => format!("The token is refused: {fault}."),
            Self::TokenExpired => {
                "The token has expired, and the request does not come from its pod's own address: \
                read the token file again for each request."
                    .into()
            }
            Self::WrongPod => {
                "The token belongs to a pod that does not live at the address of this request.".into()
            }
            Self::HostNetworkNeedsToken => "A pod on the host network must send its token: set \
                AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE to the path of its projected token."
                .into(),
            Self::PodFinished => "The pod has finished or was deleted; it gets no more credentials.".into(),
            Self::NoRole => {
                "The pod has no role: annotate its ServiceAccount with rolecall.dev/role-arn (or \
                eks.amazonaws.com/role-arn) and create the pod again."
                    .into()
            }
            Self::NotFound => "Only /v1/credentials and /v1/credentials/<role-arn> are served.".into(),
            Self::RoleMalformed(error) => format!("The role cannot be used: {error}."),
            Self::RoleNotAllowed => "This node does not let a pod name its role in the path: use the \
                rolecall.dev/role-arn annotation."
                .into(),
            Self::TooManyRoles { limit } => format!("A pod may use {limit} roles at a time."),
            Self::NoTokenVolume => {
                "The pod has a role but no projected token with the audience of STS: it was \
                created while the webhook was away; create it again."
                    .into()
            }
            Self::StsDenied { pod, role, code, message } => format!(
                "STS denies {role} to system:serviceaccount:{}:{} ({code}: {message}): check that the role exists \
                 and that its trust policy allows sts:AssumeRoleWithWebIdentity to this cluster's identity provider \
                 with this sub and the token's aud.",
                pod.namespace, pod.service_account
            ),
            Self::StsTokenRefused { code, message } => format!(
                "STS does not take the pod's token ({code}: {message}): check that the account of the role has an \
                 IAM identity provider for this cluster's issuer with the token's audience."
            ),
            Self::PodUnknown => "No pod is known at this address yet; try again.".into(),
            Self::NotReady => "The daemon has not learned the pods of its node yet; try again.".into(),
            Self::AddressAmbiguous => {
                "Several pods claim this address; send the pod's token, or try again.".into()
            }
            Self::TokenMissing => "The kubelet has not written the pod's token; try again, and check that a \
                container mounts its volume."
                .into(),
            Self::StsUnavailable => "STS does not answer; try again.".into(),
            Self::TooManyRequests(limit) => format!("Too many requests of this pod ({limit}); try again."),
        }
    }

    /// When to come back, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::StsUnavailable => Some(Duration::from_secs(5)),
            Self::TooManyRequests(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The JSON document. Go and Java read `code`, Kotlin reads `Code`.
    pub fn document(&self) -> String {
        let (code, message) = (self.code(), self.message());
        let document = Document { code, message: &message, upper_code: code, upper_message: &message };
        serde_json::to_string(&document).expect("four strings have a JSON form")
    }
}

#[derive(Serialize)]
struct Document<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(rename = "Code")]
    upper_code: &'a str,
    #[serde(rename = "Message")]
    upper_message: &'a str,
}
