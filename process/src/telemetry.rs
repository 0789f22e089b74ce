//! Logs: where they go, in which form, and at which level, which can change at run time.
//!
//! Logs go to standard error: standard output belongs to what a command was asked for, such as
//! `--check-config` and `log-level`, and a container runtime keeps both. They are written [`aside`].

mod aside;

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal},
    panic,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::registry::Registry as Metrics;
use tracing::{Dispatch, Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::filter_fn,
    fmt::MakeWriter,
    layer::SubscriberExt,
    reload,
    util::{SubscriberInitExt, TryInitError},
};

use self::aside::DroppedLines;
pub use self::aside::Writer;

/// Crates that say much at `info` that helps nobody run a daemon. A filter that names them is obeyed.
///
/// Each is a prefix: `kube` stands for `kube_client` and `kube_runtime` too. Where a crate is an error's source,
/// our own line tells it, so theirs is left out: hyper warns of each idle connection that it closes, kube of each
/// request that fails.
const NOISY: [(&str, &str); 8] = [
    ("aws", "warn"),
    ("h2", "warn"),
    ("hyper", "error"),
    ("kube", "off"),
    ("netlink", "warn"),
    ("rustls", "warn"),
    ("tower", "warn"),
    ("want", "warn"),
];

/// What is never logged, whatever the filter says: on an answer that it cannot parse, kube's client logs all of
/// it, which may be every pod of the node with its environment, and kube's watcher quotes the value it met.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    match metadata.target() {
        "kube_client::client" => *metadata.level() != Level::WARN,
        target => !target.starts_with("kube_runtime::watcher"),
    }
}

/// What [`init`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub format: LogFormat,
    pub filter: LogFilter,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line per event
    Text,
    /// One JSON object per event
    Json,
}

/// Which events are logged: a level, or several directives such as `info,rolecall_daemon::sts=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

/// Why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{problem}; write a level (off, error, warn, info, debug, trace), or directives such as info,kube=debug"
)]
pub struct LogFilterError {
    problem: String,
}

/// What a program shows and changes of its log while it runs.
pub struct Log {
    pub level: LogLevel,
    dropped: DroppedLines,
}

/// The filter in force, to be read and set at run time. Cloning is cheap.
#[derive(Clone)]
pub struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
    shown: Arc<Mutex<LogFilter>>,
}

/// The subscriber that should take a new filter is gone.
#[derive(Debug, thiserror::Error)]
#[error("set the log level")]
pub struct LogLevelError(#[source] reload::Error);

/// An error with all its sources, each after a colon: what happened, and why.
pub fn chain(error: &dyn Error) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        write!(f, "{error}")?;
        let mut source = error.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    })
}

/// Sends the process's logs, panics included, to standard error, as long as the [`Writer`] is kept.
///
/// # Errors
/// When the process has a subscriber already.
pub fn init(config: &Config) -> Result<(Log, Writer), TryInitError> {
    let (lines, dropped, writer) = aside::start(io::stderr());
    let (dispatch, level) = build(config, lines, io::stderr().is_terminal());
    dispatch.try_init()?;
    log_panics();
    Ok((Log { level, dropped }, writer))
}

/// A subscriber that writes to `writer`, where an event happens, and its log.
pub fn with_writer<W>(config: &Config, writer: W) -> (Dispatch, Log)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (dispatch, level) = build(config, writer, false);
    (dispatch, Log { level, dropped: DroppedLines::default() })
}

impl Log {
    /// Puts `rolecall_log_lines_dropped_total` into `registry`.
    pub fn register(&self, registry: &mut Metrics) {
        registry.register_collector(Box::new(self.dropped.clone()));
    }
}

impl LogLevel {
    /// The filter in force, as it was given.
    #[must_use]
    pub fn get(&self) -> LogFilter {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts `filter` in force for every event from now on.
    ///
    /// # Errors
    /// When logs are not written any more.
    pub fn set(&self, filter: LogFilter) -> Result<(), LogLevelError> {
        // The lock is held until both are changed, so that the last to set is the one that is shown.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        self.filter.reload(filter.to_env_filter()).map_err(LogLevelError)?;
        *shown = filter;
        Ok(())
    }
}

impl LogFilter {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn to_env_filter(&self) -> EnvFilter {
        EnvFilter::builder().parse_lossy(with_noise_kept_down(&self.0))
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let error = |problem: String| Err(LogFilterError { problem });
        let text = text.trim();
        if text.is_empty() {
            return error("the filter is empty".to_owned());
        }
        for directive in directives(text) {
            // A lone word would be the name of a module whose every event is logged, and nothing else is: `inof`
            // would silence the daemon.
            if !directive.contains('=') && directive.parse::<LevelFilter>().is_err() {
                return error(format!("{directive:?} is not a level"));
            }
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(cause) => error(cause.to_string()),
        }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn build<W>(config: &Config, writer: W, ansi: bool) -> (Dispatch, LogLevel)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(config.filter.to_env_filter());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let lines = match config.format {
        LogFormat::Text => lines.compact().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let lines = lines.with_filter(filter_fn(may_be_logged));
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(filter).with(lines));
    let shown = Arc::new(Mutex::new(config.filter.clone()));
    (dispatch, LogLevel { filter: handle, shown })
}

/// Makes a panic a log line of the chosen form, with its place, instead of loose text.
fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        tracing::error!(place, message, "a thread panicked");
    }));
}

/// Keeps the noisy crates down, in front of `filter`, whose own directives win.
fn with_noise_kept_down(filter: &str) -> String {
    let overall = directives(filter).filter_map(|one| one.parse::<LevelFilter>().ok()).last();
    // Who asks for `error` or less does not want to hear more from these.
    if overall.is_none_or(|overall| overall < LevelFilter::WARN) {
        return filter.to_owned();
    }
    let mut all = NOISY.map(|(name, level)| format!("{name}={level}")).join(",");
    all.push(',');
    all.push_str(filter);
    all
}

fn directives(filter: &str) -> impl Iterator<Item = &str> {
    filter.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

/// Logs kept in memory, for the tests of every part.
#[cfg(test)]
pub(crate) mod test {
    use tracing::subscriber::DefaultGuard;

    use super::*;

    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        /// Takes the events of this thread until the guard is dropped.
        pub(crate) fn subscribe(&self, filter: &str) -> DefaultGuard {
            tracing::dispatcher::set_default(&self.dispatch(LogFormat::Text, filter).0)
        }

        pub(crate) fn dispatch(&self, format: LogFormat, filter: &str) -> (Dispatch, LogLevel) {
            let sink = self.clone();
            let config = Config { format, filter: filter.parse().unwrap() };
            build(&config, move || sink.clone(), false)
        }

        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{test::Captured, *};

    /// The messages that pass `filter`, out of one per target and level.
    #[track_caller]
    fn check_passing(filter: &str, expect: &[&str]) {
        let captured = Captured::default();
        tracing::dispatcher::with_default(&captured.dispatch(LogFormat::Text, filter).0, || {
            tracing::debug!("ours at debug");
            tracing::info!("ours at info");
            tracing::error!("ours at error");
            tracing::info!(target: "kube_client::client", "kube at info");
            tracing::warn!(target: "kube_client::client", "kube at warn");
        });
        let text = captured.text();
        let all = ["ours at debug", "ours at info", "ours at error", "kube at info", "kube at warn"];
        let passed: Vec<&str> = all.into_iter().filter(|message| text.contains(message)).collect();
        assert_eq!(passed, expect, "{filter}");
    }

    #[test]
    fn noisy_crates_are_kept_down_unless_asked() {
        check_passing("info", &["ours at info", "ours at error"]);
        check_passing("DEBUG", &["ours at debug", "ours at info", "ours at error"]);
        check_passing("info,kube=info", &["ours at info", "ours at error", "kube at info"]);
        check_passing("info,kube_client::client=info", &["ours at info", "ours at error", "kube at info"]);
        check_passing("error", &["ours at error"]);
        check_passing("off", &[]);
        check_passing("rolecall_process=info", &["ours at info", "ours at error"]);
    }

    #[test]
    fn what_may_hold_a_whole_pod_is_never_logged() {
        for filter in ["trace", "trace,kube=trace", "trace,kube_client=trace,kube_runtime=trace"] {
            let captured = Captured::default();
            tracing::dispatcher::with_default(&captured.dispatch(LogFormat::Text, filter).0, || {
                tracing::warn!(target: "kube_client::client", "an answer that could not be parsed");
                tracing::warn!(target: "kube_runtime::watcher", "an error that quotes what it met");
                tracing::info!("after");
            });
            let text = captured.text();
            assert!(text.contains("after") && !text.contains("kube"), "{filter}: {text}");
        }
    }

    #[test]
    fn the_level_changes_at_run_time() {
        let captured = Captured::default();
        let (dispatch, level) = captured.dispatch(LogFormat::Text, "info");
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::debug!("before");
            level.set("debug".parse().unwrap()).unwrap();
            tracing::debug!("between");
            level.clone().set("info".parse().unwrap()).unwrap();
            tracing::debug!("after");
        });
        let text = captured.text();
        assert!(text.contains("between") && !text.contains("before") && !text.contains("after"), "{text}");
        assert_eq!(level.get().as_str(), "info");
    }

    #[test]
    fn a_json_line_has_its_fields_at_the_top_and_its_span_beside_them() {
        let captured = Captured::default();
        tracing::dispatcher::with_default(&captured.dispatch(LogFormat::Json, "info").0, || {
            let _span = tracing::info_span!("request", pod = "shop/orders").entered();
            tracing::info!(role = "r", "issue");
        });
        let line: serde_json::Value = serde_json::from_str(captured.text().trim()).unwrap();
        assert_eq!(line["message"], "issue");
        assert_eq!(line["role"], "r");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["span"]["pod"], "shop/orders");
    }

    #[test]
    fn a_text_line_has_no_escape_sequences_off_a_terminal() {
        let captured = Captured::default();
        tracing::dispatcher::with_default(&captured.dispatch(LogFormat::Text, "info").0, || {
            tracing::warn!(pod = "shop/orders", "look");
        });
        let text = captured.text();
        assert!(
            !text.contains('\x1b') && text.contains("WARN") && text.contains("pod=\"shop/orders\""),
            "{text}"
        );
    }

    #[test]
    fn a_filter_that_would_not_do_what_it_says_is_refused() {
        for good in
            ["info", " warn ", "INFO", "off", "info,kube=debug", "info,[request{pod=a}]=trace", "a=off,debug"]
        {
            let filter = good.parse::<LogFilter>().unwrap();
            assert_eq!(filter.as_str(), good.trim());
            // What the check accepts, the filter itself must not drop in silence.
            EnvFilter::builder().parse(with_noise_kept_down(good.trim())).unwrap();
        }
        for (bad, problem) in [
            ("", "the filter is empty"),
            ("inof", "\"inof\" is not a level"),
            ("info,kube", "\"kube\" is not a level"),
            ("kube=loud", "expected one of"),
        ] {
            let error = bad.parse::<LogFilter>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("write a level"), "{bad:?}: {error}");
        }
    }
}
