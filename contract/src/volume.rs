//! The projected volume that carries the pod's token.

/// Name of the volume that the shim adds to a pod.
pub const NAME: &str = "rolecall-token";

/// Name of the token's file in that volume.
pub const TOKEN_FILE: &str = "token";

/// Where the shim mounts the volume in a container.
pub const MOUNT_PATH: &str = "/var/run/secrets/rolecall.dev/serviceaccount";
