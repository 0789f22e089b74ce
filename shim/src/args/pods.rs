//! Flags about what a pod gets.

use std::{fmt, net::IpAddr, str::FromStr};

use clap::{ArgAction, builder::BoolishValueParser};
use rolecall_contract::{AUDIENCE, endpoint};

use crate::policy::{Mode, Policy};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Pods")]
pub struct PodArgs {
    /// How pods get credentials where their ServiceAccount does not say: container or irsa
    ///
    /// With container, SDKs ask the daemon on their node; with irsa, they call STS themselves, as with the EKS
    /// webhook. The annotation rolecall.dev/mode on a ServiceAccount decides for its pods.
    #[arg(long, env = "ROLECALL_SHIM_DEFAULT_MODE", value_name = "MODE", default_value = "container")]
    pub default_mode: Mode,
    /// What completes a bare role name, such as arn:aws:iam::111122223333:role/team/
    #[arg(long, env = "ROLECALL_SHIM_BASE_ROLE_ARN", value_name = "ARN")]
    pub base_role_arn: Option<String>,
    /// Prefix of annotations that count beside rolecall.dev; empty for none
    ///
    /// The default reads what was written for the EKS webhook.
    #[arg(
        long,
        visible_alias = "annotation-prefix",
        env = "ROLECALL_SHIM_COMPATIBILITY_PREFIX",
        value_name = "PREFIX",
        default_value = Policy::EKS_PREFIX
    )]
    pub compatibility_prefix: String,
    /// Let the annotations of a pod name its role
    ///
    /// Whoever may create pods in a namespace then chooses among the roles that trust its ServiceAccounts.
    #[arg(
        long,
        env = "ROLECALL_SHIM_ALLOW_POD_ROLE_ANNOTATION",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub allow_pod_role_annotation: bool,
    /// Replace what EKS's own webhook injected into a pod in container mode
    ///
    /// Without it, such a pod is left alone with a warning: every SDK prefers what EKS injected.
    #[arg(
        long,
        env = "ROLECALL_SHIM_TAKE_OVER_IRSA",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub take_over_irsa: bool,
    /// Audience of the tokens where no annotation names one
    ///
    /// In container mode it has to be the daemons' --audience.
    #[arg(
        long,
        visible_alias = "token-audience",
        env = "ROLECALL_SHIM_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = AUDIENCE
    )]
    pub audience: String,
    /// Where the token is mounted in irsa mode
    #[arg(
        long,
        env = "ROLECALL_SHIM_TOKEN_MOUNT_PATH",
        value_name = "DIRECTORY",
        default_value = Policy::EKS_MOUNT_PATH
    )]
    pub token_mount_path: String,
    /// Lifetime of the tokens in seconds where no annotation says; less than 600 counts as 600
    #[arg(
        long,
        env = "ROLECALL_SHIM_TOKEN_EXPIRATION",
        value_name = "SECONDS",
        default_value = "86400",
        allow_negative_numbers = true
    )]
    pub token_expiration: i64,
    /// Region for AWS_REGION and AWS_DEFAULT_REGION of the containers; absent: they are not set
    #[arg(long, visible_alias = "aws-default-region", env = "ROLECALL_SHIM_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// Set AWS_STS_REGIONAL_ENDPOINTS=regional where no annotation says
    #[arg(
        long,
        env = "ROLECALL_SHIM_STS_REGIONAL_ENDPOINT",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub sts_regional_endpoint: bool,
    /// Address of the daemons as the pods reach them
    ///
    /// Give fd00:ec2::23 in a cluster whose pods have IPv6 alone.
    #[arg(
        long,
        env = "ROLECALL_SHIM_ENDPOINT_ADDRESS",
        value_name = "ADDRESS",
        default_value_t = IpAddr::V4(endpoint::ADDRESS_V4)
    )]
    pub endpoint_address: IpAddr,
    /// Label of nodes without a daemon, such as virtual nodes; repeatable
    ///
    /// Pods whose nodeSelector has it get irsa, as those of Windows and Fargate do by themselves.
    #[arg(
        long,
        env = "ROLECALL_SHIM_NO_DAEMON_NODE_SELECTOR",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub no_daemon_node_selector: Vec<NodeSelector>,
    /// Template of AWS_ROLE_SESSION_NAME in irsa mode, such as {namespace}.{pod}; absent: it is not set
    #[arg(long, env = "ROLECALL_SHIM_SESSION_NAME", value_name = "TEMPLATE")]
    pub session_name: Option<String>,
    /// Complete bare role names, as the EKS webhook does from its node's metadata; needs --base-role-arn
    #[arg(
        long,
        env = "ROLECALL_SHIM_COMPOSE_ROLE_ARN",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub compose_role_arn: bool,
}

/// A node's label and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSelector {
    pub key: String,
    pub value: String,
}

impl FromStr for NodeSelector {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.trim().split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("write a label and its value, such as type=virtual-kubelet"),
        }
    }
}

impl fmt::Display for NodeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}
