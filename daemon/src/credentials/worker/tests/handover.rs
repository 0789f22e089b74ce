//! Hand-overs: what one daemon knows, the next does not ask STS for again.

use std::collections::HashMap;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

use super::*;
use crate::credentials::{Counterpart, Inherited, Outcome, Worker};

/// The next daemon of the node: the same tokens and the same STS, and a worker that waits to be told to begin.
struct Next {
    manager: CredentialManager,
    worker: Worker<FakeSts>,
}

/// The other daemon, without the sockets in between.
#[derive(Default)]
struct Other {
    /// Whom to ask.
    manager: Mutex<Option<CredentialManager>>,
    requests: Mutex<HashMap<CredentialKey, SessionRequest>>,
    awaited: Mutex<HashMap<CredentialKey, oneshot::Sender<Option<Outcome>>>>,
}

impl Other {
    /// Tells what its exchange for `key` came to, or that it is gone.
    fn ends(&self, key: &CredentialKey, outcome: Option<Outcome>) {
        if let Some(awaited) = self.awaited.lock().unwrap().remove(key) {
            let _ = awaited.send(outcome);
        }
    }
}

impl Counterpart for Other {
    fn fetch(&self, key: &CredentialKey) -> BoxFuture<'static, Option<Outcome>> {
        if let Some(manager) = self.manager.lock().unwrap().clone() {
            let request = self.requests.lock().unwrap()[key].clone();
            return async move { Some(manager.request(request).ok()?.outcome().await) }.boxed();
        }
        let (end, ended) = oneshot::channel();
        self.awaited.lock().unwrap().insert(key.clone(), end);
        ended.map(|ended| ended.ok().flatten()).boxed()
    }

    fn ended(&self, _: &CredentialKey, _: Option<&Outcome>) {}
}

/// Passes the ends of the old daemon's exchanges to the new one.
struct Heir(Arc<Other>);

impl Counterpart for Heir {
    fn fetch(&self, _: &CredentialKey) -> BoxFuture<'static, Option<Outcome>> {
        std::future::ready(None).boxed()
    }

    fn ended(&self, key: &CredentialKey, outcome: Option<&Outcome>) {
        self.0.ends(key, outcome.cloned());
    }
}

impl Node {
    fn next(&self) -> Next {
        let tokens = TokenSource::new(self.pods_dir.path().to_owned());
        let (manager, worker) = CredentialManager::new(
            Config::default(),
            self.sts.clone(),
            tokens,
            self.clock.clone(),
            Metrics::default(),
        );
        Next { manager, worker }
    }

    /// Hands over to `next`, whose pods are those of `requests`.
    fn hand_over(&self, next: Next, requests: &[&SessionRequest]) -> (CredentialManager, Arc<Other>) {
        for request in requests {
            next.manager.warm((*request).clone());
        }
        let old = Arc::new(Other::default());
        let inherited = self.manager.freeze(Arc::new(Heir(old.clone())));
        (next.take_over(inherited, old.clone(), |_| None), old)
    }
}

impl Next {
    fn take_over(
        self,
        inherited: Vec<Inherited>,
        old: Arc<Other>,
        wanted: impl Fn(&CredentialKey) -> Option<SessionRequest>,
    ) -> CredentialManager {
        self.manager.adopt(inherited, old, wanted);
        spawn(self.worker.run(std::future::pending()));
        self.manager
    }
}

/// Looks, when it is told of an end, whether the old daemon has it in its table already.
struct Witness {
    old: CredentialManager,
    was_there: Mutex<Option<bool>>,
}

impl Counterpart for Witness {
    fn fetch(&self, _: &CredentialKey) -> BoxFuture<'static, Option<Outcome>> {
        std::future::ready(None).boxed()
    }

    fn ended(&self, key: &CredentialKey, _: Option<&Outcome>) {
        *self.was_there.lock().unwrap() = Some(self.old.valid(key).is_some());
    }
}

/// Otherwise an offer between the telling and the table would speak of an exchange whose end nobody tells.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_exchange_is_in_the_table_before_it_is_told() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    node.manager.warm(request);
    pass(SECOND).await;
    let witness = Arc::new(Witness { old: node.manager.clone(), was_there: Mutex::new(None) });
    node.manager.freeze(witness.clone());
    pass(2 * SECOND).await;
    assert_eq!(*witness.was_there.lock().unwrap(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn the_daemon_before_is_forgotten_with_the_last_of_its_exchanges() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(SECOND).await;
    let (new, old) = node.hand_over(node.next(), &[&request]);
    pass(40 * SECOND).await;
    assert!(new.valid(&request.key).is_some());
    assert_eq!(Arc::strong_count(&old), 2, "the node's own heir has it, and the test");
}

#[tokio::test(start_paused = true)]
async fn what_is_warm_stays_warm_and_is_refreshed_by_the_new_daemon_alone() {
    let (node, request) = Node::with_warm_pod().await;
    let (new, _) = node.hand_over(node.next(), &[&request]);
    pass(SECOND).await;
    assert_eq!(new.valid(&request.key).unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.manager.valid(&request.key).unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.sts.count(), 1);
    pass(40 * MINUTE).await;
    assert_eq!(node.sts.count(), 2, "one of the two refreshes");
    assert_eq!(new.valid(&request.key).unwrap().access_key_id(), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_out_is_finished_by_the_old_daemon_for_both() {
    let node = Node::start();
    node.sts.always(after(10 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    let waiter = node.asking(&request);
    pass(SECOND).await;
    let (new, _) = node.hand_over(node.next(), &[&request]);
    let mut pending = new.request(request.clone()).unwrap();
    assert_eq!(pending.outcome().await.unwrap().access_key_id(), "ASIA1");
    assert_eq!(waiter.await.unwrap().unwrap().access_key_id(), "ASIA1");
    assert_eq!(node.sts.pods(), ["a", "a"], "the second attempt of a silent STS, and none of the new daemon");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_out_reaches_the_daemon_after_the_next_past_one_that_does_not_know_its_pod() {
    for old_ends in [false, true] {
        let node = Node::start();
        node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
        let request = node.pod("a");
        node.manager.warm(request.clone());
        pass(SECOND).await;
        let (second, old) = node.hand_over(node.next(), &[]);
        let third = node.next();
        third.manager.warm(request.clone());
        let between = Arc::new(Other::default());
        let inherited = second.freeze(Arc::new(Heir(between.clone())));
        let third = third.take_over(inherited, between, |_| None);
        pass(SECOND / 2).await;
        assert_eq!(node.sts.count(), 1);
        if old_ends {
            node.worker.abort();
            old.ends(&request.key, None);
        }
        let mut pending = third.request(request).unwrap();
        let (key, exchanges) = if old_ends { ("ASIA2", 2) } else { ("ASIA1", 1) };
        assert_eq!(pending.outcome().await.unwrap().access_key_id(), key);
        assert_eq!(node.sts.count(), exchanges);
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_made_anew_when_the_old_daemon_dies_over_it() {
    let node = Node::start();
    node.sts.always(after(2 * SECOND, Answer::Issue(HOUR)));
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(SECOND).await;
    let (new, old) = node.hand_over(node.next(), &[&request]);
    pass(SECOND / 2).await;
    node.worker.abort();
    assert_eq!(node.sts.count(), 1);
    old.ends(&request.key, None);
    let mut pending = new.request(request.clone()).unwrap();
    assert_eq!(pending.outcome().await.unwrap().access_key_id(), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_by_the_new_daemon_for_the_rest_of_its_time() {
    let node = Node::start();
    node.sts.always(denied());
    let request = node.pod("a");
    node.manager.warm(request.clone());
    pass(2 * SECOND).await;
    let (new, _) = node.hand_over(node.next(), &[&request]);
    pass(SECOND).await;
    let refused = new.request(request.clone()).unwrap().outcome().now_or_never();
    assert!(matches!(refused, Some(Err(FetchError::Denied { .. }))));
    assert_eq!(node.sts.count(), 1);
    // Denials are remembered for 5 s; then a request asks again.
    pass(3 * SECOND).await;
    node.sts.always(Answer::Issue(HOUR));
    assert!(new.request(request).unwrap().outcome().await.is_ok());
    assert_eq!(node.sts.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_still_waits_at_the_old_daemon_gets_what_the_new_one_has() {
    let node = Node::start();
    let (warm, cold) = (node.pod("a"), node.pod("b"));
    let next = node.next();
    let other = Arc::new(Other::default());
    *other.manager.lock().unwrap() = Some(next.manager.clone());
    other.requests.lock().unwrap().extend([&warm, &cold].map(|it| (it.key.clone(), it.clone())));
    let inherited = node.manager.freeze(other);
    // Nobody has these yet, and the old daemon makes no exchange any more.
    let waiter = node.asking(&cold);
    node.manager.warm(warm.clone());
    pass(SECOND).await;
    assert_eq!(node.sts.count(), 0);
    let new = next.take_over(inherited, Arc::new(Other::default()), |_| None);
    assert_eq!(waiter.await.unwrap().unwrap().access_key_id(), "ASIA1");
    assert_eq!(new.valid(&cold.key).unwrap().access_key_id(), "ASIA1");
    pass(MINUTE).await;
    assert_eq!(node.sts.pods(), ["b"], "the old daemon warms nobody");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_hand_over_in_the_end_goes_on_as_before() {
    let (node, request) = Node::with_warm_pod().await;
    let waiting = node.pod("b");
    drop(node.manager.freeze(Arc::new(Heir(Arc::default()))));
    node.manager.warm(waiting.clone());
    pass(SECOND).await;
    assert_eq!(node.sts.count(), 1);
    node.manager.thaw();
    pass(SECOND).await;
    assert!(node.manager.valid(&waiting.key).is_some());
    pass(40 * MINUTE).await;
    assert_eq!(node.sts.count(), 4, "both were refreshed");
    assert!(node.manager.valid(&request.key).is_some());
}

#[tokio::test(start_paused = true)]
async fn hand_overs_that_do_not_come_about_ask_sts_no_sooner_for_what_it_denied() {
    let node = Node::start();
    node.sts.always(denied());
    node.manager.warm(node.pod("a"));
    pass(2 * SECOND).await;
    for _ in 0..8 {
        drop(node.manager.freeze(Arc::new(Heir(Arc::default()))));
        pass(SECOND).await;
        node.manager.thaw();
        pass(SECOND).await;
    }
    assert_eq!(node.sts.count(), 1, "a denial that nobody asks about is looked at again after 30 s");
    pass(2 * MINUTE).await;
    assert!(1 < node.sts.count(), "and not forgotten");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_yet_waits_for_its_pod_for_a_minute() {
    let node = Node::start();
    let [soon, late, by_path] = ["a", "b", "c"].map(|name| node.pod(name));
    for request in [&soon, &late, &by_path] {
        node.manager.warm(request.clone());
    }
    pass(SECOND).await;
    assert_eq!(node.sts.count(), 3);
    let next = node.next();
    let inherited = node.manager.freeze(Arc::new(Heir(Arc::default())));
    let known = by_path.clone();
    let good_here = move |key: &CredentialKey| Some(known.clone()).filter(|request| request.key == *key);
    let new = next.take_over(inherited, Arc::default(), good_here);
    assert!(new.valid(&by_path.key).is_some() && new.valid(&soon.key).is_none());
    pass(50 * SECOND).await;
    new.warm(soon.clone());
    assert!(new.valid(&soon.key).is_some());
    pass(40 * SECOND).await;
    new.warm(late.clone());
    assert!(new.valid(&late.key).is_none());
    pass(SECOND).await;
    assert_eq!(node.sts.count(), 4, "only for what came too late");
}
