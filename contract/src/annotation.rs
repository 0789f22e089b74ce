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

/// Prefix of every annotation here.
pub const PREFIX: &str = "rolecall.dev";

/// On a ServiceAccount: how its pods get credentials, [`MODE_CONTAINER`] or [`MODE_IRSA`]. Read by the shim alone.
pub const MODE: &str = "rolecall.dev/mode";

/// Value of [`MODE`]: the pod's SDKs ask the daemon.
pub const MODE_CONTAINER: &str = "container";

/// Value of [`MODE`]: the pod's SDKs call STS themselves.
pub const MODE_IRSA: &str = "irsa";

/// On a ServiceAccount or pod: `true` for SDKs that only know the relative URI. Read by the shim alone.
pub const RELATIVE_URI: &str = "rolecall.dev/relative-uri";

/// On a ServiceAccount or pod: the template of `AWS_ROLE_SESSION_NAME` in irsa mode. Read by the shim alone.
pub const SESSION_NAME: &str = "rolecall.dev/session-name";

/// Before a container's name: the role of that container alone, as in `rolecall.dev/role-arn.main`.
///
/// It reaches the daemon in the path of the container's URI: see [`crate::endpoint::uri_path_of`].
pub const ROLE_ARN_OF_CONTAINER: &str = "rolecall.dev/role-arn.";
