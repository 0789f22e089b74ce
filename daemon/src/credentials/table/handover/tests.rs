//! Two hand-overs in a row, closer together than the API server tells of every pod.

use std::time::UNIX_EPOCH;

use super::{
    super::{
        Fetched, Limits, Work,
        tests::{credentials, failure, request},
    },
    *,
};
use crate::credentials::handover::Neighbor;

fn at(seconds: u64) -> Now {
    // Paused: the same instant each time.
    let (wall, at) = (UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
    let later = Duration::from_secs(seconds);
    Now { wall: wall + later, at: at + later }
}

fn table() -> Table {
    Table::new(Limits { roles: 2, exchanges: 1 })
}

/// A table that took over at `now` from one whose only exchange came to `fetched`, 10 s before; its pod is not known.
fn unclaimed(fetched: impl FnOnce(&SessionRequest, Now) -> Fetched, now: Now) -> Table {
    let mut first = table();
    first.warm(request(0, 0), at(0));
    let Work { ticket, request, .. } = first.begin(at(0)).unwrap();
    let fetched = fetched(&request, at(0));
    drop(first.finish(&ticket, fetched, at(0)));
    let mut second = table();
    second.adopt(first.freeze(now), |_| None, now);
    second
}

/// The one key that `second` leaves at `now`, taken in by a table that knows the pod; and that table.
fn claimed_by_the_third(mut second: Table, now: Now) -> (Inherited, Table) {
    let [inherited] = <[Inherited; 1]>::try_from(second.freeze(now)).ok().expect("one key");
    let mut third = table();
    third.warm(request(0, 0), now);
    third.adopt(vec![inherited.clone()], |_| None, now);
    (inherited, third)
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_claimed_is_passed_on() {
    let second = unclaimed(|request, now| credentials(request, 3600, now), at(10));
    let (inherited, mut third) = claimed_by_the_third(second, at(30));
    assert!(third.begin(at(30)).is_none(), "it is not asked for again");
    let key = request(0, 0).key;
    assert!(third.status(&key).unwrap().hand_out(at(30).wall).is_some());
    let refresh_in = inherited.refresh_at.duration_since(at(30).wall).unwrap();
    assert_eq!(inherited.due_in, Some(refresh_in));
    assert!(third.begin(Now { at: at(30).at + refresh_in, wall: inherited.refresh_at }).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_passed_on_is_remembered_no_longer_for_it() {
    let remembered = policy::remember_refusal(1).as_secs();
    let second = || unclaimed(|_, _| failure(2), at(1));
    let (inherited, mut third) = claimed_by_the_third(second(), at(2));
    let left = inherited.remembered.map(|(_, left)| left);
    assert_eq!(left, Some(Duration::from_secs(remembered - 2)));
    assert_eq!(inherited.retry_in, Duration::from_secs(remembered - 2));
    assert!(third.begin(at(2)).is_none());
    let (inherited, _) = claimed_by_the_third(second(), at(remembered));
    assert!(inherited.remembered.is_none() && inherited.retry_in.is_zero());
}

#[tokio::test(start_paused = true)]
async fn what_was_not_claimed_for_a_minute_is_left_behind_and_so_is_what_has_expired() {
    let mut second = unclaimed(|request, now| credentials(request, 3600, now), at(10));
    assert_eq!(second.freeze(at(70)).len(), 0);
    let second = unclaimed(|request, now| credentials(request, 100, now), at(50));
    let (inherited, mut third) = claimed_by_the_third(second, at(109));
    assert!(inherited.credentials.is_none());
    assert!(third.begin(at(109)).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_the_first_has_out_is_waited_for_by_the_third_and_not_repeated() {
    for (is_claimed, is_begun) in [(false, false), (true, false), (true, true)] {
        let mut first = table();
        first.warm(request(0, 0), at(0));
        assert!(first.begin(at(0)).unwrap().elsewhere.is_none());
        let mut second = table();
        second.adopt(first.freeze(at(1)), |_| is_claimed.then(|| request(0, 0)), at(1));
        if is_begun {
            assert_eq!(second.begin(at(1)).unwrap().elsewhere, Some(Neighbor::Before));
        }
        let key = request(0, 0).key;
        let inherited = second.freeze(at(2));
        assert!(inherited.len() == 1 && inherited[0].is_under_way);
        // The second hears of its end, as its own or only to pass it on.
        assert_eq!(second.take_relays(), if is_claimed { vec![] } else { vec![key] });
        assert!(second.take_relays().is_empty());
        let is_fetched = second.begin(at(2)).map(|work| work.elsewhere);
        assert_eq!(is_fetched, (is_claimed && !is_begun).then_some(Some(Neighbor::Before)));
        let mut third = table();
        third.warm(request(0, 0), at(2));
        third.adopt(inherited, |_| None, at(2));
        assert_eq!(third.begin(at(2)).unwrap().elsewhere, Some(Neighbor::Before));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_after_the_offer_has_the_next_daemon_asked() {
    let mut first = table();
    first.warm(request(0, 0), at(0));
    drop(first.begin(at(0)));
    let mut second = table();
    second.adopt(first.freeze(at(1)), |_| None, at(1));
    drop(second.freeze(at(2)));
    second.warm(request(0, 0), at(3));
    assert!(second.begin(at(3)).is_none(), "nobody waits for it here");
    let waits = second.request(request(0, 0), at(3)).unwrap();
    second.ask(&request(0, 0).key, at(3));
    assert_eq!(second.begin(at(3)).unwrap().elsewhere, Some(Neighbor::Next));
    drop(waits);
}
