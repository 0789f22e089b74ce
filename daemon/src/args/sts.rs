//! Flags about AWS STS and the sessions asked of it.

use std::time::Duration;

use clap::{ArgAction, builder::BoolishValueParser};
use rolecall_process::value::duration;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "AWS STS")]
pub struct StsArgs {
    /// AWS region whose STS is asked; without it, AWS_REGION
    ///
    /// Choose the region of the cluster: the nearest STS is the fastest, and does not depend on another region.
    #[arg(long, env = "ROLECALL_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// URL of STS instead of the region's own, such as that of a VPC endpoint
    #[arg(long, env = "ROLECALL_STS_ENDPOINT", value_name = "URL")]
    pub sts_endpoint: Option<String>,
    /// Use the region's FIPS endpoint
    #[arg(
        long,
        env = "ROLECALL_STS_FIPS",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        value_parser = BoolishValueParser::new()
    )]
    pub sts_fips: bool,
    /// Use the region's dual-stack endpoint; needed on nodes with IPv6 alone
    #[arg(
        long,
        env = "ROLECALL_STS_DUAL_STACK",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        value_parser = BoolishValueParser::new()
    )]
    pub sts_dual_stack: bool,
    /// Exchanges with STS that may be under way at a time, on this node
    ///
    /// It matters while STS is slow: where it takes 15 s and ten pods come each second, 150 are under way.
    #[arg(
        long,
        env = "ROLECALL_STS_CONCURRENCY",
        value_name = "COUNT",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub sts_concurrency: u32,
    /// Exchanges with STS that may have begun within the last second and be under way, on this node
    ///
    /// Raise it where nodes have hundreds of pods that start together; STS throttles per account, and the roles
    /// of all nodes count.
    #[arg(
        long,
        env = "ROLECALL_STS_BURST",
        value_name = "COUNT",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub sts_burst: u32,
    /// How long a connection to STS may take to stand
    #[arg(
        long,
        env = "ROLECALL_STS_CONNECT_TIMEOUT",
        value_name = "TIME",
        default_value = "1s",
        value_parser = duration
    )]
    pub sts_connect_timeout: Duration,
    /// How long one attempt may wait for the answer of STS before it is cut
    ///
    /// A slow STS is not a dead one: keep it well above the slowest answer seen. A request waits no longer than
    /// --give-up-after, so the two are the same.
    #[arg(
        long,
        env = "ROLECALL_STS_ATTEMPT_TIMEOUT",
        value_name = "TIME",
        default_value = "20s",
        value_parser = duration
    )]
    pub sts_attempt_timeout: Duration,
    /// After how much silence a second attempt runs beside the first; the first answer wins
    ///
    /// A time not below --sts-attempt-timeout turns it off.
    #[arg(
        long,
        env = "ROLECALL_STS_HEDGE_AFTER",
        value_name = "TIME",
        default_value = "3s",
        value_parser = duration
    )]
    pub sts_hedge_after: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Sessions")]
pub struct SessionArgs {
    /// How long a session lasts, 15m to 12h, unless the pod's annotation says otherwise
    ///
    /// No role may be asked for more than its maximum session duration, which is 1h unless it was raised.
    #[arg(
        long,
        env = "ROLECALL_SESSION_DURATION",
        value_name = "TIME",
        default_value = "1h",
        value_parser = duration
    )]
    pub session_duration: Duration,
    /// Template of the RoleSessionName, which CloudTrail shows, of {namespace}, {pod}, {serviceAccount}, {cluster}, {node}
    /// and text
    #[arg(long, env = "ROLECALL_SESSION_NAME", value_name = "TEMPLATE", default_value = "{namespace}.{pod}")]
    pub session_name: String,
    /// Name of this cluster, for {cluster} in --session-name
    #[arg(long, env = "ROLECALL_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Different roles that one pod may ask for
    #[arg(
        long,
        env = "ROLECALL_MAX_ROLES_PER_POD",
        value_name = "COUNT",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_roles_per_pod: u32,
}
