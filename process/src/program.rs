//! What every program's `main` does around its own work: it says what is wrong, starts the log and the threads, runs,
//! and tells by its exit code how that ended.

use std::{
    error, fmt,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    thread::available_parallelism,
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    drain::EssentialTaskEnded,
    exit::{FAILED, OS_ERROR, SOFTWARE, USAGE, say},
    hardening,
    probe::{self, Question},
    setting::Mistake,
    telemetry::{self, Log},
};

/// Most threads of a program. Its work is waiting and short answers; a node with many cores needs no more of them.
const MAX_WORKERS: usize = 4;

/// How long threads that are stuck may keep the process.
const STUCK: Duration = Duration::from_secs(1);

/// A program, as it is told from others.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What one types to run it.
    pub name: &'static str,
    pub version: &'static str,
    /// What its threads are called.
    pub threads: &'static str,
}

/// Checked settings. Written, they are the flags that would bring them about, one a line, without secrets.
pub trait Settings: fmt::Display {
    fn log(&self) -> &telemetry::Config;

    /// What is allowed but should be known, to be logged at the start.
    fn warnings(&self) -> Vec<String>;
}

/// Why a program did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the system has to give was not to be had.
    #[error(transparent)]
    Boot(Box<dyn error::Error + Send + Sync>),
    /// A part without which the program is of no use ended.
    #[error(transparent)]
    EssentialTask(#[from] EssentialTaskEnded),
    /// A second signal came before the drain was over.
    #[error("{0} during the drain: ended at once")]
    Interrupted(&'static str),
}

impl Error {
    /// What kept the program from starting.
    pub fn boot(error: impl error::Error + Send + Sync + 'static) -> Self {
        Self::Boot(Box::new(error))
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Boot(_) => OS_ERROR,
            Self::EssentialTask(_) => SOFTWARE,
            Self::Interrupted(_) => FAILED,
        }
    }
}

impl Program {
    /// Runs `work` with `settings` to its end; with `check_only` shows the settings instead.
    pub fn run<S: Settings, F: Future<Output = Result<(), Error>>>(
        self,
        settings: Result<S, Vec<Mistake>>,
        check_only: bool,
        work: impl FnOnce(S, Log) -> F,
    ) -> ExitCode {
        let settings = match settings {
            Ok(settings) => settings,
            Err(mistakes) => {
                for mistake in mistakes {
                    say(&format!("error: {mistake}"));
                }
                say(&format!("{} --help explains every flag", self.name));
                return ExitCode::from(USAGE);
            }
        };
        if check_only {
            let _ = writeln!(io::stdout(), "{settings}");
            for warning in settings.warnings() {
                say(&format!("warning: {warning}"));
            }
            return ExitCode::SUCCESS;
        }
        // The writer is dropped last: every line until then is written, however this ends.
        let (log, _writer) = match telemetry::init(settings.log()) {
            Ok(started) => started,
            Err(error) => {
                say(&format!("error: start the log: {error}"));
                return ExitCode::from(SOFTWARE);
            }
        };
        let shown = settings.to_string().replace('\n', " ");
        tracing::info!(version = self.version, settings = %shown, "starting");
        for warning in settings.warnings() {
            tracing::warn!("{warning}");
        }
        hardening::close_memory();
        let runtime = match self.workers() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "start the threads");
                return ExitCode::from(OS_ERROR);
            }
        };
        let result = runtime.block_on(work(settings, log));
        runtime.shutdown_timeout(STUCK);
        match result {
            Ok(()) => {
                tracing::info!("ended");
                ExitCode::SUCCESS
            }
            Err(error) => {
                tracing::error!("{}", telemetry::chain(&error));
                ExitCode::from(error.exit_code())
            }
        }
    }

    fn workers(self) -> io::Result<Runtime> {
        let cores = available_parallelism().map_or(1, usize::from);
        Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, MAX_WORKERS))
            .thread_name(self.threads)
            .enable_all()
            .build()
    }
}

/// Shows what clap has to say: why a line is not understood, or the help that was asked for.
pub fn show(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// Asks the program that runs behind `socket`, and shows its answer.
pub fn ask(question: &Question, socket: &Path) -> ExitCode {
    if probe::run(question, socket) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("bind 127.0.0.1:80")]
    struct Bind(#[source] io::Error);

    #[test]
    fn what_keeps_a_program_from_starting_is_told_once_with_its_cause() {
        let error = Error::boot(Bind(io::Error::other("in use")));
        assert_eq!(telemetry::chain(&error).to_string(), "bind 127.0.0.1:80: in use");
        assert_eq!(error.exit_code(), OS_ERROR);
        let error = Error::Interrupted("SIGTERM");
        assert_eq!(telemetry::chain(&error).to_string(), "SIGTERM during the drain: ended at once");
        assert_eq!(error.exit_code(), FAILED);
    }
}
