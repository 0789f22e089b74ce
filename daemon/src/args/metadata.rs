//! Flags about the instance metadata service.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::exemptions::{Exemption, ExemptionError};

/// What keeps pods from the instance metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetadataFirewall {
    /// A table of nftables; a pod's attempt is refused at once
    Nftables,
    /// A chain in the table raw of iptables and ip6tables; a pod's attempt gets no answer
    Iptables,
    /// Nothing: a pod may take the node's own role
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Metadata service")]
pub struct MetadataArgs {
    /// What keeps pods from the instance metadata service, whose answers hold the node's own credentials
    ///
    /// The rules stay when the daemon ends, and with off as well; rolecall-daemon cleanup removes them. It needs
    /// CAP_NET_ADMIN; nftables needs Linux 5.9, and iptables-legacy CAP_NET_RAW.
    #[arg(
        long,
        env = "ROLECALL_METADATA_FIREWALL",
        value_name = "WAY",
        value_enum,
        default_value = "nftables"
    )]
    pub metadata_firewall: MetadataFirewall,
    /// ServiceAccounts whose pods may reach it, such as kube-system/aws-*; repeatable or separated by commas
    ///
    /// Written namespace/serviceaccount, where * and ? stand for other characters. Pods on the host network reach
    /// it in any case.
    #[arg(
        long,
        env = "ROLECALL_METADATA_EXEMPT",
        value_name = "PATTERN",
        value_delimiter = ',',
        value_parser = exemption
    )]
    pub metadata_exempt: Vec<Option<Exemption>>,
    #[command(flatten)]
    pub programs: FirewallProgramArgs,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct FirewallProgramArgs {
    /// The program nft
    #[arg(long, env = "ROLECALL_NFT", value_name = "FILE", default_value = "nft")]
    pub nft: PathBuf,
    /// The program iptables or one of its variants, such as iptables-legacy; the others are named after it
    #[arg(long, env = "ROLECALL_IPTABLES", value_name = "FILE", default_value = "iptables")]
    pub iptables: PathBuf,
}

/// A chart that sets every variable leaves this one empty.
fn exemption(text: &str) -> Result<Option<Exemption>, ExemptionError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}
