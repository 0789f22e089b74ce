//! Times in which nothing ran: what is to run every few milliseconds knows when it could not.

use std::{
    convert::Infallible,
    io,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::{Pid, gettid},
};
use tokio::{sync::oneshot, task, time::timeout_at};

/// How often a watcher is to run.
const EVERY: Duration = Duration::from_millis(5);

/// When what was to run did not.
#[derive(Default)]
pub(crate) struct Pauses(Vec<Pause>);

struct Pause {
    due: Instant,
    ran: Instant,
}

/// A thread of its own that looks again and again, until this is ended or dropped.
pub(crate) struct Watcher<T> {
    /// Nothing is ever sent: its drop says that it is over.
    until: Sender<Infallible>,
    thread: JoinHandle<T>,
}

/// When a watcher is to look: the items are the instants at which it should, each at the time at which it can.
pub(crate) struct Looks {
    every: Duration,
    over: Receiver<Infallible>,
}

/// A watcher on each processor. A virtual machine's host may stop one and leave the others, and for what runs there
/// others wait: while a worker of an event loop waits for sockets and timers, no other does.
pub(crate) struct Processors(Vec<Watcher<OfProcessor>>);

/// What one processor's watcher saw.
struct OfProcessor {
    pauses: Pauses,
    is_first: bool,
}

/// When the processors ran nothing.
pub(crate) struct Stops {
    pub(crate) each: Vec<Pauses>,
    /// Whether the watchers ran before all else. If not, they may themselves have waited for others, and what they
    /// saw is the most that the machine can have stood still.
    pub(crate) are_sure: bool,
}

/// A task that watches the event loop it is on. Of several workers, it tells when none ran it.
pub(crate) struct EventLoop {
    until: oneshot::Sender<Infallible>,
    task: task::JoinHandle<Pauses>,
}

impl Pauses {
    pub(crate) fn add(&mut self, due: Instant, ran: Instant) {
        self.0.push(Pause { due, ran });
    }

    /// The longest within a time: what of one was before or after does not count.
    pub(crate) fn longest(&self, from: Instant, to: Instant) -> Duration {
        self.within(from, to).max().unwrap_or_default()
    }

    /// All within a time together; several at once count as often.
    pub(crate) fn total(&self, from: Instant, to: Instant) -> Duration {
        self.within(from, to).sum()
    }

    fn within(&self, from: Instant, to: Instant) -> impl Iterator<Item = Duration> {
        self.0.iter().map(move |pause| pause.ran.min(to).saturating_duration_since(pause.due.max(from)))
    }
}

impl<T: Send + 'static> Watcher<T> {
    pub(crate) fn start(
        every: Duration,
        watch: impl FnOnce(Looks) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (until, over) = channel();
        let looks = Looks { every, over };
        let thread = thread::Builder::new().name("watcher".to_owned()).spawn(move || watch(looks))?;
        Ok(Self { until, thread })
    }

    /// What it saw, as soon as it has looked for the last time.
    pub(crate) fn end(self) -> Result<T> {
        drop(self.until);
        self.thread.join().map_err(|_| anyhow!("a watcher panicked"))
    }
}

impl Iterator for Looks {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let due = Instant::now() + self.every;
        match self.over.recv_timeout(self.every) {
            Err(RecvTimeoutError::Timeout) => Some(due),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

impl Processors {
    /// On those that this process may use.
    pub(crate) fn watch() -> Result<Self> {
        let ours = sched_getaffinity(OURSELVES)?;
        let mut watchers = Vec::new();
        for processor in 0..CpuSet::count() {
            if ours.is_set(processor)? {
                let mut only = CpuSet::new();
                only.set(processor)?;
                watchers.push(Watcher::start(EVERY, move |looks| watch(only, looks))?);
            }
        }
        Ok(Self(watchers))
    }

    pub(crate) fn end(self) -> Result<Stops> {
        let seen: Result<Vec<OfProcessor>> = self.0.into_iter().map(Watcher::end).collect();
        let seen = seen?;
        Ok(Stops {
            are_sure: seen.iter().all(|one| one.is_first),
            each: seen.into_iter().map(|one| one.pauses).collect(),
        })
    }
}

impl Stops {
    /// The longest of any processor within a time.
    pub(crate) fn longest(&self, from: Instant, to: Instant) -> Duration {
        self.each.iter().map(|pauses| pauses.longest(from, to)).max().unwrap_or_default()
    }
}

impl EventLoop {
    /// Watches the one that this is called on.
    pub(crate) fn watch() -> Self {
        let (until, mut over) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut pauses = Pauses::default();
            loop {
                let due = Instant::now() + EVERY;
                if timeout_at(due.into(), &mut over).await.is_ok() {
                    return pauses;
                }
                pauses.add(due, Instant::now());
            }
        });
        Self { until, task }
    }

    pub(crate) async fn end(self) -> Result<Pauses> {
        drop(self.until);
        Ok(self.task.await?)
    }
}

/// The thread that asks, to the kernel.
const OURSELVES: Pid = Pid::from_raw(0);

fn watch(processor: CpuSet, looks: Looks) -> OfProcessor {
    let is_there = sched_setaffinity(OURSELVES, &processor).is_ok();
    let is_first = is_there && run_first();
    let mut pauses = Pauses::default();
    for due in looks {
        pauses.add(due, Instant::now());
    }
    OfProcessor { pauses, is_first }
}

/// Has this thread run before all that are not of real time. To ask the kernel for that would take `unsafe`; chrt,
/// which is of util-linux as setpriv is, does it. It is refused to who is not root.
fn run_first() -> bool {
    let chrt = Command::new("chrt")
        .args(["--fifo", "--pid", "1"])
        .arg(gettid().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    chrt.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of pauses from and to so many milliseconds, the longest and all from and to so many.
    #[track_caller]
    fn check(pauses: &[(u64, u64)], within: (u64, u64), [longest, total]: [u64; 2]) {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut seen = Pauses::default();
        for &(due, ran) in pauses {
            seen.add(at(due), at(ran));
        }
        let (from, to) = within;
        assert_eq!(seen.longest(at(from), at(to)), Duration::from_millis(longest));
        assert_eq!(seen.total(at(from), at(to)), Duration::from_millis(total));
    }

    #[test]
    fn of_a_pause_counts_what_is_within_the_time() {
        let pauses = [(100, 400), (1000, 2500), (2600, 2700)];
        check(&pauses, (0, 3000), [1500, 1900]);
        check(&pauses, (0, 900), [300, 300]);
        check(&pauses, (2000, 3000), [500, 600]);
        check(&pauses, (300, 1100), [100, 200]);
        check(&pauses, (1200, 1300), [100, 100]);
        check(&pauses, (400, 1000), [0, 0]);
        check(&pauses, (2800, 9000), [0, 0]);
        check(&[], (0, 3000), [0, 0]);
    }

    #[test]
    fn a_watcher_ends_when_nobody_waits_for_it_any_longer() {
        let looks = |every| Watcher::start(every, Iterator::count).unwrap();
        assert_eq!(looks(Duration::from_secs(3600)).end().unwrap(), 0);
        let (began, seen) = channel();
        let watcher = Watcher::start(Duration::from_millis(1), move |mut looks| {
            looks.next();
            began.send(()).unwrap();
            looks.count()
        });
        seen.recv().unwrap();
        watcher.unwrap().end().unwrap();
    }
}
