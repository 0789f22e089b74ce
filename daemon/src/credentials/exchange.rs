//! The door to STS: one attempt to exchange a token for a session, and the ways in which it fails.

use std::{future::Future, sync::Arc, time::SystemTime};

use zeroize::Zeroizing;

use super::SessionRequest;
use crate::token::{Token, volume::ReadError};

/// Whoever exchanges a token for a session: AWS, or the fake of the tests.
pub trait Sts: Send + Sync + 'static {
    /// Makes one attempt, without retries of its own, and ends by itself: no attempt lasts for ever.
    fn assume_role_with_web_identity(
        &self,
        request: &SessionRequest,
        token: &Token,
    ) -> impl Future<Output = Result<Issued, StsError>> + Send;
}

/// A session as STS issues it, before it is known to be fit for use.
pub struct Issued {
    pub access_key_id: String,
    pub secret_access_key: Zeroizing<String>,
    pub session_token: Zeroizing<String>,
    pub expires_at: SystemTime,
    /// The session's ARN, `arn:aws:sts::<account>:assumed-role/<role>/<session>`.
    pub assumed_role_arn: Option<String>,
    /// AWS's id of the exchange, by which CloudTrail and AWS's support find it.
    pub request_id: Option<String>,
}

/// Why one attempt failed. The texts are AWS's, made harmless: they may be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StsError {
    /// STS will not give this role to this pod, and asking again soon will not help.
    #[error("STS denies: {code}: {message}")]
    Denied { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// STS takes offence at the token; a newer one may do.
    #[error("STS refuses the token: {code}: {message}")]
    TokenRefused { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// STS asks us to slow down.
    #[error("STS throttles: {code}: {message}")]
    Throttled { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// No answer, or none that can be used.
    #[error("STS is out of reach: {cause}")]
    Unreachable { cause: Arc<str> },
}

/// Why there are no credentials. The texts are safe for logs; what a pod may see is decided where it is answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// STS will not give this role to this pod.
    #[error("STS denies: {code}: {message}")]
    Denied { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// STS refused the token, and there was no newer one on disk or it was refused as well.
    #[error("STS refuses the token: {code}: {message}")]
    TokenRefused { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// STS asks the whole daemon to slow down.
    #[error("STS throttles: {code}: {message}")]
    Throttled { code: Arc<str>, message: Arc<str>, request_id: Option<Arc<str>> },
    /// STS gave no answer, or none that can be used, or has not answered yet.
    #[error("STS is out of reach: {cause}")]
    Unreachable { cause: Arc<str> },
    /// The kubelet has not written the pod's token yet.
    #[error("find no token of the pod in the kubelet's directory")]
    TokenMissing,
    /// The pod's token is there and cannot be read.
    #[error(transparent)]
    TokenUnusable(ReadError),
    /// The pod is finished or gone.
    #[error("the pod is gone")]
    PodGone,
}

impl StsError {
    /// No usable answer, for the reason `cause`.
    pub fn unreachable(cause: impl Into<Arc<str>>) -> Self {
        Self::Unreachable { cause: cause.into() }
    }
}

impl FetchError {
    pub(super) fn unreachable(cause: impl Into<Arc<str>>) -> Self {
        Self::Unreachable { cause: cause.into() }
    }

    /// AWS's id of the exchange that failed.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Denied { request_id, .. }
            | Self::TokenRefused { request_id, .. }
            | Self::Throttled { request_id, .. } => request_id.as_deref(),
            Self::Unreachable { .. } | Self::TokenMissing | Self::TokenUnusable(_) | Self::PodGone => None,
        }
    }

    /// Whether trying again soon may help: such a failure is no outcome while the worker retries.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Unreachable { .. } | Self::TokenMissing => true,
            Self::Denied { .. } | Self::TokenRefused { .. } | Self::TokenUnusable(_) | Self::PodGone => false,
        }
    }
}

impl From<StsError> for FetchError {
    fn from(error: StsError) -> Self {
        match error {
            StsError::Denied { code, message, request_id } => Self::Denied { code, message, request_id },
            StsError::TokenRefused { code, message, request_id } => {
                Self::TokenRefused { code, message, request_id }
            }
            StsError::Throttled { code, message, request_id } => {
                Self::Throttled { code, message, request_id }
            }
            StsError::Unreachable { cause } => Self::Unreachable { cause },
        }
    }
}
