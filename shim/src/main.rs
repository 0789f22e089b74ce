//! The process: parse, check, harden, run, and say by the exit code how it ended.

use std::{
    io::{self, Write},
    process::ExitCode,
    thread::available_parallelism,
    time::Duration,
};

use rolecall_process::{
    exit::{FAILED, OS_ERROR, SOFTWARE, USAGE, say},
    hardening,
    probe::{self, Question},
    telemetry,
};
use rolecall_shim::{
    app,
    args::{self, Command, Probe, RunArgs},
    config::Config,
};
use tokio::runtime::{Builder, Runtime};

/// Threads that answer reviews. A review is a fraction of a millisecond of work.
const MAX_WORKERS: usize = 4;

fn main() -> ExitCode {
    let args = match args::parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let (question, socket) = match args.command {
        None => return run(args.run),
        Some(Command::Probe { probe: Probe::Live, socket }) => (Question::Live, socket),
        Some(Command::Probe { probe: Probe::Ready, socket }) => (Question::Ready, socket),
        Some(Command::LogLevel { filter: None, socket }) => (Question::LogLevel, socket),
        Some(Command::LogLevel { filter: Some(filter), socket }) => (Question::SetLogLevel(filter), socket),
    };
    let good = probe::run(&question, &socket.admin_socket);
    if good { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn run(args: RunArgs) -> ExitCode {
    let check_only = args.process.check_config;
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                say(&format!("error: {mistake}"));
            }
            say("rolecall-shim --help explains every flag");
            return ExitCode::from(USAGE);
        }
    };
    if check_only {
        let _ = writeln!(io::stdout(), "{config}");
        for warning in &config.warnings {
            say(&format!("warning: {warning}"));
        }
        return ExitCode::SUCCESS;
    }
    let log_level = match telemetry::init(&config.log) {
        Ok(log_level) => log_level,
        Err(error) => {
            say(&format!("error: start the log: {error}"));
            return ExitCode::from(SOFTWARE);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = %config.to_string().replace('\n', " "), "starting");
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    hardening::close_memory();
    let runtime = match workers() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "start the threads");
            return ExitCode::from(OS_ERROR);
        }
    };
    let result = runtime.block_on(app::run(config, log_level));
    // A thread that is stuck must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => {
            tracing::info!("ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{}", telemetry::chain(&error));
            ExitCode::from(match error {
                app::Error::Boot(_) => OS_ERROR,
                app::Error::EssentialTask(_) => SOFTWARE,
                app::Error::Interrupted(_) => FAILED,
            })
        }
    }
}

fn workers() -> io::Result<Runtime> {
    let cores = available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads(cores.clamp(1, MAX_WORKERS))
        .thread_name("webhook")
        .enable_all()
        .build()
}
