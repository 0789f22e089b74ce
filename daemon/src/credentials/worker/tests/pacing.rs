//! The order and the number of exchanges.

use super::*;
use crate::credentials::Need;

#[tokio::test(start_paused = true)]
async fn no_more_exchanges_are_out_than_configured() {
    let node = Node::with(Config { concurrency: 16, ..Config::default() });
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let pods: Vec<_> = (0..100).map(|n| node.pod(&format!("pod-{n}"))).collect();
    pods.iter().for_each(|pod| node.manager.warm(pod.clone()));
    pass(15 * SECOND).await;
    assert!(pods.iter().all(|pod| node.manager.valid(&pod.key).is_some()));
    assert_eq!(node.sts.0.most_out.load(Ordering::SeqCst), 16);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sts_holds_up_no_pod_while_the_rate_stays_within_the_burst() {
    let node = Node::with(Config { hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(15 * SECOND, Answer::Issue(HOUR)));
    for n in 0..200 {
        let pod = node.pod(&format!("pod-{n}"));
        let called = node.sts.count();
        node.manager.warm(pod);
        pass(SECOND / 10).await;
        assert_eq!(node.sts.count(), called + 1, "its exchange began at once");
    }
    assert_eq!(node.sts.0.most_out.load(Ordering::SeqCst), 150);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_asked_for_in_bursts() {
    let node = Node::with(Config { hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(MINUTE, Answer::Issue(HOUR)));
    for n in 0..100 {
        node.manager.warm(node.pod(&format!("pod-{n}")));
    }
    for burst in 1..=6 {
        pass(SECOND / 2).await;
        assert_eq!(node.sts.count(), 16 * burst);
        pass(SECOND / 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn second_attempts_count_among_the_exchanges() {
    let node = Node::with(Config { concurrency: 4, ..Config::default() });
    node.sts.always(after(10 * SECOND, Answer::Issue(HOUR)));
    for n in 0..3 {
        node.manager.warm(node.pod(&format!("pod-{n}")));
    }
    pass(9 * SECOND).await;
    assert_eq!(node.sts.count(), 4, "one of three found a place for its second attempt");
    assert_eq!(node.sts.0.most_out.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_second_attempt_that_failed_is_free_at_once() {
    let node = Node::with(Config { concurrency: 2, ..Config::default() });
    let mut answers = [
        after(14 * SECOND, Answer::Issue(HOUR)),
        after(SECOND, unreachable()),
        after(SECOND, Answer::Issue(HOUR)),
    ]
    .into_iter();
    node.sts.answers(move |_| answers.next().unwrap());
    node.manager.warm(node.pod("slow"));
    pass(3 * SECOND + SECOND / 2).await;
    let next = node.pod("next");
    let began = Instant::now();
    node.ask(&next).await.unwrap();
    assert_eq!(node.sts.pods(), ["slow", "slow", "next"]);
    assert_eq!(began.elapsed(), SECOND + SECOND / 2);
}

#[tokio::test(start_paused = true)]
async fn requests_come_before_warming_and_warming_before_refreshing() {
    let node = Node::with(Config { concurrency: 1, hedge_after: HOUR, ..Config::default() });
    let refreshed = node.pod("refreshed");
    node.manager.warm(refreshed.clone());
    pass(29 * MINUTE).await;
    // One exchange takes the only place until the others are all due.
    node.sts.answers(|call| match call.pod.as_str() {
        "slow" => after(10 * MINUTE, Answer::Issue(HOUR)),
        _ => after(SECOND, Answer::Issue(HOUR)),
    });
    node.manager.warm(node.pod("slow"));
    pass(8 * MINUTE).await;
    node.manager.warm(node.pod("warmed-1"));
    node.manager.warm(node.pod("warmed-2"));
    pass(SECOND).await;
    let asked = [node.asking(&node.pod("asked-1")), node.asking(&node.pod("asked-2"))];
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    pass(10 * SECOND).await;
    assert_eq!(
        node.sts.pods(),
        ["refreshed", "slow", "asked-1", "asked-2", "warmed-1", "warmed-2", "refreshed"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_hurries_what_was_only_being_warmed() {
    let node = Node::with(Config { concurrency: 1, ..Config::default() });
    node.sts.always(after(SECOND, Answer::Issue(HOUR)));
    let pods = ["first", "second", "third"].map(|name| node.pod(name));
    pods.iter().for_each(|pod| node.manager.warm(pod.clone()));
    pass(SECOND / 2).await;
    node.ask(&pods[2]).await.unwrap();
    pass(5 * SECOND).await;
    assert_eq!(node.sts.pods(), ["first", "third", "second"]);
}

#[tokio::test(start_paused = true)]
async fn throttling_slows_the_whole_daemon_down() {
    let node = Node::start();
    node.sts.always(throttled());
    let pods: Vec<_> = (0..200).map(|n| node.pod(&format!("pod-{n}"))).collect();
    pods.iter().for_each(|pod| node.manager.warm(pod.clone()));
    pass(MINUTE).await;
    // Two hundred keys with a backoff of their own each would be thousands of calls by now.
    assert!(node.sts.count() < 60, "{}", node.sts.count());
    node.check_metric("rolecall_sts_concurrency_limit 1");
    node.sts.always(after(SECOND / 10, Answer::Issue(HOUR)));
    pass(4 * MINUTE).await;
    assert!(pods.iter().all(|pod| node.manager.valid(&pod.key).is_some()));
    node.check_metric("rolecall_sts_concurrency_limit 16");
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_go_in_front_of_the_pause() {
    let node = Node::start();
    node.sts.always(throttled());
    node.manager.warm(node.pod("a"));
    pass(5 * MINUTE).await;
    let last = node.sts.calls().last().unwrap().at;
    let request = node.pod("b");
    let began = node.sts.0.began.elapsed();
    node.sts.always(Answer::Issue(HOUR));
    node.ask(&request).await.unwrap();
    let gap = node.sts.calls().last().unwrap().at - last;
    assert!(5 * SECOND <= gap || last + 10 * SECOND <= began, "{gap:?}");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_sts_gets_no_second_attempts() {
    let node = Node::start();
    node.sts.always(throttled());
    node.manager.warm(node.pod("a"));
    pass(SECOND / 10).await;
    node.sts.always(after(5 * SECOND, Answer::Issue(HOUR)));
    let calls = node.sts.count();
    node.ask(&node.pod("b")).await.unwrap();
    let of_b = node.sts.pods()[calls..].iter().filter(|pod| *pod == "b").count();
    assert_eq!(of_b, 1);
}

#[tokio::test(start_paused = true)]
async fn the_many_roles_of_one_pod_do_not_make_another_wait() {
    let node = Node::with(Config { concurrency: 8, hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(10 * SECOND, Answer::Issue(HOUR)));
    let greedy = node.pod("greedy");
    let role = |n: usize| SessionRequest {
        key: CredentialKey {
            role: format!("arn:aws:iam::111122223333:role/role-{n}").parse().unwrap(),
            ..greedy.key.clone()
        },
        ..greedy.clone()
    };
    let asking: Vec<_> = (0..16).map(|n| node.asking(&role(n))).collect();
    pass(SECOND).await;
    let began = Instant::now();
    node.ask(&node.pod("modest")).await.unwrap();
    assert_eq!(began.elapsed(), 10 * SECOND, "its exchange began at once");
    for one in asking {
        one.await.unwrap().unwrap();
    }
    assert_eq!(node.sts.count(), 17, "each has its own exchange in the end");
}

/// What is warmed while the only place is taken is fetched in the order of its urgency, and not of its arrival.
#[tokio::test(start_paused = true)]
async fn who_is_about_to_ask_for_the_first_time_is_warmed_first() {
    let node = Node::with(Config { concurrency: 1, hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(SECOND, Answer::Issue(HOUR)));
    let warm = |name: &str, need, age: Duration| {
        let urgency = Urgency { need, created_at: node.now() - age };
        node.manager.warm(SessionRequest { urgency, ..node.pod(name) });
    };
    warm("first-come", Need::Leaves, HOUR);
    pass(SECOND / 2).await;
    warm("drains", Need::Leaves, SECOND);
    warm("runs-for-long", Need::Runs, 100 * HOUR);
    warm("runs", Need::Runs, HOUR);
    warm("starts-in-vain", Need::Starts, 100 * HOUR);
    warm("starts", Need::Starts, SECOND);
    let asked = node.asking(&SessionRequest { urgency: Urgency::LEAST, ..node.pod("asked") });
    pass(2 * SECOND).await;
    // A pod that comes while the backlog is worked off does not stand behind it.
    warm("starts-now", Need::Starts, Duration::ZERO);
    pass(MINUTE).await;
    asked.await.unwrap().unwrap();
    assert_eq!(
        node.sts.pods(),
        ["first-come", "asked", "starts", "starts-now", "starts-in-vain", "runs", "runs-for-long", "drains"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_waited_for_does_not_cost_the_place() {
    let node = Node::with(Config { concurrency: 1, hedge_after: HOUR, ..Config::default() });
    node.sts.always(after(SECOND, Answer::Issue(HOUR)));
    let starts = Urgency { need: Need::Starts, created_at: node.now() };
    node.manager.warm(SessionRequest { urgency: starts, ..request("late", "orders") });
    pass(SECOND / 2).await;
    for name in ["a", "b", "c"] {
        node.manager.warm(node.pod(name));
    }
    pass(SECOND / 2).await;
    node.write_token("late", "token-of-late");
    pass(MINUTE).await;
    assert_eq!(node.sts.pods(), ["a", "late", "b", "c"]);
}
