//! Failures: which are told, how long they are remembered, and when the worker tries again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_no_outcome_while_it_is_retried() {
    for failure in [unreachable(), throttled()] {
        let node = Node::start();
        let mut answers = vec![Answer::Issue(HOUR), failure.clone(), failure.clone(), failure];
        node.sts.answers(move |_| answers.pop().unwrap());
        assert_eq!(node.ask(&node.pod("a")).await.unwrap().access_key_id(), "ASIA4");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_are_never_further_apart_than_ten_seconds_while_a_request_waits() {
    let node = Node::start();
    node.sts.always(unreachable());
    let request = node.pod("a");
    let waiter = node.asking(&request);
    pass(10 * MINUTE).await;
    waiter.abort();
    let gaps = node.sts.gaps();
    assert!(60 < gaps.len(), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 10.0), "{gaps:?}");
    assert!(gaps.iter().any(|gap| 5.0 < *gap), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_minute_apart_at_most_when_nobody_waits() {
    let node = Node::start();
    node.sts.always(unreachable());
    node.manager.warm(node.pod("a"));
    pass(HOUR).await;
    let gaps = node.sts.gaps();
    assert!(gaps.iter().all(|gap| *gap <= 60.0), "{gaps:?}");
    assert!(gaps.iter().any(|gap| 20.0 < *gap), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_pulls_the_retry_forward() {
    let node = Node::start();
    node.sts.always(unreachable());
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(HOUR).await;
    // Until the last attempt is more than ten seconds ago, so that only a request can bring the next one now.
    while node.sts.0.began.elapsed() - node.sts.calls().last().unwrap().at < 11 * SECOND {
        pass(SECOND / 4).await;
    }
    node.sts.always(Answer::Issue(HOUR));
    let began = Instant::now();
    node.ask(&request).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn callers_that_come_and_go_do_not_drive_the_retries() {
    let node = Node::start();
    node.sts.always(unreachable());
    let request = node.pod("a");
    for _ in 0..6000 {
        assert!(node.at_once(&request).await.is_none());
        pass(SECOND / 100).await;
    }
    assert!(node.sts.count() < 60, "{}", node.sts.count());
}

#[tokio::test(start_paused = true)]
async fn giving_up_is_remembered_for_five_seconds_where_no_attempt_is_running() {
    let node = Node::start();
    node.sts.always(unreachable());
    let request = node.pod("a");
    let Err(FetchError::Unreachable { cause }) = node.ask(&request).await else {
        panic!("it is out of reach")
    };
    assert_eq!(&*cause, "connection refused");
    pass(4900 * SECOND / 1000).await;
    assert!(matches!(node.at_once(&request).await, Some(Err(FetchError::Unreachable { .. }))));
    pass(SECOND / 5).await;
    assert!(node.at_once(&request).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_there_as_soon_as_it_succeeds() {
    let node = Node::start();
    node.sts.always(throttled());
    let request = node.pod("a");
    node.manager.warm(request.clone());
    assert!(matches!(node.ask(&request).await, Err(FetchError::Throttled { .. })));
    node.sts.always(Answer::Issue(HOUR));
    while node.manager.valid(&request.key).is_none() {
        pass(SECOND).await;
    }
    assert!(matches!(node.at_once(&request).await, Some(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn giving_up_on_a_running_attempt_remembers_nothing_and_the_retry_waits_for_it() {
    let node = Node::with(Config { hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(25 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let Err(FetchError::Unreachable { cause }) = node.ask(&request).await else { panic!("it is running") };
    assert_eq!(&*cause, "an attempt is still running");
    assert!(node.at_once(&request).await.is_none());
    assert_eq!(node.ask(&request).await.unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_for_longer_each_time_up_to_thirty_seconds() {
    let node = Node::start();
    node.sts.always(denied());
    let request = node.pod("a");
    node.manager.warm(request.clone());
    let mut calls = 0;
    for seconds in [5, 10, 20] {
        calls += 1;
        assert!(matches!(node.ask(&request).await, Err(FetchError::Denied { .. })));
        assert_eq!(node.sts.count(), calls);
        pass(seconds * SECOND - SECOND / 10).await;
        assert!(matches!(node.at_once(&request).await, Some(Err(FetchError::Denied { .. }))));
        assert_eq!(node.sts.count(), calls, "nobody asks while it is remembered");
        pass(SECOND / 5).await;
    }
    node.sts.always(Answer::Issue(HOUR));
    assert!(node.ask(&request).await.is_ok(), "a mended trust policy is noticed by the next request");
}

#[tokio::test(start_paused = true)]
async fn a_denied_pod_is_asked_for_again_in_the_background() {
    let node = Node::start();
    node.sts.always(denied());
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(HOUR).await;
    let gaps = node.sts.gaps();
    assert!(gaps.iter().all(|gap| (30.0..=300.0).contains(gap)), "{gaps:?}");
    node.check_metric("rolecall_credentials{state=\"failed\"} 1");
    node.sts.always(Answer::Issue(HOUR));
    pass(300 * SECOND).await;
    assert!(node.manager.valid(&request.key).is_some());
    node.check_metric("rolecall_credentials{state=\"failed\"} 0");
}

#[tokio::test(start_paused = true)]
async fn a_typo_does_not_keep_a_place() {
    let node = Node::with(Config { roles_per_pod: 1, ..Config::default() });
    node.sts.answers(|call| if call.role == "typo" { denied() } else { Answer::Issue(HOUR) });
    let right = node.pod("a");
    assert!(node.ask(&request("a", "typo")).await.is_err());
    assert!(node.manager.request(right.clone()).is_err());
    pass(6 * SECOND).await;
    node.check_metric("rolecall_credentials{state=\"failed\"} 0");
    assert!(node.ask(&right).await.is_ok());
    assert_eq!(node.sts.count(), 2, "nobody asked for the typo again");
}

#[tokio::test(start_paused = true)]
async fn a_typo_makes_room_even_while_all_places_with_sts_are_taken() {
    let node = Node::with(Config { roles_per_pod: 1, concurrency: 1, ..Config::default() });
    node.sts.answers(|call| match call.role.as_str() {
        "typo" => denied(),
        _ => after(10 * SECOND, Answer::Issue(HOUR)),
    });
    let right = node.pod("a");
    assert!(node.ask(&request("a", "typo")).await.is_err());
    node.manager.warm(node.pod("b"));
    pass(6 * SECOND).await;
    assert!(node.ask(&right).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_a_request_wanted_is_tried_for_a_minute_after_it_left() {
    let node = Node::start();
    node.sts.always(unreachable());
    let request = node.pod("a");
    assert!(node.at_once(&request).await.is_none());
    pass(30 * SECOND).await;
    node.check_metric("rolecall_credentials{state=\"failed\"} 1");
    pass(2 * MINUTE).await;
    node.check_metric("rolecall_credentials{state=\"failed\"} 0");
    let calls = node.sts.count();
    pass(HOUR).await;
    assert_eq!(node.sts.count(), calls);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_must_not_be_served_is_no_answer() {
    let node = Node::start();
    node.sts.always(Answer::Issue(MINUTE));
    let request = node.pod("a");
    let Err(FetchError::Unreachable { cause }) = node.ask(&request).await else {
        panic!("it cannot be served")
    };
    assert!(cause.contains("has expired, or will"), "{cause}");
    assert!(node.manager.valid(&request.key).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_exchange_fails_that_one_alone() {
    let node = Node::start();
    node.sts.answers(|call| if call.pod == "bad" { Answer::Panic } else { Answer::Issue(HOUR) });
    let bad = node.pod("bad");
    assert!(matches!(node.ask(&bad).await, Err(FetchError::Unreachable { .. })));
    assert!(node.ask(&node.pod("a")).await.is_ok());
    node.sts.always(Answer::Issue(HOUR));
    pass(30 * SECOND).await;
    assert!(node.ask(&bad).await.is_ok());
    node.check_metric("rolecall_sts_requests_in_flight 0");
}

#[tokio::test(start_paused = true)]
async fn one_request_that_gives_up_ends_no_other_that_waits() {
    let node = Node::start();
    node.sts.always(unreachable());
    let pod = node.pod("a");
    let mut first = node.pending(&pod);
    assert!(tokio::time::timeout(19 * SECOND, first.outcome()).await.is_err());
    let second = node.asking(&pod);
    assert!(tokio::time::timeout(SECOND, first.outcome()).await.is_err());
    assert!(matches!(first.give_up(), FetchError::Unreachable { .. }));
    // Who comes now is told at once; who waits goes on.
    assert!(matches!(node.at_once(&pod).await, Some(Err(FetchError::Unreachable { .. }))));
    node.sts.always(Answer::Issue(HOUR));
    second.await.unwrap().unwrap();
}
