//! The process: parse, check, harden, run, and say by the exit code how it ended.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rolecall_daemon::{
    app,
    args::{self, Command, Probe, RunArgs},
    config::{self, Config},
    node::cleanup,
};
use rolecall_process::{
    exit::{FAILED, OS_ERROR, say},
    probe::Question,
    program::{self, Program},
    signal::Signals,
};
use tokio::runtime::Builder;

const PROGRAM: Program =
    Program { name: "rolecall-daemon", version: env!("CARGO_PKG_VERSION"), threads: "data-plane" };

/// Files beside the pods' connections: listeners, STS, the API server, tokens, the admin doors.
const OWN_FILES: usize = 256;

fn main() -> ExitCode {
    let args = match args::parse() {
        Ok(args) => args,
        Err(error) => return program::show(&error),
    };
    let (question, socket) = match args.command {
        None => return run(args.run),
        Some(Command::Cleanup { listen, handover, programs, wait }) => {
            return clean_up(config::cleanup(&listen, handover, programs), wait);
        }
        Some(Command::Probe { probe: Probe::Live, socket }) => (Question::Live, socket),
        Some(Command::Probe { probe: Probe::Ready, socket }) => (Question::Ready, socket),
        Some(Command::LogLevel { filter: None, socket }) => (Question::LogLevel, socket),
        Some(Command::LogLevel { filter: Some(filter), socket }) => (Question::SetLogLevel(filter), socket),
    };
    program::ask(&question, &socket.admin_socket)
}

fn run(args: RunArgs) -> ExitCode {
    let check_only = args.process.check_config;
    PROGRAM.run(Config::try_from(args), check_only, |config, log| {
        raise_file_limit(config.server.listener.max_connections);
        app::run(config, log)
    })
}

fn clean_up(config: cleanup::Config, wait: bool) -> ExitCode {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: start the event loop: {error}"));
            return ExitCode::from(OS_ERROR);
        }
    };
    let report = runtime.block_on(cleanup::run(config));
    for what in &report.removed {
        let _ = writeln!(io::stdout(), "removed {what}");
    }
    for what in &report.failed {
        say(&format!("error: {what}"));
    }
    if report.removed.is_empty() && report.failed.is_empty() {
        let _ = writeln!(io::stdout(), "nothing to remove");
    }
    if !report.failed.is_empty() {
        return ExitCode::from(FAILED);
    }
    if wait && let Err(error) = runtime.block_on(signal()) {
        say(&format!("error: wait for a signal: {error}"));
        return ExitCode::from(OS_ERROR);
    }
    ExitCode::SUCCESS
}

/// Waits for a signal that ends the process. The first process of a container ignores those it has no handler for.
async fn signal() -> io::Result<()> {
    Signals::catch()?.next().await;
    Ok(())
}

/// Takes every file descriptor that the process may have.
///
/// The soft limit is often 1024, for the sake of programs that use `select`; it would stop the endpoint long
/// before its own limit does.
fn raise_file_limit(connections: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit < (connections + OWN_FILES) as u64 => tracing::warn!(
            limit,
            "--max-connections {connections}: there are not as many file descriptors; lower it or raise the \
             container's limit (ulimit -n)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "raise the limit of open files"),
    }
}
