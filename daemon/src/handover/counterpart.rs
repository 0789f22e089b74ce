//! What each daemon of a hand-over is to the other's credentials: it answers, or it is gone.

use std::{
    collections::{HashMap, HashSet},
    future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot, watch},
    time::timeout,
};

use super::{
    cache::WireOutcome,
    message::{Message, WireKey},
};
use crate::credentials::{Counterpart, CredentialKey, Inherited, Outcome};

/// How long the new daemon waits for an exchange that the old one had out: longer than an attempt may take. A daemon
/// that does not turn any more would keep the places of its exchanges until the kubelet ends it.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(30);

/// The new daemon, as the old one sees it.
pub(super) struct Successor {
    messages: UnboundedSender<Message>,
    /// `None` once it is gone.
    wants: Mutex<Option<Wants>>,
    /// Exchanges that are out here, and that it waits for.
    awaited: watch::Sender<HashSet<CredentialKey>>,
}

#[derive(Default)]
struct Wants {
    next_id: u64,
    waiting: HashMap<u64, (CredentialKey, oneshot::Sender<Option<Outcome>>)>,
}

/// The old daemon, as the new one sees it: exchanges that it had out, each until it has ended.
pub(super) struct Predecessor {
    under_way: Mutex<HashMap<CredentialKey, UnderWay>>,
}

struct UnderWay {
    /// `None` once it has ended, or the other has.
    end: Option<oneshot::Sender<Option<Outcome>>>,
    /// For whoever has it here, and for the next daemon.
    ended: Shared<oneshot::Receiver<Option<Outcome>>>,
}

impl Successor {
    /// Whoever holds the other end of `messages` sends them.
    pub(super) fn new(messages: UnboundedSender<Message>) -> Self {
        Self { messages, wants: Mutex::new(Some(Wants::default())), awaited: watch::Sender::default() }
    }

    /// Completes once how each exchange ended that it waits for is among the messages.
    pub(super) async fn is_told_all(&self) {
        let mut awaited = self.awaited.subscribe();
        // `self` holds the sender.
        let _ = awaited.wait_for(HashSet::is_empty).await;
    }

    /// How many exchanges it waits for.
    pub(super) fn awaited(&self) -> usize {
        self.awaited.borrow().len()
    }

    pub(super) fn given(&self, id: u64, outcome: Option<WireOutcome>) {
        let waiting = self.wants().as_mut().and_then(|wants| wants.waiting.remove(&id));
        if let Some((key, waiting)) = waiting {
            // Whoever waited may have been forgotten.
            let _ = waiting.send(outcome.and_then(|wire| wire.read(&key)));
        }
    }

    /// Nothing more is to be had: whoever waits does it alone.
    pub(super) fn is_gone(&self) {
        self.wants().take();
    }

    fn wants(&self) -> MutexGuard<'_, Option<Wants>> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counterpart for Successor {
    fn fetch(&self, key: &CredentialKey) -> BoxFuture<'static, Option<Outcome>> {
        let (answer, answered) = oneshot::channel();
        match self.wants().as_mut() {
            None => return future::ready(None).boxed(),
            Some(wants) => {
                let id = wants.next_id;
                wants.next_id += 1;
                wants.waiting.insert(id, (key.clone(), answer));
                // Where nobody sends it any more, `is_gone` follows.
                let _ = self.messages.send(Message::Want { id, key: key.into() });
            }
        }
        answered.map(|answer| answer.ok().flatten()).boxed()
    }

    fn awaits(&self, keys: Vec<CredentialKey>) {
        self.awaited.send_replace(keys.into_iter().collect());
    }

    fn ended(&self, key: &CredentialKey, outcome: Option<&Outcome>) {
        let outcome = outcome.and_then(WireOutcome::of);
        let _ = self.messages.send(Message::Ended { key: WireKey::from(key), outcome });
        self.awaited.send_if_modified(|awaited| awaited.remove(key));
    }
}

impl Predecessor {
    pub(super) fn new(inherited: &[Inherited]) -> Self {
        let under_way = inherited.iter().filter(|inherited| inherited.is_under_way).map(|inherited| {
            let (end, ended) = oneshot::channel();
            (inherited.key.clone(), UnderWay { end: Some(end), ended: ended.shared() })
        });
        Self { under_way: Mutex::new(under_way.collect()) }
    }

    pub(super) fn ended(&self, key: &WireKey, outcome: Option<WireOutcome>) {
        let Some(key) = key.read() else { return };
        let end = self.under_way().get_mut(&key).and_then(|under_way| under_way.end.take());
        if let Some(end) = end {
            let _ = end.send(outcome.and_then(|wire| wire.read(&key)));
        }
    }

    /// Nothing more is to be had: whoever waits does it alone.
    pub(super) fn is_gone(&self) {
        self.under_way().values_mut().for_each(|under_way| drop(under_way.end.take()));
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<CredentialKey, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counterpart for Predecessor {
    fn fetch(&self, key: &CredentialKey) -> BoxFuture<'static, Option<Outcome>> {
        match self.under_way().get(key).map(|under_way| under_way.ended.clone()) {
            Some(ended) => async { timeout(EXCHANGE_WITHIN, ended).await.ok()?.ok().flatten() }.boxed(),
            None => future::ready(None).boxed(),
        }
    }

    fn ended(&self, _: &CredentialKey, _: Option<&Outcome>) {
        // The old daemon asks for what it wants.
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::handover::cache::tests::{credentials, inherited, key};

    #[tokio::test(start_paused = true)]
    async fn a_daemon_before_that_does_not_turn_any_more_is_waited_for_and_then_not() {
        let began = Instant::now();
        assert!(Predecessor::new(&[inherited()]).fetch(&key()).await.is_none());
        assert_eq!(began.elapsed(), EXCHANGE_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_of_the_daemon_before_is_told_to_all_who_ask_for_it() {
        let predecessor = Predecessor::new(&[inherited()]);
        let early = predecessor.fetch(&key());
        predecessor.ended(&WireKey::from(&key()), WireOutcome::of(&Ok(credentials())));
        predecessor.is_gone();
        assert!(matches!(early.await, Some(Ok(_))));
        assert!(matches!(predecessor.fetch(&key()).await, Some(Ok(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_daemon_before_leaves_undone_is_ours_to_make() {
        let predecessor = Predecessor::new(&[inherited()]);
        let fetched = predecessor.fetch(&key());
        predecessor.is_gone();
        assert!(fetched.await.is_none());
        let nothing_out = Predecessor::new(&[Inherited { is_under_way: false, ..inherited() }]);
        assert!(nothing_out.fetch(&key()).await.is_none());
    }
}
