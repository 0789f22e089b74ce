//! Flags about the process: its admin doors, its end and its logs.

use std::{path::PathBuf, time::Duration};

use clap::{
    ArgAction,
    builder::{BoolishValueParser, OsStringValueParser, TypedValueParser},
};
use rolecall_process::{
    telemetry::{LogFilter, LogFormat},
    value::{ListenAddress, duration},
};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Loopback address of /healthz, /readyz and /log-level, or off
    #[arg(long, env = "ROLECALL_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9910")]
    pub admin_listen: ListenAddress,
    #[command(flatten)]
    pub admin_socket: AdminSocketArgs,
    /// Address of /metrics, or off
    ///
    /// Set it to `[::]:9911`, every address of the node, for a Prometheus that runs elsewhere; without IPv6 that means
    /// 0.0.0.0:9911. The metrics name no pod and hold no secret.
    #[arg(long, env = "ROLECALL_METRICS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9911")]
    pub metrics_listen: ListenAddress,
    #[command(flatten)]
    pub handover: HandoverArgs,
    /// How long requests under way may take to end after SIGTERM
    ///
    /// Keep it below the pod's terminationGracePeriodSeconds, which is 30 unless set.
    #[arg(
        long,
        env = "ROLECALL_DRAIN_DEADLINE",
        value_name = "TIME",
        default_value = "25s",
        value_parser = duration
    )]
    pub drain_deadline: Duration,
    /// Check the settings, print those in force, and exit
    #[arg(long, env = "ROLECALL_CHECK_CONFIG", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub check_config: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct HandoverArgs {
    /// Unix socket where the next daemon of this node takes over; off unless given
    ///
    /// A daemon that starts asks there for the listening sockets and the credentials of the one that serves, and no
    /// request fails in between. All daemons of a node must share the directory, which root alone may enter.
    #[arg(
        long,
        env = "ROLECALL_HANDOVER_SOCKET",
        value_name = "FILE",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    pub handover_socket: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct AdminSocketArgs {
    /// Unix socket of this daemon alone, which the commands probe and log-level ask
    #[arg(
        long,
        env = "ROLECALL_ADMIN_SOCKET",
        value_name = "FILE",
        default_value = "/run/rolecall/admin.sock"
    )]
    pub admin_socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Form of the log, which goes to standard error
    #[arg(long, env = "ROLECALL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which events are logged: a level, or directives such as info,rolecall_daemon::sts=debug
    ///
    /// Libraries are kept at warn unless a directive names them. It can be changed while the daemon runs:
    /// rolecall-daemon log-level.
    #[arg(long, env = "ROLECALL_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: LogFilter,
}
