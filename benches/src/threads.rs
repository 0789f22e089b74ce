//! What the kernel accounts for each thread of a process, to the nanosecond.

use std::{collections::BTreeMap, ffi::OsString, fs, time::Duration};

use anyhow::{Context, Result, ensure};

/// The threads that there are at one time. One that has ended is left out, so this is for differences over times in
/// which hardly any ends.
pub(crate) struct Threads(BTreeMap<OsString, Thread>);

#[derive(Clone, Copy, Default)]
struct Thread {
    /// Nanoseconds on a processor.
    on_cpu: u64,
    /// Nanoseconds in which it could have run but waited for a processor. The kernel adds a wait when it has ended.
    waited: u64,
    /// As proc(5) has it.
    state: char,
}

impl Threads {
    pub(crate) fn of(process: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?;
            // One that has ended meanwhile has none.
            let read = |file| fs::read_to_string(thread.path().join(file));
            let (Ok(schedstat), Ok(stat)) = (read("schedstat"), read("stat")) else { continue };
            threads.insert(thread.file_name(), Thread::parse(&schedstat, &stat)?);
        }
        ensure!(!threads.is_empty(), "the kernel has no /proc/<pid>/task/<tid>/schedstat");
        Ok(Self(threads))
    }

    /// Time on a processor since then, of all threads together.
    pub(crate) fn on_cpu_since(&self, earlier: &Self) -> Duration {
        self.since(earlier, |thread| thread.on_cpu).sum()
    }

    /// Time that each thread waited for a processor since then.
    pub(crate) fn each_waited_since(&self, earlier: &Self) -> impl Iterator<Item = Duration> {
        self.since(earlier, |thread| thread.waited)
    }

    /// Whether one sleeps and nothing but the kernel can wake it, as while it waits for a disk.
    pub(crate) fn has_blocked(&self) -> bool {
        self.0.values().any(|thread| thread.state == 'D')
    }

    /// Whether one was stopped, by a signal or a debugger.
    pub(crate) fn has_stopped(&self) -> bool {
        self.0.values().any(|thread| matches!(thread.state, 'T' | 't'))
    }

    fn since(&self, earlier: &Self, of: impl Fn(&Thread) -> u64) -> impl Iterator<Item = Duration> {
        self.0.iter().map(move |(name, thread)| {
            let before = earlier.0.get(name).map_or(0, &of);
            Duration::from_nanos(of(thread).saturating_sub(before))
        })
    }
}

impl Thread {
    fn parse(schedstat: &str, stat: &str) -> Result<Self> {
        let mut fields = schedstat.split_whitespace();
        let mut next = || fields.next().and_then(|field| field.parse().ok()).context("the form of schedstat");
        // The first field after the thread's name, which may have spaces.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        Ok(Self { on_cpu: next()?, waited: next()?, state: state.context("the form of /proc/<pid>/stat")? })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Threads by name, with their time on a processor and their wait for one in milliseconds, and their state.
    pub(crate) fn threads(threads: &[(&str, u64, u64, char)]) -> Threads {
        let thread = |on_cpu, waited, state| {
            let schedstat = format!("{} {} 7\n", on_cpu * 1_000_000, waited * 1_000_000);
            Thread::parse(&schedstat, &format!("42 (a b) c) {state} 1 42\n")).unwrap()
        };
        Threads(threads.iter().map(|&(name, on, waited, is)| (name.into(), thread(on, waited, is))).collect())
    }

    #[test]
    fn threads_that_come_or_go_take_nothing_from_the_others() {
        let before = threads(&[("1", 500, 20, 'S'), ("2", 9000, 300, 'S')]);
        let after = threads(&[("1", 700, 25, 'S'), ("3", 30, 10, 'S')]);
        assert_eq!(after.on_cpu_since(&before), Duration::from_millis(230));
        let each: Vec<Duration> = after.each_waited_since(&before).collect();
        assert_eq!(each, [5, 10].map(Duration::from_millis));
    }

    #[test]
    fn one_thread_that_is_held_is_enough() {
        let held = |state| {
            let threads = threads(&[("1", 1, 0, 'R'), ("2", 1, 0, state)]);
            (threads.has_blocked(), threads.has_stopped())
        };
        assert_eq!(
            ['S', 'D', 'T', 't'].map(held),
            [(false, false), (true, false), (false, true), (false, true)]
        );
    }

    #[test]
    fn what_is_not_of_its_form_is_refused() {
        assert!(Thread::parse("12 34", "1 (a) S 1").is_ok());
        assert!(Thread::parse("12", "1 (a) S 1").is_err());
        assert!(Thread::parse("12 34", "").is_err());
    }
}
