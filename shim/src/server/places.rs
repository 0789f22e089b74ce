//! Who may keep a connection open where there is not room for all: nobody keeps others out by holding many.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// The places of open connections. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Places(Arc<Mutex<Table>>);

/// A place that is held until it is dropped.
pub(super) struct Place {
    places: Places,
    id: u64,
    displaced: Arc<Notify>,
}

/// Whether a newcomer gets a place.
pub(super) enum Admission {
    Free(Place),
    /// In place of the connection of somebody who holds more.
    Displacing(Place),
    /// All others hold fewer places, or none of theirs is idle.
    Refused,
}

struct Table {
    most: usize,
    /// What the next connection, or change of one, is numbered.
    next: u64,
    held: HashMap<u64, Held>,
    count: HashMap<IpAddr, usize>,
}

struct Held {
    peer: IpAddr,
    /// A whole review has come, and its answer is being made: this takes no longer than we want it to.
    is_answered: bool,
    /// Number of the last change.
    since: u64,
    displaced: Arc<Notify>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Table { most, next: 0, held: HashMap::new(), count: HashMap::new() })))
    }

    /// A place for a connection of `peer`. Where there is none, whoever holds the most gives up the one that has been
    /// idle for the longest time, if that leaves them with no fewer than `peer`.
    pub(super) fn take(&self, peer: IpAddr) -> Admission {
        let mut table = self.lock();
        if table.held.len() < table.most {
            return Admission::Free(self.hold(&mut table, peer));
        }
        let Some(victim) = table.victim(peer) else { return Admission::Refused };
        if let Some(held) = table.remove(victim) {
            held.displaced.notify_one();
        }
        Admission::Displacing(self.hold(&mut table, peer))
    }

    fn hold(&self, table: &mut Table, peer: IpAddr) -> Place {
        let displaced = Arc::new(Notify::new());
        let id = table.number();
        let held = Held { peer, is_answered: false, since: id, displaced: displaced.clone() };
        table.held.insert(id, held);
        *table.count.entry(peer).or_default() += 1;
        Place { places: self.clone(), id, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn victim(&self, newcomer: IpAddr) -> Option<u64> {
        let held_by = |peer: IpAddr| self.count.get(&peer).copied().unwrap_or_default();
        let least = held_by(newcomer) + 1;
        let idle = self.held.iter().filter(|(_, held)| !held.is_answered && least < held_by(held.peer));
        idle.max_by_key(|(_, held)| (held_by(held.peer), std::cmp::Reverse(held.since))).map(|(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        if let Some(count) = self.count.get_mut(&held.peer) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&held.peer);
            }
        }
        Some(held)
    }
}

impl Place {
    /// Completes once the place is another's.
    pub(super) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    /// Whether a review that has come whole is being answered on this connection.
    pub(super) fn set_answered(&self, is_answered: bool) {
        let mut table = self.places.lock();
        let since = table.number();
        if let Some(held) = table.held.get_mut(&self.id) {
            (held.is_answered, held.since) = (is_answered, since);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.id);
    }
}

/// A body that tells its connection's place when it has come whole: until then it takes as long as its sender wants.
pub(super) struct Arriving<B> {
    pub(super) body: B,
    pub(super) place: Arc<Place>,
}

impl<B: Body + Unpin> Body for Arriving<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            self.place.set_answered(true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn place(admission: Admission) -> Option<Place> {
        match admission {
            Admission::Free(place) | Admission::Displacing(place) => Some(place),
            Admission::Refused => None,
        }
    }

    fn is_displaced(place: &Place) -> bool {
        place.displaced().now_or_never().is_some()
    }

    #[test]
    fn who_holds_all_places_gives_up_the_one_that_was_idle_for_the_longest_time() {
        let places = Places::new(4);
        let greedy: Vec<_> = (0..4).map(|_| place(places.take(peer(1))).unwrap()).collect();
        assert!(matches!(places.take(peer(1)), Admission::Refused), "not from itself");
        greedy[0].set_answered(true);
        greedy[1].set_answered(true);
        greedy[1].set_answered(false);
        let Admission::Displacing(first) = places.take(peer(2)) else { panic!("kept out") };
        assert_eq!([0, 1, 2, 3].map(|index| is_displaced(&greedy[index])), [false, false, true, false]);
        let Admission::Displacing(_second) = places.take(peer(2)) else { panic!("kept out") };
        assert!(is_displaced(&greedy[3]));
        assert!(matches!(places.take(peer(2)), Admission::Refused), "both hold as many now");
        drop(greedy);
        assert!(matches!(places.take(peer(2)), Admission::Free(_)) && !is_displaced(&first));
    }

    #[test]
    fn an_answer_in_the_making_is_not_cut_off() {
        let places = Places::new(3);
        let greedy: Vec<_> = (0..3).map(|_| place(places.take(peer(1))).unwrap()).collect();
        greedy.iter().for_each(|place| place.set_answered(true));
        assert!(matches!(places.take(peer(2)), Admission::Refused));
        greedy[1].set_answered(false);
        assert!(matches!(places.take(peer(2)), Admission::Displacing(_)));
    }

    proptest! {
        #[test]
        fn everybody_can_have_a_fair_share(
            peers in proptest::collection::vec(0..4_u8, 1..80), most in 1..12_usize,
        ) {
            let places = Places::new(most);
            let mut held = Vec::new();
            for number in peers {
                held.extend(place(places.take(peer(number))));
                held.retain(|place| !is_displaced(place));
                let table = places.lock();
                prop_assert_eq!(table.held.len(), held.len());
                prop_assert_eq!(table.count.values().sum::<usize>(), held.len());
                prop_assert!(held.len() <= most);
            }
            // Whoever asks can have a share, where there is one for each.
            for number in 0..4 {
                for _ in 0..most / 4 {
                    held.extend(place(places.take(peer(number))));
                }
                let count = places.lock().count.get(&peer(number)).copied().unwrap_or_default();
                prop_assert!(most / 4 <= count, "{} of {} places", count, most);
            }
        }
    }
}
