//! Flags about the process: its doors, its end and its logs.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, ValueEnum, builder::BoolishValueParser, value_parser};
use rolecall_process::{
    telemetry::{LogFilter, LogFormat},
    value::{ListenAddress, duration, socket_address},
};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Endpoint")]
pub struct EndpointArgs {
    /// Address at which the API server calls
    #[arg(
        long,
        env = "ROLECALL_SHIM_LISTEN",
        value_name = "ADDRESS",
        default_value = "[::]:443",
        value_parser = socket_address
    )]
    pub listen: SocketAddr,
    /// Port at which the API server calls, in place of that of --listen
    #[arg(long, env = "ROLECALL_SHIM_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// Open connections of all callers together
    #[arg(
        long,
        env = "ROLECALL_SHIM_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value = "1024",
        value_parser = value_parser!(u32).range(8..=100_000)
    )]
    pub max_connections: u32,
    /// Tell pods that should have been injected and were not, by an Event and a metric
    #[arg(
        long,
        env = "ROLECALL_SHIM_MISSED_INJECTION",
        value_name = "SWITCH",
        value_enum,
        default_value = "on"
    )]
    pub missed_injection: Switch,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is done
    On,
    /// It is not done
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Loopback address of /healthz, /readyz and /log-level, or off
    #[arg(
        long,
        env = "ROLECALL_SHIM_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9910"
    )]
    pub admin_listen: ListenAddress,
    #[command(flatten)]
    pub admin_socket: AdminSocketArgs,
    /// Address of /metrics, or off
    #[arg(long, env = "ROLECALL_SHIM_METRICS_LISTEN", value_name = "ADDRESS", default_value = "[::]:9999")]
    pub metrics_listen: ListenAddress,
    /// Port of /metrics, in place of that of --metrics-listen
    #[arg(long, env = "ROLECALL_SHIM_METRICS_PORT", value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// How long calls are still taken after SIGTERM, while the cluster learns that this replica is going
    #[arg(
        long,
        env = "ROLECALL_SHIM_DRAIN_DELAY",
        value_name = "TIME",
        default_value = "5s",
        value_parser = duration
    )]
    pub drain_delay: Duration,
    /// How long calls under way may take to end after that
    ///
    /// Keep both together below the pod's terminationGracePeriodSeconds, which is 30 unless set.
    #[arg(
        long,
        env = "ROLECALL_SHIM_DRAIN_DEADLINE",
        value_name = "TIME",
        default_value = "20s",
        value_parser = duration
    )]
    pub drain_deadline: Duration,
    /// Check the settings, print those in force, and exit
    #[arg(long, env = "ROLECALL_SHIM_CHECK_CONFIG", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub check_config: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct AdminSocketArgs {
    /// Unix socket of this shim alone, which the commands probe and log-level ask
    #[arg(
        long,
        env = "ROLECALL_SHIM_ADMIN_SOCKET",
        value_name = "FILE",
        default_value = "/run/rolecall/admin.sock"
    )]
    pub admin_socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Form of the log, which goes to standard error
    #[arg(long, env = "ROLECALL_SHIM_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which events are logged: a level, or directives such as info,rolecall_shim::cache=debug [default: info]
    ///
    /// Libraries are kept at warn unless a directive names them. It can be changed while the shim runs:
    /// rolecall-shim log-level.
    #[arg(long, env = "ROLECALL_SHIM_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<LogFilter>,
    /// Verbosity as Go programs count it: from 4 on, debug
    #[arg(long = "v", short = 'v', env = "ROLECALL_SHIM_V", value_name = "NUMBER")]
    pub verbosity: Option<i32>,
}
