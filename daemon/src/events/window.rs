//! Which Events are told: one per pod and reason in a while, and not too many in all.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{Key, Reason};
use crate::identity::PodUid;

/// The same is told again after this time: the API server keeps an Event for an hour, so that one is always there
/// while the fault lasts.
const REPEAT_AFTER: Duration = Duration::from_secs(1800);

/// Most Events at once.
const BURST: u32 = 20;

/// Time between two Events after that. A fault of the whole cluster is one of every pod, and of every node.
const SPACING: Duration = Duration::from_secs(5);

/// What was told when. It holds no more than the pace has let through in [`REPEAT_AFTER`]: 380.
#[derive(Debug, Default)]
pub(super) struct Window {
    told: HashMap<Key, Instant>,
    /// When the pace is at rest again: each Event moves it by [`SPACING`].
    at_rest: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Tell,
    /// It was told a while ago.
    Repeats,
    /// Too much was told of late; it may be told at its next occurrence.
    TooMany,
}

impl Window {
    /// Decides whether `reason` is told of `pod`, and remembers it if so.
    pub(super) fn admit(&mut self, pod: &PodUid, reason: Reason, now: Instant) -> Verdict {
        let key = (pod.clone(), reason);
        if self.told.get(&key).is_some_and(|at| now < *at + REPEAT_AFTER) {
            return Verdict::Repeats;
        }
        let at_rest = self.at_rest.map_or(now, |at| at.max(now));
        if now + SPACING * (BURST - 1) < at_rest {
            return Verdict::TooMany;
        }
        self.at_rest = Some(at_rest + SPACING);
        self.told.retain(|_, at| now < *at + REPEAT_AFTER);
        self.told.insert(key, now);
        Verdict::Tell
    }

    /// It could not be told after all.
    pub(super) fn take_back(&mut self, pod: &PodUid, reason: Reason) {
        self.told.remove(&(pod.clone(), reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u32) -> PodUid {
        format!("uid-{number}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pods_reason_is_told_once_in_a_while() {
        let mut window = Window::default();
        let now = Instant::now();
        let mut admit = |pod, reason, after| window.admit(&uid(pod), reason, now + after);
        assert_eq!(admit(1, Reason::StsDenied, Duration::ZERO), Verdict::Tell);
        assert_eq!(
            admit(1, Reason::TokenMissing, Duration::ZERO),
            Verdict::Tell,
            "another reason is another Event"
        );
        assert_eq!(admit(2, Reason::StsDenied, Duration::ZERO), Verdict::Tell, "so is another pod");
        assert_eq!(admit(1, Reason::StsDenied, REPEAT_AFTER - SPACING), Verdict::Repeats);
        assert_eq!(admit(1, Reason::StsDenied, REPEAT_AFTER), Verdict::Tell);
    }

    #[tokio::test(start_paused = true)]
    async fn many_pods_are_told_at_a_pace_and_whoever_was_not_has_its_turn_later() {
        let mut window = Window::default();
        let now = Instant::now();
        let told = |window: &mut Window, pods: std::ops::Range<u32>, now| {
            pods.filter(|n| window.admit(&uid(*n), Reason::StsDenied, now) == Verdict::Tell).count()
        };
        assert_eq!(told(&mut window, 0..100, now), 20);
        assert_eq!(told(&mut window, 20..100, now + SPACING - Duration::from_millis(1)), 0);
        assert_eq!(told(&mut window, 20..100, now + SPACING), 1);
        assert_eq!(told(&mut window, 21..100, now + 3 * SPACING), 2);
        assert_eq!(told(&mut window, 23..100, now + 1000 * SPACING), 20, "a rest does not add up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_told_is_told_at_its_next_occurrence() {
        let mut window = Window::default();
        let now = Instant::now();
        assert_eq!(window.admit(&uid(1), Reason::NoRole, now), Verdict::Tell);
        window.take_back(&uid(1), Reason::NoRole);
        assert_eq!(window.admit(&uid(1), Reason::NoRole, now), Verdict::Tell);
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_pods_makes_it_grow() {
        let mut window = Window::default();
        let start = Instant::now();
        let mut most = 0;
        for second in 0..4 * 3600 {
            let now = start + Duration::from_secs(second.into());
            for pod in 0..3 {
                window.admit(&uid(second * 3 + pod), Reason::StsDenied, now);
            }
            most = most.max(window.told.len());
        }
        assert!((360..=380).contains(&most), "{most}");
    }
}
