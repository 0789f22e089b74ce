//! What was typed: flags, their environment variables and the proxies of the environment.
//!
//! Nothing is opened, resolved or compared here. What a value says by itself is checked while it is parsed; what
//! it means beside the others is for [`crate::config`]. This is the only place that reads the environment.

mod endpoint;
mod metadata;
mod pods;
mod process;
mod sts;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use self::{
    endpoint::{EndpointArgs, LimitArgs, ListenArgs, ManageAddresses, RolesInPath, SlowAnswer, Witness},
    metadata::{FirewallProgramArgs, MetadataArgs, MetadataFirewall},
    pods::{PodArgs, TokenArgs, WriteEvents},
    process::{AdminSocketArgs, HandoverArgs, LogArgs, ProcessArgs},
    sts::{SessionArgs, StsArgs},
};
use rolecall_process::telemetry::LogFilter;

/// Gives every pod of a Kubernetes node its own AWS credentials.
///
/// Runs on each node, in the host network. It watches the node's pods, exchanges the projected ServiceAccount
/// token of a pod for credentials of its IAM role, and serves them to the AWS SDK in the pod.
///
/// Every flag can be given as an environment variable as well; a flag wins over its variable. Times are written
/// with a unit, as in 700ms, 20s or 1h30m; a bare number is seconds.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "rolecall-daemon",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND",
    max_term_width = 100,
    after_long_help = "Exit codes: 0 ended as asked, 1 a probe or command failed, 64 a setting is wrong, \
                       70 an essential part failed while running, 71 the system gave no address, file or thread."
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of running the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Ask the daemon of this container how it is; for exec probes
    ///
    /// Exits 0 for yes and 1 for no, with the reason on standard error.
    Probe {
        /// What to ask
        probe: Probe,
        #[command(flatten)]
        socket: AdminSocketArgs,
    },
    /// Show the log filter of the running daemon, or set it
    LogLevel {
        /// The filter from now on, such as debug or info,rolecall_daemon::sts=debug; absent: show the present one
        filter: Option<LogFilter>,
        #[command(flatten)]
        socket: AdminSocketArgs,
    },
    /// Remove from the node what the daemon leaves on it: its addresses, its rules, the hand-over socket
    ///
    /// Run it after the daemon is gone for good: one that runs puts everything back. It may be run again.
    Cleanup {
        #[command(flatten)]
        listen: ListenArgs,
        #[command(flatten)]
        handover: HandoverArgs,
        #[command(flatten)]
        programs: FirewallProgramArgs,
        /// Once all is removed, wait for SIGTERM, as a pod of a DaemonSet has to
        #[arg(long)]
        wait: bool,
    },
}

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Do the event loops turn? For a liveness probe
    Live,
    /// Are pods known and listeners bound? For a readiness probe
    Ready,
}

/// The settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub pods: PodArgs,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub sts: StsArgs,
    #[command(flatten)]
    pub sessions: SessionArgs,
    #[command(flatten)]
    pub endpoint: EndpointArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub metadata: MetadataArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Variables that other programs know too, which have no flag.
    #[arg(skip)]
    pub environment: Environment,
}

/// Variables that are not ours but mean us too. An empty one counts as absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `AWS_REGION`, which stands in for `--region`.
    pub aws_region: Option<String>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https_proxy: Option<String>,
    /// `HTTP_PROXY` or `http_proxy`.
    pub http_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`.
    pub no_proxy: Option<String>,
}

/// Parses the command line of the process and its environment.
///
/// # Errors
/// What was typed is not understood, or asks for the help or the version: [`clap::Error::use_stderr`] tells.
pub fn parse() -> Result<Args, clap::Error> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    let environment = Environment::read(|name| std::env::var(name).ok());
    let mut args = from_matches(command().try_get_matches()?)?;
    args.run.environment = environment;
    Ok(args)
}

/// Parses `line`, whose first word is the program's name, without the variables of [`Environment`].
///
/// # Errors
/// As [`parse`].
pub fn parse_from<T: AsRef<str>>(line: impl IntoIterator<Item = T>) -> Result<Args, clap::Error> {
    from_matches(command().try_get_matches_from(line.into_iter().map(|word| word.as_ref().to_owned()))?)
}

/// The flags and commands, as clap knows them.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

impl Environment {
    /// The upper-case name of a proxy's variable wins, as in the Go programs around us.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let first =
            |names: &[&str]| names.iter().find_map(|name| get(name).filter(|value| !value.trim().is_empty()));
        Self {
            aws_region: first(&["AWS_REGION"]),
            https_proxy: first(&["HTTPS_PROXY", "https_proxy"]),
            http_proxy: first(&["HTTP_PROXY", "http_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]),
        }
    }
}

/// A proxy's URL may hold a password.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("aws_region", &self.aws_region).finish_non_exhaustive()
    }
}

fn from_matches(matches: clap::ArgMatches) -> Result<Args, clap::Error> {
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn flags(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
        command.get_arguments().filter(|arg| arg.get_long().is_some())
    }

    #[test]
    fn every_flag_has_a_help_a_heading_and_a_variable_of_its_name() {
        let command = command();
        command.clone().debug_assert();
        for flag in flags(&command) {
            let long = flag.get_long().unwrap();
            let help = flag.get_help().unwrap_or_else(|| panic!("--{long} has no help")).to_string();
            assert!(!help.ends_with('.') && !help.is_empty(), "--{long}: {help}");
            assert!(flag.get_help_heading().is_some(), "--{long} is in no group");
            let variable = format!("ROLECALL_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{long}");
        }
        assert_eq!(flags(&command).count(), 46);
    }

    #[test]
    fn every_flag_is_in_the_documentation_with_its_default() {
        let text = include_str!("../../docs/operations.md");
        let table = text.split_once("\n## Flags\n").unwrap().1;
        for flag in flags(&command()) {
            let long = flag.get_long().unwrap();
            let row = table.lines().find(|line| line.starts_with(&format!("| `--{long}` |")));
            let row = row.unwrap_or_else(|| panic!("--{long} has no row"));
            for value in flag.get_default_values() {
                assert!(row.contains(&format!("| `{}` |", value.to_string_lossy())), "{row}");
            }
        }
    }

    #[test]
    fn the_help_is_in_groups_and_tells_units_and_defaults() {
        let help = command().render_long_help().to_string();
        let mut rest = help.as_str();
        for heading in [
            "Node and pods:",
            "Tokens and callers:",
            "AWS STS:",
            "Sessions:",
            "Endpoint:",
            "Limits:",
            "Metadata service:",
            "Process:",
            "Logs:",
        ] {
            let at = rest.find(heading).unwrap_or_else(|| panic!("{heading} is not there in turn:\n{help}"));
            rest = &rest[at..];
        }
        for flag in flags(&command()) {
            let by_default = flag.get_default_values();
            assert!(
                flag.is_hide_default_value_set()
                    || by_default
                        .iter()
                        .all(|value| help.contains(&format!("[default: {}", value.to_string_lossy()))),
                "{by_default:?}"
            );
        }
    }

    #[test]
    fn a_value_of_the_wrong_form_names_flag_value_and_remedy() {
        for (line, parts) in [
            ("--hold=soon", ["--hold", "'soon'", "700ms"]),
            ("--listen=169.254.170.23", ["--listen", "'169.254.170.23'", "127.0.0.1:8080"]),
            ("--admin-listen=no", ["--admin-listen", "'no'", "or off"]),
            ("--slow-answer=wait", ["--slow-answer", "'wait'", "drip"]),
            ("--witness=address", ["--witness", "'address'", "token+address"]),
            ("--role-in-path=no", ["--role-in-path", "'no'", "refuse"]),
            ("--sts-fips=maybe", ["--sts-fips", "'maybe'", "not a boolean"]),
            ("--sts-concurrency=0", ["--sts-concurrency", "'0'", "1..=4096"]),
            ("--events=no", ["--events", "'no'", "off"]),
            ("--manage-addresses=no", ["--manage-addresses", "'no'", "off"]),
            ("--metadata-firewall=none", ["--metadata-firewall", "'none'", "nftables"]),
            (
                "--metadata-exempt=kube-system",
                ["--metadata-exempt", "'kube-system'", "namespace/serviceaccount"],
            ),
            ("--log-level=inof", ["--log-level", "'inof'", "write a level"]),
            ("--log-format=xml", ["--log-format", "'xml'", "json"]),
            ("--holt=1s", ["--holt", "unexpected argument", "--hold"]),
        ] {
            let error = parse_from(["rolecall-daemon", line]).unwrap_err();
            let message = error.to_string();
            assert!(error.use_stderr(), "{line}");
            assert!(parts.iter().all(|part| message.contains(part)), "{line}: {message}");
        }
    }

    #[test]
    fn commands_take_the_socket_and_nothing_of_the_daemon() {
        let parse = |line: &str| parse_from(std::iter::once("rolecall-daemon").chain(line.split(' ')));
        let Some(Command::Probe { probe: Probe::Ready, socket }) =
            parse("probe ready --admin-socket /x").unwrap().command
        else {
            panic!("not a probe")
        };
        assert_eq!(socket.admin_socket, Path::new("/x"));
        let Some(Command::Probe { probe: Probe::Live, socket }) = parse("probe live").unwrap().command else {
            panic!("not a probe")
        };
        assert_eq!(socket.admin_socket, Path::new("/run/rolecall/admin.sock"));
        let Some(Command::LogLevel { filter: Some(filter), .. }) = parse("log-level debug").unwrap().command
        else {
            panic!("not the log level")
        };
        assert_eq!(filter.as_str(), "debug");
        let Some(Command::Cleanup { listen, handover, programs, wait: false }) =
            parse("cleanup --listen 169.254.170.2:80 --iptables iptables-legacy --handover-socket /h")
                .unwrap()
                .command
        else {
            panic!("not a cleanup")
        };
        assert_eq!(listen.listen, ["169.254.170.2:80".parse().unwrap()]);
        assert_eq!(handover.handover_socket.as_deref(), Some(Path::new("/h")));
        assert_eq!(programs.iptables, Path::new("iptables-legacy"));
        assert!(matches!(
            parse("cleanup --wait").unwrap().command,
            Some(Command::Cleanup { wait: true, .. })
        ));
        for bad in
            ["probe", "probe well", "--hold=1s probe live", "probe live --hold=1s", "log-level inof", "run"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxys_upper_case_variable_wins_and_an_empty_one_is_none() {
        let read = |list: &[(&str, &str)]| {
            Environment::read(|name| {
                list.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let both = read(&[("HTTPS_PROXY", "upper"), ("https_proxy", "lower"), ("no_proxy", "a,b")]);
        assert_eq!(both.https_proxy.as_deref(), Some("upper"));
        assert_eq!(both.no_proxy.as_deref(), Some("a,b"));
        let empty = read(&[("HTTPS_PROXY", ""), ("https_proxy", "lower"), ("AWS_REGION", " ")]);
        assert_eq!(empty.https_proxy.as_deref(), Some("lower"));
        assert_eq!(empty.aws_region, None);
    }
}
