//! What is known of the pods that lack something, and when each is to be looked at. No clock, no I/O.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

/// Most pods that are remembered. More at once are left out: such a cluster has a trouble that shows without them.
const MOST: usize = 10_000;

/// How often a pod that was not injected is looked at again, so that it does not count for long once it is gone.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// First pause before a look that failed is repeated; it doubles.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How often a look may fail before the pod is left to the next sweep.
const TRIES: u32 = 6;

/// A pod to be looked at closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Unix time.
    pub(super) created: i64,
    /// Whether there is an Event that says what it lacks, or none is due.
    pub(super) is_told: bool,
}

/// What a closer look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// It should have been injected.
    Missed,
    /// It has what it needs, or is gone.
    Fine,
    /// The look failed.
    Unknown,
}

/// The pods that lack something, by uid.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    entries: HashMap<String, Entry>,
    /// When each is to be looked at; one that is being looked at is not in here.
    order: BTreeSet<(Instant, String)>,
    missed: usize,
}

#[derive(Debug)]
struct Entry {
    suspect: Suspect,
    is_missed: bool,
    failures: u32,
    /// `None` while it is looked at.
    due: Option<Instant>,
    /// Something happened to the pod while it was looked at.
    is_stale: bool,
}

impl Verdicts {
    /// Remembers a pod, to be looked at now. Says whether there was room; for one that is known, there is.
    pub(super) fn suspect(&mut self, suspect: Suspect, now: Instant) -> bool {
        if self.entries.contains_key(&suspect.uid) {
            return true;
        }
        if MOST <= self.entries.len() {
            return false;
        }
        self.order.insert((now, suspect.uid.clone()));
        let uid = suspect.uid.clone();
        let entry = Entry { suspect, is_missed: false, failures: 0, due: Some(now), is_stale: false };
        self.entries.insert(uid, entry);
        true
    }

    /// When the next one is to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    /// The next one to be looked at by `now`.
    pub(super) fn next(&mut self, now: Instant) -> Option<Suspect> {
        let first = self.order.first().filter(|(due, _)| *due <= now)?.clone();
        self.order.remove(&first);
        let entry = self.entries.get_mut(&first.1)?;
        entry.due = None;
        Some(entry.suspect.clone())
    }

    /// Takes what the look at `suspect` found. Says whether it is the first time that the pod is found to be missed.
    pub(super) fn judge(&mut self, suspect: &Suspect, finding: Finding, now: Instant) -> bool {
        // It went while it was looked at: what was found is of the past.
        let entry = self.entries.get_mut(&suspect.uid).filter(|entry| entry.due.is_none());
        let Some(entry) = entry else { return false };
        entry.suspect.is_told = suspect.is_told;
        let is_stale = std::mem::take(&mut entry.is_stale);
        let mut is_news = false;
        let pause = match finding {
            Finding::Missed => {
                is_news = !std::mem::replace(&mut entry.is_missed, true);
                self.missed += usize::from(is_news);
                entry.failures = 0;
                AGAIN_AFTER
            }
            Finding::Fine => {
                self.gone(&suspect.uid);
                return false;
            }
            Finding::Unknown if entry.is_missed => AGAIN_AFTER,
            Finding::Unknown => {
                entry.failures += 1;
                if TRIES <= entry.failures {
                    self.gone(&suspect.uid);
                    return false;
                }
                RETRY_AFTER * 2_u32.pow(entry.failures - 1)
            }
        };
        let due = if is_stale { now } else { now + pause };
        entry.due = Some(due);
        self.order.insert((due, suspect.uid.clone()));
        is_news
    }

    /// The pod changed: one that is remembered is to be looked at once more.
    pub(super) fn look_again(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match entry.due.replace(now) {
            Some(due) => {
                self.order.remove(&(due, uid.to_owned()));
                self.order.insert((now, uid.to_owned()));
            }
            None => {
                entry.due = None;
                entry.is_stale = true;
            }
        }
    }

    /// The pod is gone, or will not run again.
    pub(super) fn gone(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        self.missed -= usize::from(entry.is_missed);
        if let Some(due) = entry.due {
            self.order.remove(&(due, uid.to_owned()));
        }
    }

    /// How many were not injected.
    pub(super) fn missed(&self) -> usize {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn suspect(uid: &str) -> Suspect {
        Suspect {
            namespace: "shop".to_owned(),
            name: "orders".to_owned(),
            uid: uid.to_owned(),
            created: 0,
            is_told: false,
        }
    }

    #[test]
    fn a_pod_that_goes_while_it_is_looked_at_never_counts() {
        let (mut verdicts, now) = (Verdicts::default(), Instant::now());
        assert!(verdicts.suspect(suspect("a"), now));
        let looked_at = verdicts.next(now).unwrap();
        verdicts.gone("a");
        assert!(!verdicts.judge(&looked_at, Finding::Missed, now));
        assert_eq!((verdicts.missed(), verdicts.due()), (0, None));
    }

    #[test]
    fn a_pod_is_news_once_and_is_looked_at_again_and_again() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        for round in 0..3 {
            assert!(verdicts.suspect(suspect("a"), now));
            let looked_at = verdicts.next(now).unwrap();
            assert_eq!(verdicts.next(now), None, "it is looked at");
            assert_eq!(verdicts.judge(&looked_at, Finding::Missed, now), round == 0);
            assert_eq!(verdicts.missed(), 1);
            assert_eq!(verdicts.next(now), None, "not before its time");
            now += AGAIN_AFTER;
        }
        let looked_at = verdicts.next(now).unwrap();
        verdicts.judge(&looked_at, Finding::Fine, now);
        assert_eq!((verdicts.missed(), verdicts.due()), (0, None));
    }

    #[test]
    fn a_look_that_fails_is_repeated_with_growing_pauses_and_then_left_to_the_next_sweep() {
        let (mut verdicts, start) = (Verdicts::default(), Instant::now());
        verdicts.suspect(suspect("a"), start);
        let mut waited = Vec::new();
        while let Some(due) = verdicts.due() {
            waited.push((due - start).as_secs());
            let looked_at = verdicts.next(due).unwrap();
            assert!(!verdicts.judge(&looked_at, Finding::Unknown, due));
        }
        assert_eq!(waited, [0, 2, 6, 14, 30, 62]);
        assert!(
            verdicts.suspect(suspect("a"), start) && verdicts.due().is_some(),
            "the sweep brings it anew"
        );
    }

    #[test]
    fn a_failure_takes_nothing_back_that_was_found() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        verdicts.suspect(suspect("a"), now);
        let mut looked_at = verdicts.next(now).unwrap();
        verdicts.judge(&looked_at, Finding::Missed, now);
        for _ in 0..2 * TRIES {
            now += AGAIN_AFTER;
            looked_at = verdicts.next(now).unwrap();
            verdicts.judge(&looked_at, Finding::Unknown, now);
        }
        assert_eq!(verdicts.missed(), 1);
    }

    #[test]
    fn what_happens_during_a_look_brings_another_one_at_once() {
        let (mut verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.suspect(suspect("a"), now);
        let looked_at = verdicts.next(now).unwrap();
        verdicts.look_again("a", now);
        assert_eq!(verdicts.next(now), None, "no two looks at once");
        verdicts.judge(&looked_at, Finding::Missed, now);
        assert!(verdicts.next(now).is_some());
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let (mut verdicts, now) = (Verdicts::default(), Instant::now());
        for index in 0..MOST {
            assert!(verdicts.suspect(suspect(&index.to_string()), now));
        }
        assert!(!verdicts.suspect(suspect("one more"), now) && verdicts.suspect(suspect("0"), now));
        verdicts.gone("0");
        assert!(verdicts.suspect(suspect("one more"), now));
    }

    proptest! {
        #[test]
        fn the_count_and_the_order_are_those_of_the_entries(
            steps in proptest::collection::vec((0..5_u8, 0..3_u8, 0..3_u8), 0..60),
        ) {
            let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
            let mut looked_at = Vec::new();
            for (step, pod, finding) in steps {
                let uid = pod.to_string();
                match step {
                    0 => assert!(verdicts.suspect(suspect(&uid), now)),
                    1 => verdicts.gone(&uid),
                    2 => verdicts.look_again(&uid, now),
                    3 => looked_at.extend(verdicts.next(now)),
                    _ => {
                        if let Some(suspect) = looked_at.pop() {
                            let findings = [Finding::Missed, Finding::Fine, Finding::Unknown];
                            verdicts.judge(&suspect, findings[usize::from(finding)], now);
                        }
                        now += RETRY_AFTER;
                    }
                }
                let missed = verdicts.entries.values().filter(|entry| entry.is_missed).count();
                prop_assert_eq!(verdicts.missed(), missed);
                let dues: BTreeSet<_> = verdicts
                    .entries
                    .iter()
                    .filter_map(|(uid, entry)| Some((entry.due?, uid.clone())))
                    .collect();
                prop_assert_eq!(&verdicts.order, &dues);
            }
        }
    }
}
