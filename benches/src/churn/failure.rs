//! A first request that failed, and what disturbed it.

use std::time::Duration;

use anyhow::Error;
use tokio::time::error::Elapsed;

use super::{
    READ_TIMEOUT, TITLE,
    watch::{self, Disturbance},
};
use crate::report::{link, table};

/// The most that the daemon is silent by its defaults: before an answer that has to wait, and within one.
const HOLD: Duration = Duration::from_millis(500);
const INTERVAL: Duration = Duration::from_millis(400);

/// One that failed.
pub(super) struct Failure {
    /// STS's time.
    pub(super) latency: f64,
    pub(super) pod: usize,
    /// Since its round began.
    pub(super) asked_at: Duration,
    pub(super) after: Duration,
    pub(super) why: Why,
    /// Within the silence that ended it, or since it was asked where it was not silence.
    pub(super) disturbed: Disturbance,
}

pub(super) enum Why {
    Silence(String),
    /// Whatever else.
    Error(String),
}

/// What the watchers say of a silence.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Machine,
    Waited,
    Stopped,
    Blocked,
    Client,
    /// Nothing that was watched explains it.
    Daemon,
}

impl Why {
    pub(super) fn of(error: &Error) -> Self {
        let text = format!("{error:#}");
        // An answer has many lines, and a table has one for each row.
        let text = text.lines().next().unwrap_or_default().replace('|', "\\|");
        if error.is::<Elapsed>() { Self::Silence(text) } else { Self::Error(text) }
    }

    pub(super) fn told(&self) -> &str {
        match self {
            Self::Silence(text) | Self::Error(text) => text,
        }
    }
}

impl Failure {
    /// How long something must have lasted to have kept the daemon's bytes from this request for too long: from when
    /// the byte was due that did not come.
    fn enough(&self) -> Duration {
        // After a byte, which comes after a hold, it fails later than that.
        let is_first = self.after < READ_TIMEOUT + HOLD;
        READ_TIMEOUT - if is_first { HOLD } else { INTERVAL }
    }

    /// The first that explains it, from the machine to the daemon: what stands still stops all that come after it.
    fn finding(&self) -> Finding {
        let (enough, disturbed) = (self.enough(), &self.disturbed);
        if enough <= disturbed.machine {
            Finding::Machine
        } else if enough <= disturbed.one_waited {
            Finding::Waited
        } else if enough <= disturbed.stopped + watch::EVERY {
            Finding::Stopped
        } else if enough <= disturbed.blocked + watch::EVERY {
            Finding::Blocked
        } else if enough <= disturbed.event_loop && self.after < READ_TIMEOUT + HOLD {
            // A client that runs late takes the bytes for later than they are. Only what it sends late, it misses.
            Finding::Client
        } else {
            Finding::Daemon
        }
    }

    fn told(&self) -> String {
        let Why::Silence(_) = self.why else {
            return "it was not for silence".to_owned();
        };
        let Disturbance { is_sure, blocked, stopped, .. } = self.disturbed;
        match self.finding() {
            Finding::Machine if is_sure => "the machine stood still".to_owned(),
            Finding::Machine => "the machine stood still, or was busy with others".to_owned(),
            Finding::Waited => "the machine ran, but the daemon got no processor".to_owned(),
            Finding::Stopped => {
                format!("the machine ran, but the daemon was stopped for some {:.1} s", stopped.as_secs_f64())
            }
            Finding::Blocked => format!(
                "the machine ran, but a thread of the daemon waited in the kernel, as for a disk, for some {:.1} s",
                blocked.as_secs_f64()
            ),
            Finding::Client => "the machine ran; the benchmark sent its request late".to_owned(),
            Finding::Daemon => "nothing of this lasted long enough: it is the daemon's own".to_owned(),
        }
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![
            self.latency.to_string(),
            self.pod.to_string(),
            seconds(self.asked_at),
            seconds(self.after),
            self.why.told().to_owned(),
        ];
        row.extend(self.disturbed.cells());
        row.extend([seconds(self.disturbed.on_cpu), self.told()]);
        row
    }
}

impl Disturbance {
    /// What these [`cells`](Self::cells) are called.
    pub(super) const HEAD: [&str; 5] =
        ["machine, s", "event loop, s", "daemon waited, s", "one thread, s", "steal, %"];

    pub(super) fn cells(&self) -> [String; 5] {
        let Self { machine, event_loop, waited, one_waited, stolen, .. } = *self;
        let [machine, event_loop, waited, one_waited] =
            [machine, event_loop, waited, one_waited].map(seconds);
        [machine, event_loop, waited, one_waited, format!("{stolen:.1}")]
    }
}

/// What explains these failures; nothing where there are none.
pub(super) fn explanation(failures: &[Failure]) -> Option<String> {
    if failures.is_empty() {
        return None;
    }
    let mut head = vec!["STS, s", "pod", "asked at, s", "failed after, s", "of"];
    head.extend(Disturbance::HEAD);
    head.extend(["daemon ran, s", "what was seen"]);
    let rows: Vec<Vec<String>> = failures.iter().map(Failure::row).collect();
    Some(format!(
        "What was watched within the {} s of silence that ended each, or since it was asked where it was not silence \
         that ended it; the names are those of {}:\n\n{}\n\
         The daemon sends its first byte after {} s and then one every {} s, so it takes a standstill of {} s in the \
         first case and of {} s in the second to make a silence that long.\n\
         A failure counts as one, whoever stood still.\n",
        READ_TIMEOUT.as_secs_f64(),
        link(TITLE),
        table(&head, &rows),
        HOLD.as_secs_f64(),
        INTERVAL.as_secs_f64(),
        (READ_TIMEOUT - HOLD).as_secs_f64(),
        (READ_TIMEOUT - INTERVAL).as_secs_f64(),
    ))
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn failure(after: u32, disturbed: Disturbance) -> Failure {
        let why = Why::Silence("silence".to_owned());
        Failure { latency: 3.0, pod: 7, asked_at: 1250 * MS, after: after * MS, why, disturbed }
    }

    #[track_caller]
    fn check(after: u32, disturbed: Disturbance, expect: Finding) {
        assert_eq!(failure(after, disturbed).finding(), expect);
    }

    fn machine(ms: u32) -> Disturbance {
        Disturbance { machine: ms * MS, is_sure: true, ..Disturbance::default() }
    }

    #[test]
    fn a_machine_that_stood_still_for_less_than_a_byte_takes_is_no_excuse() {
        check(1900, machine(600), Finding::Machine);
        check(1900, machine(599), Finding::Daemon);
        check(1001, machine(500), Finding::Machine);
        check(1001, machine(499), Finding::Daemon);
    }

    #[test]
    fn a_daemon_that_got_no_processor_is_told_from_one_that_wanted_none() {
        let waited = |ms| Disturbance { waited: 900 * MS, one_waited: ms * MS, ..Disturbance::default() };
        check(1900, waited(700), Finding::Waited);
        check(1900, waited(300), Finding::Daemon);
        check(1900, Disturbance { stopped: 500 * MS, ..waited(300) }, Finding::Stopped);
        check(1900, Disturbance { blocked: 500 * MS, ..waited(300) }, Finding::Blocked);
        check(1900, Disturbance { blocked: 499 * MS, ..waited(300) }, Finding::Daemon);
    }

    #[test]
    fn a_client_that_runs_late_misses_no_byte_but_the_first() {
        let late = Disturbance { event_loop: 900 * MS, ..Disturbance::default() };
        check(1001, late, Finding::Client);
        check(1900, late, Finding::Daemon);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_told_from_an_answer_that_is_another() {
        let late = tokio::time::timeout(MS, std::future::pending::<()>()).await;
        let why = Why::of(&late.context("silence").unwrap_err());
        assert!(
            matches!(&why, Why::Silence(text) if text == "silence: deadline has elapsed"),
            "{}",
            why.told()
        );
        let why = Why::of(&anyhow::anyhow!("HTTP/1.1 503 a|b\r\nRetry-After: 1\r\n"));
        assert!(matches!(&why, Why::Error(text) if text == "HTTP/1.1 503 a\\|b"), "{}", why.told());
    }

    #[test]
    fn each_failure_is_explained_on_a_line_of_its_own() {
        assert!(explanation(&[]).is_none());
        let text = explanation(&[failure(1900, machine(1200)), failure(1001, machine(20))]).unwrap();
        let line = "| 3 | 7 | 1.250 | 1.900 | silence | 1.200 | 0.000 | 0.000 | 0.000 | 0.0 | 0.000 | the machine stood still |\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| 0.020 | 0.000 | 0.000 | 0.000 | 0.0 | 0.000 | nothing of this lasted long enough: it is the daemon's own |\n"));
    }
}
