//! Flags about the endpoint that pods ask, and its limits.

use std::{net::SocketAddr, time::Duration};

use clap::ValueEnum;
use rolecall_process::value::{duration, socket_address};

/// What must tell who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Witness {
    /// The pod's address, and its token where it was given one
    #[value(name = "token+address")]
    TokenAndAddress,
    /// The token alone, from any address: weaker
    #[value(name = "token")]
    Token,
}

/// Whether a pod may name a role in the path of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RolesInPath {
    /// It may; the trust policy of the role decides
    Allow,
    /// It gets the role of its annotation and no other
    Refuse,
}

/// What a request gets whose credentials take longer than the hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SlowAnswer {
    /// The answer is begun with white space, which keeps the SDK's timeouts from firing
    Drip,
    /// Silence until the answer is there
    Hold,
}

/// Whether the daemon puts addresses of `--listen` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ManageAddresses {
    /// It puts those on lo that the node does not have, and puts them back when they go
    On,
    /// They are there, or somebody else puts them
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ListenArgs {
    /// Addresses to serve pods on; repeatable or separated by commas
    ///
    /// SDKs accept plain http from these two and from 169.254.170.2 alone. A family that the node does not have
    /// is left out.
    #[arg(
        long,
        env = "ROLECALL_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "169.254.170.23:80,[fd00:ec2::23]:80",
        value_parser = socket_address
    )]
    pub listen: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Endpoint")]
pub struct EndpointArgs {
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Whether the daemon puts the addresses of --listen on the node's loopback interface
    ///
    /// Only those that no network routes (169.254.0.0/16 and fc00::/7) and that the node does not have yet. They
    /// stay when the daemon ends; rolecall-daemon cleanup removes them. It needs CAP_NET_ADMIN.
    #[arg(long, env = "ROLECALL_MANAGE_ADDRESSES", value_name = "RULE", value_enum, default_value = "on")]
    pub manage_addresses: ManageAddresses,
    /// Whether a pod may ask for a role by its ARN in the path, beside that of its annotation
    #[arg(long, env = "ROLECALL_ROLE_IN_PATH", value_name = "RULE", value_enum, default_value = "allow")]
    pub role_in_path: RolesInPath,
    /// How long a request is held in silence for its credentials, below 1s: most SDKs give up after 1 s
    ///
    /// What is decided by then is an ordinary reply with its true status.
    #[arg(long, env = "ROLECALL_HOLD", value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub hold: Duration,
    /// What a request gets whose credentials take longer than --hold
    #[arg(long, env = "ROLECALL_SLOW_ANSWER", value_name = "WAY", value_enum, default_value = "drip")]
    pub slow_answer: SlowAnswer,
    /// Time between two pieces of white space in a begun answer, 100ms to 900ms
    #[arg(
        long,
        env = "ROLECALL_DRIP_INTERVAL",
        value_name = "TIME",
        default_value = "400ms",
        value_parser = duration
    )]
    pub drip_interval: Duration,
    /// Age at which a request that still has no credentials is given up, above 1.1s and up to 21s
    ///
    /// The newest Rust SDK gives up by itself after 21.6 s. With --slow-answer=hold, up to 60s.
    #[arg(
        long,
        env = "ROLECALL_GIVE_UP_AFTER",
        value_name = "TIME",
        default_value = "20s",
        value_parser = duration
    )]
    pub give_up_after: Duration,
    /// How long a request whose pod is not known yet waits in silence for the watch
    ///
    /// Raise it, up to --give-up-after, where the API server is slow to show new pods.
    #[arg(
        long,
        env = "ROLECALL_CALLER_WAIT",
        value_name = "TIME",
        default_value = "5s",
        value_parser = duration
    )]
    pub caller_wait: Duration,
    /// How long a client may take to send the head of its request
    #[arg(
        long,
        env = "ROLECALL_HEADER_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        value_parser = duration
    )]
    pub header_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests that one pod may make per second, in the long run; twice as many at once
    ///
    /// An SDK asks a few times an hour; a shell loop that starts the CLI asks once per start.
    #[arg(
        long,
        env = "ROLECALL_MAX_REQUESTS_PER_SECOND_PER_POD",
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_requests_per_second_per_pod: u32,
    /// Connections that one pod may have open
    #[arg(
        long,
        env = "ROLECALL_MAX_CONNECTIONS_PER_POD",
        value_name = "COUNT",
        default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_connections_per_pod: u32,
    /// Requests of one pod that may wait for credentials at a time
    #[arg(
        long,
        env = "ROLECALL_MAX_WAITING_PER_POD",
        value_name = "COUNT",
        default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_waiting_per_pod: u32,
    /// Connections of all pods together; each takes a file descriptor
    #[arg(
        long,
        env = "ROLECALL_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 16384,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections: u32,
}
