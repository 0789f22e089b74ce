//! Lines are written by a thread of their own, so that who logs waits for nobody: not for whoever should read the pipe,
//! not for a disk, and not for another thread that waits for one.

use std::{
    fmt,
    io::{self, Write},
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Most lines that wait to be written. What comes while there are as many is dropped.
///
/// Each has its place from the start, of 32 bytes, which makes 64 KiB. Lines are some 300 bytes long, so while nobody
/// reads them those that wait take half a megabyte. A node that starts with 1000 pods has as many lines at once.
const MOST_LINES: usize = 2048;

/// The thread that writes. Dropped, it first writes what waits, unless that takes longer than a second.
#[must_use]
pub struct Writer {
    _guard: WorkerGuard,
}

/// How many lines found no room. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct DroppedLines(Arc<OnceLock<ErrorCounter>>);

/// Where the thread writes to. It says how many lines are missing there, as soon as no line waits any more.
struct Output<W> {
    lines: W,
    dropped: DroppedLines,
    told: u64,
}

/// Starts the thread that writes to `output`.
pub(super) fn start(output: impl Write + Send + 'static) -> (NonBlocking, DroppedLines, Writer) {
    let dropped = DroppedLines::default();
    let output = Output { lines: output, dropped: dropped.clone(), told: 0 };
    let (lines, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_LINES)
        .thread_name("log")
        .finish(output);
    dropped.0.get_or_init(|| lines.error_counter());
    (lines, dropped, Writer { _guard: guard })
}

impl DroppedLines {
    fn count(&self) -> u64 {
        self.0.get().map_or(0, |counter| counter.dropped_lines() as u64)
    }
}

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counter = ConstCounter::new(self.count());
        let help = "Log lines that are missing, for what was logged before was not written in time";
        let encoder = encoder.encode_descriptor("log_lines_dropped", help, None, counter.metric_type())?;
        counter.encode(encoder)
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.write(line)
    }

    /// Called when no line waits.
    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()?;
        let dropped = self.dropped.count();
        if self.told < dropped {
            // A line like any other: it waits for its turn, and this thread for nothing.
            tracing::warn!(
                lines = dropped - self.told,
                "lines are missing before this one: they came faster than they were read"
            );
            // Unless that line found no room either: then the next one tells.
            if self.dropped.count() == dropped {
                self.told = dropped;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::telemetry::{Config, Log, LogFormat, build, test::Captured};

    /// Says that it was given a line, and waits for leave to take it.
    struct Stuck {
        given: mpsc::Sender<()>,
        leave: mpsc::Receiver<()>,
        written: Captured,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.given.send(());
            let _ = self.leave.recv();
            self.written.write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn metrics(log: &Log) -> String {
        let (mut registry, mut text) = (crate::metrics::registry(), String::new());
        log.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn who_logs_does_not_wait_for_a_reader_and_what_finds_no_room_is_counted() {
        let ((given, is_given), (leave, has_leave)) = (mpsc::channel(), mpsc::channel());
        let written = Captured::default();
        let (lines, dropped, writer) = start(Stuck { given, leave: has_leave, written: written.clone() });
        let config = Config { format: LogFormat::Text, filter: "info".parse().unwrap() };
        let (dispatch, level) = build(&config, lines, false);
        let log = Log { level, dropped };
        let say = |number: usize| tracing::dispatcher::with_default(&dispatch, || tracing::info!(number));
        say(0);
        is_given.recv().unwrap();
        assert!(metrics(&log).contains("rolecall_log_lines_dropped_total 0\n"));
        (1..=MOST_LINES + 100).for_each(say);
        assert!(metrics(&log).contains("rolecall_log_lines_dropped_total 100\n"), "{}", metrics(&log));
        assert_eq!(written.text(), "");
        drop(leave);
        drop(writer);
        let text = written.text();
        let numbers: Vec<_> = text.lines().map(|line| line.rsplit_once("number=").unwrap().1).collect();
        let expect: Vec<_> = (0..=MOST_LINES).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expect, "what was dropped came last");
    }

    #[test]
    fn a_reader_that_is_stuck_does_not_keep_the_process() {
        let ((given, is_given), (_leave, has_leave)) = (mpsc::channel(), mpsc::channel());
        let (mut lines, _, writer) = start(Stuck { given, leave: has_leave, written: Captured::default() });
        lines.write_all(b"said\n").unwrap();
        is_given.recv().unwrap();
        drop(writer);
    }
}
