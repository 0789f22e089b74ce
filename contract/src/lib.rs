//! What the shim and the daemon must agree on: annotations, environment, token volume and role ARNs.
//!
//! A pod that the shim admits and the daemon refuses is an outage, so there is one parser for what travels
//! between the two, and it lives here. This crate knows no tokio, no Kubernetes client and no AWS SDK.
#![warn(missing_docs)]

pub mod annotation;
pub mod binding;
pub mod endpoint;
pub mod role;
pub mod volume;

pub use binding::{RoleBinding, SessionDuration, TokenRule};
pub use role::{RoleArn, RoleArnError};

/// Audience of the projected token: the one that STS asks of a web identity token.
///
/// <https://docs.aws.amazon.com/eks/latest/userguide/associate-service-account-role.html>
pub const AUDIENCE: &str = "sts.amazonaws.com";
