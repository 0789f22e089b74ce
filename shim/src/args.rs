//! What was typed: flags and their environment variables, ours and those of the EKS webhook.
//!
//! Nothing is opened, resolved or compared here. What a value says by itself is checked while it is parsed; what
//! it means beside the others is for [`crate::config`]. This is the only place that reads the environment.

mod certificate;
mod go;
mod pods;
mod process;
mod sources;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use rolecall_process::telemetry::LogFilter;

pub use self::{
    certificate::{CertificateArgs, CertificateMode, TlsVersion},
    go::Ignored,
    pods::{NodeSelector, PodArgs},
    process::{AdminSocketArgs, EndpointArgs, LogArgs, ProcessArgs, Switch},
    sources::{IdentityArgs, KubernetesArgs, SourceArgs},
};

/// Points the pods of a cluster at the Rolecall daemon of their node.
///
/// A mutating admission webhook. It reads which IAM role a pod's ServiceAccount asks for, and gives the pod's
/// containers the token and the variables with which AWS SDKs get credentials of that role.
///
/// The command line of the EKS pod identity webhook is accepted as it stands. Every flag can be given as an
/// environment variable as well; a flag wins over its variable. Times are written with a unit, as in 700ms, 20s or
/// 1h30m; a bare number is seconds.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "rolecall-shim",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
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

/// What to do instead of running the shim.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Ask the shim of this container how it is; for exec probes
    ///
    /// Exits 0 for yes and 1 for no, with the reason on standard error.
    Probe {
        /// What to ask
        probe: Probe,
        #[command(flatten)]
        socket: AdminSocketArgs,
    },
    /// Show the log filter of the running shim, or set it
    LogLevel {
        /// The filter from now on, such as debug or info,rolecall_shim::cache=debug; absent: show the present one
        filter: Option<LogFilter>,
        #[command(flatten)]
        socket: AdminSocketArgs,
    },
}

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Do the event loops turn? For a liveness probe
    Live,
    /// Are the ServiceAccounts known and is the certificate trusted? For a readiness probe
    Ready,
}

/// The settings of the shim.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub pods: PodArgs,
    #[command(flatten)]
    pub sources: SourceArgs,
    #[command(flatten)]
    pub identities: IdentityArgs,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    #[command(flatten)]
    pub endpoint: EndpointArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Flags of the EKS webhook that were given and mean nothing here.
    #[arg(skip)]
    pub ignored: Vec<Ignored>,
}

/// Parses the command line of the process and its environment.
///
/// # Errors
/// What was typed is not understood, or asks for the help or the version: [`clap::Error::use_stderr`] tells.
pub fn parse() -> Result<Args, clap::Error> {
    // A word that is not UTF-8 can be no flag; clap is shown what is left of it and says so.
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    parse_from(words)
}

/// Parses `line`, whose first word is the program's name.
///
/// # Errors
/// As [`parse`].
pub fn parse_from<T: AsRef<str>>(line: impl IntoIterator<Item = T>) -> Result<Args, clap::Error> {
    let mut command = command();
    let line = line.into_iter().map(|word| word.as_ref().to_owned()).collect();
    let (line, ignored) = go::translate(&command, line);
    let matches = command.try_get_matches_from_mut(line)?;
    let mut args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    args.run.ignored = ignored;
    Ok(args)
}

/// The flags and commands, as clap knows them.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
            let variable = format!("ROLECALL_SHIM_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{long}");
        }
    }

    #[test]
    fn every_flag_is_in_the_documentation() {
        let text = include_str!("../../docs/shim.md");
        for flag in flags(&command()) {
            for name in flag.get_long_and_visible_aliases().unwrap() {
                assert!(text.contains(&format!("`--{name}`")), "--{name}");
            }
        }
    }

    #[test]
    fn the_help_is_in_groups() {
        let help = command().render_long_help().to_string();
        let mut rest = help.as_str();
        for heading in [
            "Pods:",
            "ServiceAccounts:",
            "EKS Pod Identity:",
            "API server:",
            "Certificate:",
            "Endpoint:",
            "Process:",
            "Logs:",
        ] {
            let at = rest.find(heading).unwrap_or_else(|| panic!("{heading} is not there in turn:\n{help}"));
            rest = &rest[at..];
        }
    }

    #[test]
    fn a_value_of_the_wrong_form_names_flag_value_and_remedy() {
        for (line, parts) in [
            ("--default-mode=both", ["--default-mode", "'both'", "container or irsa"]),
            ("--listen=0.0.0.0", ["--listen", "'0.0.0.0'", "127.0.0.1:8080"]),
            ("--admin-listen=no", ["--admin-listen", "'no'", "or off"]),
            ("--take-over-irsa=maybe", ["--take-over-irsa", "'maybe'", "not a boolean"]),
            ("--no-daemon-node-selector=x", ["--no-daemon-node-selector", "'x'", "type=virtual-kubelet"]),
            ("--tls-min-version=2", ["--tls-min-version", "'2'", "1.2 or 1.3"]),
            ("--drain-delay=soon", ["--drain-delay", "'soon'", "20s"]),
            ("--missed-injection=maybe", ["--missed-injection", "'maybe'", "off"]),
            ("--listenn=x", ["--listenn", "unexpected argument", "--listen"]),
            ("-listen=x", ["--listen", "'x'", "[::1]:8080"]),
        ] {
            let error = parse_from(["rolecall-shim", line]).unwrap_err();
            let message = error.to_string();
            assert!(error.use_stderr(), "{line}");
            assert!(parts.iter().all(|part| message.contains(part)), "{line}: {message}");
        }
    }

    #[test]
    fn commands_take_the_socket_and_nothing_of_the_shim() {
        let parse = |line: &str| parse_from(std::iter::once("rolecall-shim").chain(line.split(' ')));
        let Some(Command::Probe { probe: Probe::Ready, socket }) =
            parse("probe ready --admin-socket /x").unwrap().command
        else {
            panic!("not a probe")
        };
        assert_eq!(socket.admin_socket, Path::new("/x"));
        for bad in
            ["probe", "probe well", "--port=1 probe live", "probe live --port=1", "log-level inof", "run"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repeated_flag_counts_as_in_go_and_a_repeatable_one_adds_up() {
        let args = parse_from([
            "x",
            "--port=1",
            "--port",
            "2",
            "--no-daemon-node-selector=a=b",
            "--no-daemon-node-selector=c=d",
        ]);
        let run = args.unwrap().run;
        assert_eq!((run.endpoint.port, run.pods.no_daemon_node_selector.len()), (Some(2), 2));
    }
}
