//! Whether the event loops still turn.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{self, Instant, MissedTickBehavior};

use crate::drain;

/// A loop that has not beaten for this long is stuck: its beats are a second apart.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

const BEAT_EVERY: Duration = Duration::from_secs(1);

/// The heartbeats of the event loops. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Liveness(Arc<Mutex<State>>);

/// One loop's heart. Dropping it says that the loop has come to its orderly end.
pub struct Heart {
    id: u64,
    liveness: Liveness,
}

/// A loop that does not turn any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    pub name: &'static str,
    pub silent_for: Duration,
}

#[derive(Default)]
struct State {
    next_id: u64,
    beats: BTreeMap<u64, Beat>,
}

struct Beat {
    name: &'static str,
    at: Instant,
}

impl Liveness {
    /// Registers a loop, which has to beat from now on.
    #[must_use]
    pub fn heart(&self, name: &'static str) -> Heart {
        let mut state = self.state();
        state.next_id += 1;
        let id = state.next_id;
        state.beats.insert(id, Beat { name, at: Instant::now() });
        Heart { id, liveness: self.clone() }
    }

    /// The loops that have not beaten within [`STUCK_AFTER`]; none, if the process is alive.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        let now = Instant::now();
        let silent_for = |beat: &Beat| now.saturating_duration_since(beat.at);
        let state = self.state();
        state
            .beats
            .values()
            .filter(|beat| STUCK_AFTER < silent_for(beat))
            .map(|beat| Stuck { name: beat.name, silent_for: silent_for(beat) })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heart {
    pub fn beat(&self) {
        if let Some(beat) = self.liveness.state().beats.get_mut(&self.id) {
            beat.at = Instant::now();
        }
    }

    /// Lets the last beat have been `by` earlier.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        if let Some(beat) = self.liveness.state().beats.get_mut(&self.id) {
            beat.at -= by;
        }
    }

    /// Beats each second, to be spawned on the runtime whose life it shows, until the drain begins.
    ///
    /// A drain has its own deadline, so a loop that is stuck in it needs no probe to end it.
    pub async fn keep_beating(self, drain: drain::Watch) {
        let mut ticks = time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.begun() => return,
                _ = ticks.tick() => self.beat(),
            }
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.liveness.state().beats.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_stuck_ten_seconds_after_its_last_beat() {
        let liveness = Liveness::default();
        let watch = liveness.heart("watch");
        let worker = liveness.heart("worker");
        time::advance(STUCK_AFTER).await;
        assert_eq!(liveness.stuck(), []);
        worker.beat();
        time::advance(Duration::from_secs(1)).await;
        assert_eq!(liveness.stuck(), [Stuck { name: "watch", silent_for: Duration::from_secs(11) }]);
        watch.beat();
        assert_eq!(liveness.stuck(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_has_ended_is_not_stuck() {
        let liveness = Liveness::default();
        drop(liveness.heart("watch"));
        time::advance(Duration::from_secs(60)).await;
        assert_eq!(liveness.stuck(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_turns_keeps_beating_until_the_drain() {
        let (trigger, watch) = drain::new();
        let liveness = Liveness::default();
        trigger.tasks().spawn("heartbeat", liveness.heart("data plane").keep_beating(watch));
        time::sleep(Duration::from_secs(120)).await;
        assert_eq!(liveness.stuck(), []);
        assert_eq!(liveness.state().beats.len(), 1);
        assert_eq!(trigger.finish(Duration::from_secs(1)).await, []);
        assert_eq!(liveness.state().beats.len(), 0);
    }
}
