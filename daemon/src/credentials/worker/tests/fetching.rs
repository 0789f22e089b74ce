//! Fetches: one for many, owned by the worker, with the token that is on disk.

use super::*;

#[tokio::test(start_paused = true)]
async fn warm_credentials_are_there_before_the_first_request() {
    let (node, request) = Node::with_warm_pod().await;
    let credentials = node.ask(&request).await.unwrap();
    assert_eq!(credentials.access_key_id(), "ASIA1");
    assert_eq!(credentials.role(), &request.key.role);
    assert_eq!(node.sts.count(), 1);
    node.check_metric("rolecall_credentials{state=\"valid\"} 1");
}

#[tokio::test(start_paused = true)]
async fn sixty_four_waiters_share_one_exchange() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let waiters: Vec<_> = (0..64).map(|_| node.asking(&request)).collect();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap().access_key_id(), "ASIA1");
    }
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_waiters_share_one_refusal() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, denied()));
    let request = node.pod("a");
    let waiters: Vec<_> = (0..64).map(|_| node.asking(&request)).collect();
    for waiter in waiters {
        assert!(matches!(waiter.await.unwrap(), Err(FetchError::Denied { .. })));
    }
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_cancels_nothing() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let mut pending = node.pending(&request);
    assert!(tokio::time::timeout(SECOND, pending.outcome()).await.is_err());
    drop(pending);
    pass(2 * SECOND).await;
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_can_be_broken_off_and_taken_up_again() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let mut pending = node.pending(&request);
    for _ in 0..4 {
        assert!(tokio::time::timeout(SECOND * 2 / 5, pending.outcome()).await.is_err());
    }
    assert_eq!(pending.outcome().await.unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn roles_of_one_pod_are_fetched_apart() {
    let node = Node::start();
    let orders = node.pod("a");
    let billing = request("a", "billing");
    assert_eq!(node.ask(&orders).await.unwrap().role().name(), "orders");
    assert_eq!(node.ask(&billing).await.unwrap().role().name(), "billing");
    assert_eq!(node.sts.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sts_is_not_a_dead_one_and_gets_one_second_attempt() {
    let node = Node::start();
    node.sts.always(after(10 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let began = Instant::now();
    assert_eq!(node.ask(&request).await.unwrap().access_key_id(), "ASIA1", "the first attempt won");
    assert_eq!(began.elapsed(), 10 * SECOND);
    assert_eq!(node.sts.gaps(), [3.0]);
    pass(MINUTE).await;
    assert_eq!(node.sts.count(), 2);
    assert_eq!(node.sts.0.out.load(Ordering::SeqCst), 0, "the attempt that lost is over");
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_wins_when_it_answers_first() {
    let node = Node::start();
    let mut delays = [14 * SECOND, SECOND].into_iter();
    node.sts.answers(move |_| after(delays.next().unwrap(), Answer::Issue(HOUR)));
    let request = node.pod("a");
    let began = Instant::now();
    assert_eq!(node.ask(&request).await.unwrap().access_key_id(), "ASIA2");
    assert_eq!(began.elapsed(), 4 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_got_no_answer_leaves_it_to_the_other() {
    let node = Node::start();
    let mut answers = [after(14 * SECOND, Answer::Issue(HOUR)), after(SECOND, unreachable())].into_iter();
    node.sts.answers(move |_| answers.next().unwrap());
    assert_eq!(node.ask(&node.pod("a")).await.unwrap().access_key_id(), "ASIA1");

    let mut answers = [after(4 * SECOND, unreachable()), after(6 * SECOND, Answer::Issue(HOUR))].into_iter();
    node.sts.answers(move |_| answers.next().unwrap());
    assert_eq!(node.ask(&node.pod("b")).await.unwrap().access_key_id(), "ASIA4");
}

#[tokio::test(start_paused = true)]
async fn the_token_is_read_for_each_exchange() {
    let (node, _request) = Node::with_warm_pod().await;
    node.write_token("a", "rotated");
    pass(36 * MINUTE).await;
    let tokens: Vec<_> = node.sts.calls().into_iter().map(|call| call.token).collect();
    assert_eq!(tokens, ["token-of-a", "rotated"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_tried_again_at_once_where_there_is_a_newer_one() {
    let node = Node::start();
    let request = node.pod("a");
    let path = node.token_path("a");
    node.sts.answers(move |call| match call.token.as_str() {
        "newer" => Answer::Issue(HOUR),
        _ => {
            std::fs::write(&path, "newer").unwrap();
            token_refused()
        }
    });
    assert!(node.ask(&request).await.is_ok());
    assert_eq!(node.sts.gaps(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_that_is_the_newest_is_remembered_as_refused() {
    let node = Node::start();
    node.sts.always(token_refused());
    let request = node.pod("a");
    assert!(matches!(node.ask(&request).await, Err(FetchError::TokenRefused { .. })));
    assert!(matches!(node.at_once(&request).await, Some(Err(FetchError::TokenRefused { .. }))));
    assert_eq!(node.sts.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_token_never_comes_holds_up_nobody() {
    let node = Node::with(Config { concurrency: 1, ..Config::default() });
    let late = request("late", "orders");
    node.manager.warm(late.clone());
    pass(SECOND).await;
    assert!(node.ask(&node.pod("a")).await.is_ok());
    node.check_metric("rolecall_credentials{state=\"pending\"} 1");
    pass(HOUR).await;
    assert!(!node.sts.pods().contains(&"late".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_used_the_moment_it_is_written() {
    let node = Node::start();
    let late = request("late", "orders");
    node.manager.warm(late.clone());
    pass(SECOND / 2).await;
    node.write_token("late", "at last");
    pass(SECOND / 10).await;
    assert!(node.manager.valid(&late.key).is_some());
    node.check_metric("rolecall_token_wait_seconds_count 1");
    node.check_metric("rolecall_token_wait_seconds_bucket{le=\"0.25\"} 0");
    node.check_metric("rolecall_token_wait_seconds_bucket{le=\"1.0\"} 1");
}

#[tokio::test(start_paused = true)]
async fn a_request_has_an_old_pods_token_looked_for_at_once() {
    let node = Node::start();
    let late = request("late", "orders");
    node.manager.warm(late.clone());
    pass(HOUR).await;
    node.write_token("late", "at last");
    let began = Instant::now();
    assert!(node.ask(&late).await.is_ok());
    assert!(began.elapsed() < SECOND / 10, "{:?}", began.elapsed());
    node.check_metric("rolecall_token_wait_seconds_count 0");
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_missing_token_is_told_so_after_its_wait() {
    let node = Node::start();
    let late = request("late", "orders");
    assert!(matches!(node.ask(&late).await, Err(FetchError::TokenMissing)));
    assert!(matches!(node.at_once(&late).await, Some(Err(FetchError::TokenMissing))), "it is remembered");
    node.write_token("late", "at last");
    pass(5 * SECOND).await;
    assert!(matches!(node.at_once(&late).await, Some(Ok(_))), "the wait went on");
}

#[tokio::test(start_paused = true)]
async fn an_unusable_token_is_an_outcome() {
    let node = Node::start();
    node.write_token("a", &"x".repeat(17 * 1024));
    assert!(matches!(node.ask(&request("a", "orders")).await, Err(FetchError::TokenUnusable(_))));
    assert_eq!(node.sts.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_comes_for_a_forgotten_pod_is_dropped() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    node.manager.warm(request.clone());
    let waiter = node.asking(&request);
    pass(SECOND).await;
    assert_eq!(node.sts.count(), 1);
    node.manager.forget(&request.key.pod);
    assert!(matches!(waiter.await.unwrap(), Err(FetchError::PodGone)));
    pass(MINUTE).await;
    assert!(node.manager.valid(&request.key).is_none());
    assert_eq!(node.sts.0.out.load(Ordering::SeqCst), 0);
    for state in ["valid", "pending", "failed"] {
        node.check_metric(&format!("rolecall_credentials{{state=\"{state}\"}} 0"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_forgotten_with_all_its_roles_and_at_once() {
    let (node, request) = Node::with_warm_pod().await;
    let billing = super::request("a", "billing");
    node.ask(&billing).await.unwrap();
    let other = node.pod("b");
    node.ask(&other).await.unwrap();
    let pending = node.pending(&request);
    node.manager.forget(&request.key.pod);
    assert!(pending.best().is_none());
    assert!(node.manager.valid(&request.key).is_none());
    assert!(node.manager.valid(&billing.key).is_none());
    assert!(node.manager.valid(&other.key).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_decided_before_its_pod_was_forgotten_does_not_bring_it_back() {
    let (node, request) = Node::with_warm_pod().await;
    node.manager.forget(&request.key.pod);
    assert!(matches!(node.at_once(&request).await, Some(Err(FetchError::PodGone))));
    assert!(matches!(node.pending(&request).give_up(), FetchError::PodGone));
    pass(MINUTE).await;
    assert_eq!(node.sts.count(), 1);
    node.manager.warm(request.clone());
    assert!(node.ask(&request).await.is_ok(), "but the watch may");
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_token_ends_with_its_pod() {
    let node = Node::start();
    let late = request("late", "orders");
    node.manager.warm(late.clone());
    pass(SECOND).await;
    node.manager.forget(&late.key.pod);
    node.write_token("late", "at last");
    pass(HOUR).await;
    assert_eq!(node.sts.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_ask_for_so_many_roles_and_no_more() {
    let node = Node::with(Config { roles_per_pod: 2, ..Config::default() });
    let own = node.pod("a");
    node.ask(&own).await.unwrap();
    node.ask(&request("a", "second")).await.unwrap();
    let refused = node.manager.request(request("a", "third")).err().unwrap();
    assert_eq!(refused.limit, 2);
    assert!(node.ask(&own).await.is_ok(), "those it has stay");
    assert!(node.ask(&node.pod("b")).await.is_ok(), "another pod has its own");
    let warmed = request("a", "annotated");
    node.manager.warm(warmed.clone());
    pass(SECOND).await;
    assert!(node.manager.valid(&warmed.key).is_some(), "the pod's own role is never refused");
}
