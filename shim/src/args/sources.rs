//! Flags about where a pod's role is learned: ServiceAccounts, the ConfigMap, the identities, the API server.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, builder::BoolishValueParser};
use rolecall_process::value::{duration, path};

use crate::policy::ContainerCredentials;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "ServiceAccounts")]
pub struct SourceArgs {
    /// How long a pod waits for its ServiceAccount to be known, if that was made a moment before; 0 for not at all
    #[arg(
        long,
        env = "ROLECALL_SHIM_SERVICE_ACCOUNT_LOOKUP_GRACE_PERIOD",
        value_name = "TIME",
        default_value = "1s",
        value_parser = duration
    )]
    pub service_account_lookup_grace_period: Duration,
    /// Read roles from the ConfigMap pod-identity-webhook of the shim's namespace too
    #[arg(
        long,
        env = "ROLECALL_SHIM_WATCH_CONFIG_MAP",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub watch_config_map: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "EKS Pod Identity")]
pub struct IdentityArgs {
    /// File with the ServiceAccounts whose pods get EKS Pod Identity; absent: none
    ///
    /// It is the container-credentials configuration of the EKS webhook, read again when it changes.
    #[arg(long, env = "ROLECALL_SHIM_WATCH_CONTAINER_CREDENTIALS_CONFIG", value_name = "FILE", value_parser = path())]
    pub watch_container_credentials_config: Option<PathBuf>,
    /// Audience of these pods' tokens
    #[arg(
        long,
        env = "ROLECALL_SHIM_CONTAINER_CREDENTIALS_AUDIENCE",
        value_name = "AUDIENCE",
        default_value_t = ContainerCredentials::default().audience
    )]
    pub container_credentials_audience: String,
    /// Where these pods' token is mounted
    #[arg(
        long,
        env = "ROLECALL_SHIM_CONTAINER_CREDENTIALS_TOKEN_MOUNT_PATH",
        value_name = "DIRECTORY",
        default_value_t = ContainerCredentials::default().mount_path
    )]
    pub container_credentials_token_mount_path: String,
    /// Name of these pods' token volume
    #[arg(
        long,
        env = "ROLECALL_SHIM_CONTAINER_CREDENTIALS_TOKEN_VOLUME_NAME",
        value_name = "NAME",
        default_value_t = ContainerCredentials::default().volume_name
    )]
    pub container_credentials_token_volume_name: String,
    /// Name of the token's file in that volume
    #[arg(
        long,
        env = "ROLECALL_SHIM_CONTAINER_CREDENTIALS_TOKEN_PATH",
        value_name = "FILE",
        default_value_t = ContainerCredentials::default().token_path
    )]
    pub container_credentials_token_path: String,
    /// Where these pods get their credentials
    #[arg(
        long,
        env = "ROLECALL_SHIM_CONTAINER_CREDENTIALS_FULL_URI",
        value_name = "URI",
        default_value_t = ContainerCredentials::default().full_uri
    )]
    pub container_credentials_full_uri: String,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "API server")]
pub struct KubernetesArgs {
    /// Kubeconfig of the API server; absent: the ServiceAccount of the shim's own pod
    #[arg(long, env = "ROLECALL_SHIM_KUBECONFIG", value_name = "FILE", value_parser = path())]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server in place of the one in the kubeconfig or in the pod's environment
    #[arg(long, env = "ROLECALL_SHIM_KUBE_API", value_name = "URL")]
    pub kube_api: Option<String>,
    /// Namespace of the shim: of its Service, its Secret and its ConfigMap; absent: that of its pod
    #[arg(long, env = "ROLECALL_SHIM_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}
