//! Flags about the node, its pods and their tokens.

use std::path::PathBuf;

use clap::ValueEnum;

use super::Witness;

/// Whether Events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WriteEvents {
    /// Write them on the pods that they are about
    On,
    /// Write none; the log and the answers to the pods tell the same
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Node and pods")]
pub struct PodArgs {
    /// Name of this node in the API: the spec.nodeName of its pods; required
    ///
    /// In a DaemonSet, set ROLECALL_NODE_NAME from the field spec.nodeName.
    #[arg(long, env = "ROLECALL_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Kubeconfig of the API server; without it the pod's ServiceAccount is used
    ///
    /// Only for a daemon that runs outside of its cluster.
    #[arg(long, env = "ROLECALL_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the kubelet keeps the volumes of the node's pods
    ///
    /// Change it together with the kubelet's --root-dir: it is the directory pods in there, as this container
    /// sees it.
    #[arg(
        long,
        env = "ROLECALL_PODS_DIR",
        value_name = "DIRECTORY",
        default_value = "/var/lib/kubelet/pods"
    )]
    pub pods_dir: PathBuf,
    /// Events on pods that get no credentials, with what to do about it
    ///
    /// It needs the right to create events of events.k8s.io in every namespace.
    #[arg(long, env = "ROLECALL_EVENTS", value_name = "WAY", value_enum, default_value = "on")]
    pub events: WriteEvents,
    /// Taint that the daemon takes off its node once it is ready, such as rolecall.dev/agent-not-ready
    ///
    /// Nodes are to be registered with it, so that no pod comes before the daemon can serve it. It needs the right to
    /// get and patch nodes. Without the flag no node is looked at.
    #[arg(long, env = "ROLECALL_STARTUP_TAINT", value_name = "KEY")]
    pub startup_taint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Tokens and callers")]
pub struct TokenArgs {
    /// Audience of the projected tokens, in the pods' volumes and in the role's OIDC provider
    ///
    /// Change it only where the identity provider in IAM lists another; the webhook has to be told the same.
    #[arg(
        long,
        env = "ROLECALL_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = rolecall_contract::AUDIENCE
    )]
    pub audience: String,
    /// Issuer that tokens must have; repeatable. Without it, the issuer that the API server names
    ///
    /// Give both the old and the new one while a cluster's --service-account-issuer is being changed.
    #[arg(long, env = "ROLECALL_TOKEN_ISSUER", value_name = "ISSUER", value_delimiter = ',')]
    pub token_issuer: Vec<String>,
    /// What must tell who is asking: the pod's address as well as its token, or its token alone
    ///
    /// Choose token only on a network that hides the pod's address from its node: a stolen token then works from
    /// every pod of the node.
    #[arg(
        long,
        env = "ROLECALL_WITNESS",
        value_name = "WITNESS",
        value_enum,
        default_value = "token+address"
    )]
    pub witness: Witness,
}
