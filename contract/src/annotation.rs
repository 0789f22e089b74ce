//! Keys and values of the annotations that the shim writes on a pod and the daemon reads.

/// The role of the pod, as a full ARN.
pub const ROLE_ARN: &str = "rolecall.dev/role-arn";

/// Whether a request of this pod must carry its token: [`TOKEN_REQUIRED`] or [`TOKEN_OPTIONAL`].
pub const TOKEN: &str = "rolecall.dev/token";

/// Value of [`TOKEN`]: the containers were told to send a token, so a request without it is refused.
pub const TOKEN_REQUIRED: &str = "required";

/// Value of [`TOKEN`]: the containers use a client that sends no token; the address alone is enough.
pub const TOKEN_OPTIONAL: &str = "optional";

/// Length of the pod's sessions in seconds, 900 to 43200.
///
/// The bounds are those of `DurationSeconds`:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub const SESSION_DURATION: &str = "rolecall.dev/session-duration";
