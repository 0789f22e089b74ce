//! The operator's settings that decide what a pod gets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use rolecall_contract::{AUDIENCE, RoleArn, RoleArnError, annotation, endpoint};

use crate::session_name::SessionName;

/// How the pods of a ServiceAccount get credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Their SDKs ask the daemon on their node.
    Container,
    /// Their SDKs call STS themselves, as with the EKS webhook.
    Irsa,
}

/// The operator's settings, as far as they decide what a pod gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where the ServiceAccount names no mode.
    pub default_mode: Mode,
    /// Prefix of the annotations that count beside `rolecall.dev`; `None` where only ours count.
    pub compatibility_prefix: Option<String>,
    /// Audience of a token where nothing else asks for one. In container mode it has to be the daemons'.
    pub audience: String,
    /// Where the token is mounted in irsa mode.
    pub token_mount_path: String,
    /// Lifetime of a token in seconds, where nothing else asks for one.
    pub token_expiration: u64,
    /// Value of `AWS_REGION` and `AWS_DEFAULT_REGION`; `None` where they are not set.
    pub region: Option<String>,
    /// Whether `AWS_STS_REGIONAL_ENDPOINTS=regional` is set, where nothing else decides.
    pub sts_regional_endpoints: bool,
    /// Completes bare role names.
    pub base_role_arn: Option<BaseRoleArn>,
    /// Whether a pod's own annotations may name its role. What a pod names, whoever may create pods chooses.
    pub pod_role_annotation_allowed: bool,
    /// Whether what EKS's own webhook injected is replaced in container mode.
    pub take_over_irsa: bool,
    /// Address of the daemon's endpoint as the pods of this cluster reach it.
    pub endpoint_address: IpAddr,
    /// Node labels and values: pods that select one of them run where there is no daemon.
    pub node_selectors_without_daemon: Vec<(String, String)>,
    /// Template of `AWS_ROLE_SESSION_NAME` in irsa mode; `None` where it is not set.
    pub session_name: Option<SessionName>,
    /// What the pods of the configured identities get.
    pub container_credentials: ContainerCredentials,
}

/// What the pods of the identities in the container-credentials file get, as with the EKS webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCredentials {
    pub audience: String,
    pub mount_path: String,
    pub volume_name: String,
    /// Name of the token's file in the volume.
    pub token_path: String,
    pub full_uri: String,
}

/// What a bare role name is appended to: `arn:aws:iam::111122223333:role/` and perhaps a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRoleArn(String);

/// Why a text completes no role name, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the base of role ARNs looks like arn:aws:iam::<account>:role/<path>/: {0}")]
pub struct BaseRoleArnError(#[source] RoleArnError);

impl Policy {
    /// Prefix of the EKS webhook's annotations.
    pub const EKS_PREFIX: &'static str = "eks.amazonaws.com";
    /// Where the EKS webhook mounts its token.
    pub const EKS_MOUNT_PATH: &'static str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
    /// Lifetime of the EKS webhook's tokens: a day.
    pub const TOKEN_EXPIRATION: u64 = 86_400;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            default_mode: Mode::Container,
            compatibility_prefix: Some(Self::EKS_PREFIX.to_owned()),
            audience: AUDIENCE.to_owned(),
            token_mount_path: Self::EKS_MOUNT_PATH.to_owned(),
            token_expiration: Self::TOKEN_EXPIRATION,
            region: None,
            sts_regional_endpoints: false,
            base_role_arn: None,
            pod_role_annotation_allowed: false,
            take_over_irsa: false,
            endpoint_address: IpAddr::V4(endpoint::ADDRESS_V4),
            node_selectors_without_daemon: Vec::new(),
            session_name: None,
            container_credentials: ContainerCredentials::default(),
        }
    }
}

impl Default for ContainerCredentials {
    /// The defaults of the EKS webhook.
    fn default() -> Self {
        Self {
            audience: "pods.eks.amazonaws.com".to_owned(),
            mount_path: "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount".to_owned(),
            volume_name: "eks-pod-identity-token".to_owned(),
            token_path: "eks-pod-identity-token".to_owned(),
            full_uri: full_uri(IpAddr::V4(endpoint::ADDRESS_V4), endpoint::CREDENTIALS_PATH),
        }
    }
}

impl Mode {
    /// The mode's name in annotations, flags and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => annotation::MODE_CONTAINER,
            Self::Irsa => annotation::MODE_IRSA,
        }
    }
}

/// A text that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the mode is container or irsa")]
pub struct ModeError;

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            annotation::MODE_CONTAINER => Ok(Self::Container),
            annotation::MODE_IRSA => Ok(Self::Irsa),
            _ => Err(ModeError),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl BaseRoleArn {
    /// The ARN of the role `name`, which may have a path of its own; not yet checked.
    pub fn complete(&self, name: &str) -> String {
        format!("{}{}", self.0, name.strip_prefix('/').unwrap_or(name))
    }
}

impl FromStr for BaseRoleArn {
    type Err = BaseRoleArnError;

    /// Reads `arn:<partition>:iam::<account>:role` with or without a path; the slash at its end may be missing.
    fn from_str(text: &str) -> Result<Self, BaseRoleArnError> {
        let text = text.trim();
        let base = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
        format!("{base}x").parse::<RoleArn>().map_err(BaseRoleArnError)?;
        Ok(Self(base))
    }
}

impl fmt::Display for BaseRoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The URI of `path` at the endpoint; `path` begins with a slash.
pub fn full_uri(address: IpAddr, path: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}{path}"),
        IpAddr::V6(address) => format!("http://[{address}]{path}"),
    }
}

/// The address that relative URIs lead to.
pub const RELATIVE_ADDRESS: Ipv4Addr = endpoint::RELATIVE_ADDRESS_V4;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_base(base: &str, name: &str, expect: Option<&str>) {
        let complete = base.parse::<BaseRoleArn>().ok().map(|base| base.complete(name));
        assert_eq!(complete.as_deref(), expect, "{base} {name}");
    }

    #[test]
    fn a_bare_name_is_completed_in_every_partition() {
        for partition in
            ["aws", "aws-cn", "aws-us-gov", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f", "aws-eusc"]
        {
            let base = format!("arn:{partition}:iam::111122223333:role/");
            let expect = format!("arn:{partition}:iam::111122223333:role/orders");
            check_base(&base, "orders", Some(&expect));
        }
        check_base("arn:aws:iam::111122223333:role", "orders", Some("arn:aws:iam::111122223333:role/orders"));
        check_base(
            "arn:aws:iam::111122223333:role/team",
            "/orders",
            Some("arn:aws:iam::111122223333:role/team/orders"),
        );
        check_base(
            "arn:aws:iam::111122223333:role/team/",
            "a/b",
            Some("arn:aws:iam::111122223333:role/team/a/b"),
        );
    }

    #[test]
    fn a_base_that_could_complete_nothing_is_refused() {
        for base in [
            "",
            "/",
            "role/",
            "arn:aws:iam::1:role/",
            "arn:aws:sts::111122223333:role/",
            "arn:aws:iam::111122223333:user/",
        ] {
            check_base(base, "orders", None);
        }
    }

    #[test]
    fn an_ipv6_endpoint_is_bracketed() {
        assert_eq!(
            full_uri(endpoint::ADDRESS_V6.into(), "/v1/credentials"),
            "http://[fd00:ec2::23]/v1/credentials"
        );
        assert_eq!(
            full_uri(endpoint::ADDRESS_V4.into(), "/v1/credentials"),
            "http://169.254.170.23/v1/credentials"
        );
    }
}
