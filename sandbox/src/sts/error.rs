//! STS's errors: code, status and message, each as AWS words them.

use std::fmt;
use std::time::SystemTime;

use http::StatusCode;

use crate::clock;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl StsError {
    /// An error that has no constructor here.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The code in the document, such as `AccessDenied`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The role is not there, or its trust policy does not allow this token: AWS does not say which.
    pub fn not_authorized() -> Self {
        Self::access_denied("Not authorized to perform sts:AssumeRoleWithWebIdentity")
    }

    /// Too many requests.
    pub fn throttling() -> Self {
        Self::bad_request("Throttling", "Rate exceeded")
    }

    /// Something at AWS broke.
    pub fn internal_failure() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalFailure",
            "The request processing has failed because of an unknown error, exception or failure.",
        )
    }

    /// Something at AWS is down.
    pub fn service_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "The request has failed due to a temporary failure of the server.",
        )
    }

    /// STS could not fetch the issuer's keys.
    pub fn idp_communication() -> Self {
        Self::bad_request("IDPCommunicationError", "Could not communicate with the identity provider")
    }

    /// The issuer says that the claim is no longer good.
    pub fn idp_rejected_claim() -> Self {
        let message = "The identity provider (IdP) reported that authentication failed.";
        Self::new(StatusCode::FORBIDDEN, "IDPRejectedClaim", message)
    }

    /// The token expired before `now`.
    pub fn expired_token(now: SystemTime, expires_at: u64) -> Self {
        let now = clock::unix_seconds(now);
        let message = format!(
            "Token expired: current date/time {now} must be before the expiration date/time {expires_at}"
        );
        Self::bad_request("ExpiredTokenException", message)
    }

    /// The token is good for nothing, for this reason.
    pub fn invalid_identity_token(message: impl Into<String>) -> Self {
        Self::bad_request("InvalidIdentityToken", message)
    }

    pub(super) fn not_a_jwt() -> Self {
        Self::invalid_identity_token(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)",
        )
    }

    pub(super) fn no_provider(issuer_url: &str) -> Self {
        Self::invalid_identity_token(format!(
            "No OpenIDConnect provider found in your account for {issuer_url}"
        ))
    }

    pub(super) fn no_verification_key() -> Self {
        // Both spaces before "please" are AWS's.
        Self::invalid_identity_token(
            "Couldn't retrieve verification key from your identity provider,  please reference \
             AssumeRoleWithWebIdentity documentation for requirements",
        )
    }

    pub(super) fn incorrect_audience() -> Self {
        Self::invalid_identity_token("Incorrect token audience")
    }

    pub(super) fn access_denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", message)
    }

    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self::bad_request("ValidationError", message)
    }

    /// A member of the request breaks a constraint.
    pub(super) fn constraint(value: &str, member: &str, constraint: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value {value} at '{member}' failed to satisfy constraint: {constraint}"
        ))
    }

    pub(super) fn missing_member(member: &str) -> Self {
        Self::constraint("null", member, "Member must not be null")
    }

    pub(super) fn missing_action() -> Self {
        Self::bad_request("MissingAction", "The request is missing an action or a required parameter.")
    }

    pub(super) fn invalid_action(action: &str, version: &str) -> Self {
        Self::bad_request("InvalidAction", format!("Could not find operation {action} for version {version}"))
    }

    pub(super) fn request_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", "Request is too large")
    }

    pub(super) fn missing_authentication_token() -> Self {
        let message = "Request is missing Authentication Token";
        Self::new(StatusCode::FORBIDDEN, "MissingAuthenticationToken", message)
    }

    pub(super) fn incomplete_signature(message: impl Into<String>) -> Self {
        Self::bad_request("IncompleteSignature", message)
    }

    pub(super) fn invalid_client_token() -> Self {
        let message = "The security token included in the request is invalid";
        Self::new(StatusCode::FORBIDDEN, "InvalidClientTokenId", message)
    }

    pub(super) fn expired_session() -> Self {
        let message = "The security token included in the request is expired";
        Self::new(StatusCode::FORBIDDEN, "ExpiredToken", message)
    }

    pub(super) fn signature_mismatch() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details.",
        )
    }

    pub(super) fn signature_out_of_time(signed_at: &str) -> Self {
        let message = format!("Signature expired: {signed_at} is not within 15 min of the current time");
        Self::new(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message)
    }

    fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }
}

impl fmt::Display for StsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.status.as_u16(), self.message)
    }
}

impl std::error::Error for StsError {}
