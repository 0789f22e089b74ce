//! Refreshes: beside, in time, and without loss when they fail.

use super::*;
use crate::credentials::Mark;

#[tokio::test(start_paused = true)]
async fn a_refresh_happens_beside_and_swaps_when_it_is_there() {
    let (node, request) = Node::with_warm_pod().await;
    node.sts.always(after(10 * SECOND, Answer::Issue(HOUR)));
    while node.sts.count() < 2 {
        pass(SECOND).await;
    }
    let refreshed_at = node.sts.calls()[1].at;
    assert!((30 * MINUTE..=36 * MINUTE).contains(&refreshed_at), "{refreshed_at:?}");
    let held = node.manager.valid(&request.key).unwrap();
    assert_eq!(held.access_key_id(), "ASIA1");
    assert_eq!(node.ask(&request).await.unwrap().access_key_id(), "ASIA1", "nobody waits for a refresh");
    pass(10 * SECOND).await;
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn what_is_warm_stays_warm_for_a_day() {
    let (node, request) = Node::with_warm_pod().await;
    for _ in 0..24 * 60 {
        pass(MINUTE).await;
        let left = node.manager.valid(&request.key).unwrap().expires_at().duration_since(node.now()).unwrap();
        assert!(20 * MINUTE < left, "{left:?}");
    }
    assert!((24 * 60 / 36..=24 * 60 / 29).contains(&node.sts.count()), "{}", node.sts.count());
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_found_again_until_something_better_is_there_and_no_longer() {
    let (node, request) = Node::with_warm_pod().await;
    let key_id =
        |mark: &Mark| node.manager.again(mark, node.now()).map(|found| found.access_key_id().to_owned());
    let found = node.manager.find(&request.key).unwrap();
    let mark = found.mark();
    assert_eq!(key_id(&mark).as_deref(), Some(found.credentials().access_key_id()));
    while node.sts.count() < 2 {
        pass(SECOND).await;
    }
    pass(SECOND).await;
    assert_eq!(key_id(&mark), None, "it was renewed");
    let renewed = node.manager.find(&request.key).unwrap();
    let mark = renewed.mark();
    assert_ne!(renewed.credentials().access_key_id(), found.credentials().access_key_id());
    assert_eq!(key_id(&mark).as_deref(), Some(renewed.credentials().access_key_id()));
    node.manager.forget(&request.key.pod);
    assert_eq!(key_id(&mark), None, "its pod is gone");
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_not_found_again_once_a_closer_look_is_due_or_it_has_expired() {
    let (node, request) = Node::with_warm_pod().await;
    let mark = node.manager.find(&request.key).unwrap().mark();
    // Nothing touches the table: the clock is stepped, and no timer notices.
    let is_there_in = |minutes: u32| node.manager.again(&mark, node.now() + minutes * MINUTE).is_some();
    assert!(is_there_in(39));
    assert!(!is_there_in(41), "less than 20 min are left");
    assert!(!is_there_in(101));
}

#[tokio::test(start_paused = true)]
async fn what_a_request_fetched_is_kept_fresh_too() {
    let node = Node::start();
    let request = node.pod("a");
    node.ask(&request).await.unwrap();
    pass(2 * HOUR).await;
    assert!(node.manager.valid(&request.key).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_costs_nothing_until_shortly_before_the_advertised_expiry() {
    let (node, request) = Node::with_warm_pod().await;
    let handed_out_until = node.manager.valid(&request.key).unwrap().handed_out_until();
    node.sts.always(unreachable());
    while node.now() < handed_out_until - SECOND {
        pass(SECOND).await;
        assert!(node.manager.valid(&request.key).is_some());
        assert!(matches!(node.at_once(&request).await, Some(Ok(_))));
    }
    let last = node.manager.valid(&request.key).unwrap();
    assert!(node.now() < last.handed_out_until());
    pass(handed_out_until.duration_since(node.now()).unwrap()).await;
    assert!(node.manager.valid(&request.key).is_none(), "nothing is handed out once that moment has come");
    assert!(node.pending(&request).best().is_none());
    assert!(node.at_once(&request).await.is_none());
    node.check_metric("rolecall_sts_requests_total{outcome=\"denied\"} 0");
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_tried_again_well_before_expiry() {
    let (node, request) = Node::with_warm_pod().await;
    node.sts.always(unreachable());
    pass(58 * MINUTE).await;
    let gaps = node.sts.gaps();
    assert!(5 < gaps.len(), "{gaps:?}");
    assert!(gaps[1..].iter().all(|gap| *gap <= 300.0), "{gaps:?}");
    node.sts.always(Answer::Issue(HOUR));
    pass(30 * SECOND).await;
    assert!(node.manager.valid(&request.key).unwrap().access_key_id() != "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn a_denial_does_not_drop_what_is_valid() {
    let (node, request) = Node::with_warm_pod().await;
    node.sts.always(denied());
    pass(55 * MINUTE).await;
    assert!(1 < node.sts.count());
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA1");
    assert!(matches!(node.at_once(&request).await, Some(Ok(_))));
    node.sts.always(Answer::Issue(HOUR));
    pass(2 * MINUTE).await;
    assert_ne!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn the_expiry_is_compared_on_each_read_with_the_wall_clock() {
    let (node, request) = Node::with_warm_pod().await;
    node.sts.always(unreachable());
    node.step_clock(2 * HOUR);
    assert!(node.manager.valid(&request.key).is_none());
    assert!(node.pending(&request).best().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_clock_is_noticed_within_half_a_minute() {
    let (node, request) = Node::with_warm_pod().await;
    node.step_clock(2 * HOUR);
    pass(31 * SECOND).await;
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn below_the_floor_a_request_gets_fresh_ones_while_sts_is_healthy() {
    let (node, request) = Node::with_warm_pod().await;
    node.step_clock(42 * MINUTE);
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    assert!(node.manager.valid(&request.key).is_none());
    let mut pending = node.pending(&request);
    assert!(tokio::time::timeout(SECOND, pending.outcome()).await.is_err());
    assert_eq!(pending.best().unwrap().access_key_id(), "ASIA1", "better than nothing when the wait ends");
    assert_eq!(pending.outcome().await.unwrap().access_key_id(), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn below_the_floor_the_old_ones_are_handed_out_while_sts_fails() {
    for failure in [unreachable(), throttled(), denied(), token_refused()] {
        let (node, request) = Node::with_warm_pod().await;
        node.step_clock(42 * MINUTE);
        node.sts.always(after(SECOND, failure));
        let began = Instant::now();
        assert_eq!(node.ask(&request).await.unwrap().access_key_id(), "ASIA1");
        assert_eq!(began.elapsed(), SECOND, "as soon as the failure is known");
        assert!(node.manager.valid(&request.key).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn short_sessions_have_no_floor() {
    let node = Node::start();
    node.sts.always(Answer::Issue(15 * MINUTE));
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(SECOND).await;
    for _ in 0..60 {
        pass(MINUTE).await;
        assert!(node.manager.valid(&request.key).is_some());
    }
    assert!(node.sts.count() <= 10, "{}", node.sts.count());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_by_what_expires_earlier() {
    let (node, request) = Node::with_warm_pod().await;
    node.sts.always(Answer::Issue(15 * MINUTE));
    pass(45 * MINUTE).await;
    assert!(1 < node.sts.count());
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA1", "though below the floor");
    pass(15 * MINUTE).await;
    assert_ne!(
        node.manager.valid(&request.key).unwrap().access_key_id(),
        "ASIA1",
        "but by what lasts longer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_gone_does_not_take_valid_credentials_with_it() {
    let (node, request) = Node::with_warm_pod().await;
    node.remove_token("a");
    pass(55 * MINUTE).await;
    assert!(node.manager.valid(&request.key).is_some(), "a pod that is draining still needs them");
}
