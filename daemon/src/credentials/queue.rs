//! What is to be fetched and when: the most urgent of what is due comes first.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use tokio::time::Instant;

use super::Urgency;

/// How urgent a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// Something valid is there.
    Background,
    /// Nothing is there, and nobody waits for it yet.
    Warmup(Urgency),
    /// A request waits.
    RealTime,
}

/// A keyed queue. An item that is not due yet never stands before one that is, however urgent it is.
pub(super) struct Queue<K> {
    places: HashMap<K, Place>,
    /// What is due later, by when.
    later: BTreeSet<(Instant, u64)>,
    /// What was due when last looked at, by urgency, then by how long it has been due.
    due: BTreeSet<(Reverse<Priority>, Instant, u64)>,
    keys: HashMap<u64, K>,
    next_number: u64,
    /// Takes nothing but what requests wait for.
    only_urgent: bool,
}

#[derive(Clone, Copy)]
struct Place {
    priority: Priority,
    at: Instant,
    /// Order of arrival, which decides between equals.
    number: u64,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub(super) fn new() -> Self {
        Self {
            places: HashMap::new(),
            later: BTreeSet::new(),
            due: BTreeSet::new(),
            keys: HashMap::new(),
            next_number: 0,
            only_urgent: false,
        }
    }

    /// From now on takes in nothing but what requests wait for, or everything again. What is in stays in.
    pub(super) fn set_only_urgent(&mut self, only_urgent: bool) {
        self.only_urgent = only_urgent;
    }

    /// Puts `key` in, due at `at`. One that is in already only becomes more urgent or due sooner.
    pub(super) fn raise(&mut self, key: &K, priority: Priority, at: Instant) {
        if self.only_urgent && priority != Priority::RealTime {
            return;
        }
        let place = match self.remove(key) {
            None => {
                self.next_number += 1;
                Place { priority, at, number: self.next_number }
            }
            Some(was) => {
                Place { priority: was.priority.max(priority), at: was.at.min(at), number: was.number }
            }
        };
        self.places.insert(key.clone(), place);
        self.keys.insert(place.number, key.clone());
        self.later.insert((place.at, place.number));
    }

    /// Takes out the most urgent item that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<K> {
        while let Some(&(at, number)) = self.later.first() {
            if now < at {
                break;
            }
            self.later.pop_first();
            let priority = self.places[&self.keys[&number]].priority;
            self.due.insert((Reverse(priority), at, number));
        }
        let (_, _, number) = self.due.pop_first()?;
        let key = self.keys.remove(&number)?;
        self.places.remove(&key);
        Some(key)
    }

    /// When the next item is due; in the past where one is due already.
    pub(super) fn next_at(&self) -> Option<Instant> {
        match self.due.first() {
            Some((_, at, _)) => Some(*at),
            None => self.later.first().map(|(at, _)| *at),
        }
    }

    /// When `key` is due, where it is in.
    pub(super) fn due_at(&self, key: &K) -> Option<Instant> {
        self.places.get(key).map(|place| place.at)
    }

    #[cfg(test)]
    pub(super) fn contains(&self, key: &K) -> bool {
        self.places.contains_key(key)
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.remove(key);
    }

    fn remove(&mut self, key: &K) -> Option<Place> {
        let place = self.places.remove(key)?;
        self.keys.remove(&place.number);
        self.later.remove(&(place.at, place.number));
        self.due.remove(&(Reverse(place.priority), place.at, place.number));
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Priority::*, *};

    fn order(queue: &mut Queue<&'static str>, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop_due(now)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_urgent_of_what_is_due_comes_first_then_what_is_due_longest() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut queue = Queue::new();
        queue.raise(&"refresh", Background, now);
        queue.raise(&"warm", Warmup(Urgency::LEAST), now + second);
        queue.raise(&"asked late", RealTime, now + 2 * second);
        queue.raise(&"asked soon", RealTime, now + second);
        queue.raise(&"asked soon too", RealTime, now + second);
        queue.raise(&"asked, not due", RealTime, now + 10 * second);
        let later = now + 3 * second;
        assert_eq!(
            order(&mut queue, later),
            ["asked soon", "asked soon too", "asked late", "warm", "refresh"]
        );
        assert_eq!(queue.next_at(), Some(now + 10 * second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_only_raises() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut queue = Queue::new();
        queue.raise(&"a", RealTime, now);
        queue.raise(&"a", Background, now + 9 * second);
        queue.raise(&"b", Warmup(Urgency::LEAST), now);
        assert_eq!(order(&mut queue, now), ["a", "b"]);
        queue.raise(&"a", Background, now + 9 * second);
        queue.raise(&"a", RealTime, now + second);
        assert_eq!(queue.next_at(), Some(now + second));
        assert_eq!(order(&mut queue, now + second), ["a"]);
        assert_eq!(queue.next_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_item_that_became_due_can_still_be_raised_and_forgotten() {
        let now = Instant::now();
        let mut queue = Queue::new();
        for key in ["a", "b", "c", "d"] {
            queue.raise(&key, Background, now);
        }
        assert_eq!(queue.pop_due(now), Some("a"));
        queue.raise(&"d", RealTime, now);
        queue.forget(&"b");
        assert_eq!(order(&mut queue, now), ["d", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_of_urgent_things_takes_in_nothing_else() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.raise(&"was in", Background, now);
        queue.set_only_urgent(true);
        queue.raise(&"warm", Warmup(Urgency::LEAST), now);
        queue.raise(&"asked", RealTime, now);
        assert_eq!((queue.due_at(&"asked"), queue.due_at(&"warm")), (Some(now), None));
        assert_eq!(order(&mut queue, now), ["asked", "was in"]);
        queue.set_only_urgent(false);
        queue.raise(&"warm", Warmup(Urgency::LEAST), now);
        assert_eq!(order(&mut queue, now), ["warm"]);
    }

    proptest! {
        #[test]
        fn everything_comes_out_once(pushes in prop::collection::vec((0_u8..8, 0_u8..3, 0_u64..5, any::<bool>()), 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _guard = runtime.enter();
            let start = Instant::now();
            let mut queue = Queue::new();
            let mut inside = BTreeSet::new();
            for (key, priority, at, pop) in pushes {
                queue.raise(&key, [Background, Warmup(Urgency::LEAST), RealTime][usize::from(priority)], start + Duration::from_secs(at));
                inside.insert(key);
                if pop && let Some(key) = queue.pop_due(start + Duration::from_secs(2)) {
                    prop_assert!(inside.remove(&key));
                }
            }
            let mut rest: Vec<_> = std::iter::from_fn(|| queue.pop_due(start + Duration::from_secs(9))).collect();
            rest.sort_unstable();
            prop_assert_eq!(rest, inside.into_iter().collect::<Vec<_>>());
            prop_assert!(queue.places.is_empty() && queue.keys.is_empty() && queue.later.is_empty() && queue.due.is_empty());
        }
    }
}
