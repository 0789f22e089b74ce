//! What is watched while requests run: the machine, the event loop of the clients and STS, and the daemon.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::block_in_place;

use crate::{
    machine::Ticks,
    pauses::{EventLoop, Pauses, Processors, Stops, Watcher},
    threads::Threads,
};

/// How often the daemon is looked at.
pub(super) const EVERY: Duration = Duration::from_millis(100);

/// Watchers at work.
pub(super) struct Watch {
    processors: Processors,
    event_loop: EventLoop,
    daemon: Watcher<Vec<Look>>,
}

/// What the watchers saw.
pub(super) struct Seen {
    pub(super) stops: Stops,
    pub(super) event_loop: Pauses,
    daemon: DaemonPauses,
    /// The first before anything happens, the last when all has.
    looks: Vec<Look>,
}

/// What the kernel tells at one time.
struct Look {
    at: Instant,
    daemon: Threads,
    ticks: Ticks,
}

/// When threads of the daemon could not run, as looks at it tell.
#[derive(Default)]
struct DaemonPauses {
    waited: Pauses,
    blocked: Pauses,
    stopped: Pauses,
}

/// What disturbed a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Disturbance {
    /// The longest time in which a processor ran nothing that it should have.
    pub(super) machine: Duration,
    /// As [`Stops::are_sure`].
    pub(super) is_sure: bool,
    /// The longest time in which no worker of the benchmark's event loop was to be had.
    pub(super) event_loop: Duration,
    /// How long the daemon's threads waited for a processor, all together.
    pub(super) waited: Duration,
    /// The longest time for which one of them waited, to one look ([`EVERY`]).
    pub(super) one_waited: Duration,
    /// How long the daemon's threads were on a processor.
    pub(super) on_cpu: Duration,
    /// The longest time for which one of them was seen to wait for what only the kernel ends, as a disk, and for which
    /// one was stopped: both to one look.
    pub(super) blocked: Duration,
    pub(super) stopped: Duration,
    /// What the host kept of the processors' time, in percent.
    pub(super) stolen: f64,
}

impl Watch {
    pub(super) fn begin(daemon: u32) -> Result<Self> {
        let first = Look::now(daemon)?;
        Ok(Self {
            processors: Processors::watch()?,
            event_loop: EventLoop::watch(),
            daemon: Watcher::start(EVERY, move |looks| {
                let mut seen = vec![first];
                // A daemon that has ended is not looked at any more; its requests say that it has.
                seen.extend(looks.map_while(|_| Look::now(daemon).ok()));
                seen.extend(Look::now(daemon));
                seen
            })?,
        })
    }

    pub(super) async fn end(self) -> Result<Seen> {
        let event_loop = self.event_loop.end().await?;
        let (stops, looks) = block_in_place(|| anyhow::Ok((self.processors.end()?, self.daemon.end()?)))?;
        Ok(Seen { stops, event_loop, daemon: DaemonPauses::of(&looks), looks })
    }
}

impl Look {
    fn now(daemon: u32) -> Result<Self> {
        Ok(Self { at: Instant::now(), daemon: Threads::of(daemon)?, ticks: Ticks::now() })
    }
}

impl DaemonPauses {
    fn of(looks: &[Look]) -> Self {
        let mut pauses = Self::default();
        let [mut blocked_since, mut stopped_since] = [None; 2];
        for (look, next) in looks.iter().zip(looks.iter().skip(1)) {
            // The kernel adds a wait when it has ended: the look that shows it may be long after its begin.
            for waited in next.daemon.each_waited_since(&look.daemon) {
                pauses.waited.add(next.at.checked_sub(waited).unwrap_or(look.at), next.at);
            }
            hold(&mut pauses.blocked, &mut blocked_since, look.daemon.has_blocked(), look.at, next.at);
            hold(&mut pauses.stopped, &mut stopped_since, look.daemon.has_stopped(), look.at, next.at);
        }
        pauses
    }
}

/// Adds what lasts from the first of some looks that see it to the one after the last.
fn hold(pauses: &mut Pauses, since: &mut Option<Instant>, is_held: bool, at: Instant, next: Instant) {
    match is_held {
        true => pauses.add(*since.get_or_insert(at), next),
        false => *since = None,
    }
}

impl Seen {
    /// What disturbed this time: of time on processors, from the last look before it to the first one after it.
    pub(super) fn within(&self, from: Instant, to: Instant) -> Disturbance {
        let first = self.looks.partition_point(|look| look.at <= from).saturating_sub(1);
        let last = self.looks.partition_point(|look| look.at < to);
        let looks = self.looks.get(first..=last).or(self.looks.get(first..)).unwrap_or_default();
        let pauses = Disturbance {
            machine: self.stops.longest(from, to),
            is_sure: self.stops.are_sure,
            event_loop: self.event_loop.longest(from, to),
            waited: self.daemon.waited.total(from, to),
            one_waited: self.daemon.waited.longest(from, to),
            blocked: self.daemon.blocked.longest(from, to),
            stopped: self.daemon.stopped.longest(from, to),
            ..Disturbance::default()
        };
        let [before, .., after] = looks else { return pauses };
        Disturbance {
            on_cpu: after.daemon.on_cpu_since(&before.daemon),
            stolen: after.ticks.since(before.ticks).stolen_percent(),
            ..pauses
        }
    }

    /// What disturbed all of it.
    pub(super) fn in_all(&self) -> Disturbance {
        match self.looks.as_slice() {
            [first, .., last] => self.within(first.at, last.at),
            _ => Disturbance::default(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::threads::tests::threads;

    const MS: Duration = Duration::from_millis(1);

    /// What watchers saw who looked every 100 ms for a second: from 300 ms on, the machine stood still for 50 ms, and
    /// one of the daemon's two threads had waited for 280 ms when it was looked at after 400 ms. The other was stopped
    /// when it was looked at after 700 and after 800 ms.
    fn seen(began: Instant) -> Seen {
        let mut stops = Pauses::default();
        stops.add(began + 300 * MS, began + 350 * MS);
        let look = |turn: u32| {
            let waited = if 4 <= turn { 280 } else { 0 };
            let (turns, state) = (u64::from(turn), if (7..=8).contains(&turn) { 'T' } else { 'S' });
            Look {
                at: began + turn * EVERY,
                daemon: threads(&[("1", turns * 10, waited, 'S'), ("2", turns * 2, turns, state)]),
                ticks: Ticks::parse(&format!("cpu {} 0 0 0 0 0 0 {}\n", turns * 18, turns * 2), ""),
            }
        };
        let looks: Vec<Look> = (0..=10).map(look).collect();
        Seen {
            stops: Stops { each: vec![Pauses::default(), stops], are_sure: true },
            event_loop: Pauses::default(),
            daemon: DaemonPauses::of(&looks),
            looks,
        }
    }

    #[track_caller]
    fn check(from: u32, to: u32, [machine, waited, one_waited, on_cpu, stopped]: [u32; 5]) {
        let began = Instant::now();
        let expect = Disturbance {
            machine: machine * MS,
            is_sure: true,
            event_loop: Duration::ZERO,
            waited: waited * MS,
            one_waited: one_waited * MS,
            on_cpu: on_cpu * MS,
            blocked: Duration::ZERO,
            stopped: stopped * MS,
            stolen: 10.0,
        };
        assert_eq!(seen(began).within(began + from * MS, began + to * MS), expect);
    }

    #[test]
    fn what_the_kernel_accounts_is_taken_from_the_looks_around_a_time() {
        check(250, 450, [50, 152, 150, 36, 0]);
        check(0, 1000, [50, 290, 280, 120, 200]);
        check(400, 500, [0, 1, 1, 12, 0]);
        check(320, 420, [30, 81, 80, 24, 0]);
        check(850, 5000, [0, 2, 1, 24, 50]);
    }

    #[test]
    fn a_wait_that_is_accounted_when_it_has_ended_disturbed_what_was_before() {
        check(150, 250, [0, 101, 100, 24, 0]);
    }

    #[test]
    fn a_round_is_disturbed_by_all_that_was_seen_of_it() {
        let began = Instant::now();
        let Disturbance { machine, one_waited, .. } = seen(began).in_all();
        assert_eq!((machine, one_waited), (50 * MS, 280 * MS));
    }
}
