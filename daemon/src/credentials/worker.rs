//! The one task that fetches: begins what is due, takes what has come, sleeps in between.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    Config, CredentialKey, Credentials, SessionRequest,
    exchange::{FetchError, Sts},
    fetch::Fetcher,
    handover::{Neighbor, Outcome},
    manager::Shared,
    metrics::Metrics,
    pace::{Limits, Pace},
    table::{Consequence, Fetched, Ticket, Work},
};
use crate::token::volume::TokenSource;
use rolecall_process::time::rfc3339;

/// Longest sleep: timers do not notice that the wall clock was stepped or the machine slept.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The task behind a [`CredentialManager`](super::CredentialManager).
pub struct Worker<S> {
    shared: Arc<Shared>,
    fetcher: Arc<Fetcher<S>>,
    pace: Arc<Pace>,
    metrics: Metrics,
    /// Fetches and waits for tokens. They belong to the worker: a request that hangs up cancels none.
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    follow_clock_at: Instant,
    on_failure: OnFailure,
}

/// Hears of every attempt that failed, once it is over.
type OnFailure = Box<dyn Fn(&SessionRequest, &FetchError) + Send>;

enum Done {
    Fetched(Box<SessionRequest>, Ticket, Fetched, By),
    TokenCame(Ticket),
    /// An exchange of the daemon before has ended that is none of ours.
    Relayed(CredentialKey, Option<Outcome>),
    /// The pod was forgotten, or the token is looked for in another way.
    GivenUp(CredentialKey),
}

/// Who made an exchange.
enum By {
    ThisDaemon,
    TheOther,
}

impl<S: Sts> Worker<S> {
    pub(super) fn new(
        config: Config,
        sts: S,
        tokens: TokenSource,
        metrics: Metrics,
        shared: Arc<Shared>,
    ) -> Self {
        let limits = Limits { out: config.concurrency, young: config.burst };
        let pace = Pace::new(limits, shared.wake.clone(), metrics.clone());
        let fetcher = Arc::new(Fetcher {
            sts,
            tokens,
            clock: shared.clock.clone(),
            metrics: metrics.clone(),
            pace: pace.clone(),
            hedge_after: config.hedge_after,
        });
        Self {
            shared,
            fetcher,
            pace,
            metrics,
            under_way: FuturesUnordered::new(),
            follow_clock_at: Instant::now(),
            on_failure: Box::new(|_, _| {}),
        }
    }

    /// Has `hear` told of every attempt that failed. It must not wait.
    #[must_use]
    pub fn on_failure(self, hear: impl Fn(&SessionRequest, &FetchError) + Send + 'static) -> Self {
        Self { on_failure: Box::new(hear), ..self }
    }

    /// Works until `shutdown` completes. What is under way by then is cancelled, and nothing is fetched any more;
    /// what is valid can still be had from the manager.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let shared = self.shared.clone();
        loop {
            let wake_at = self.begin_due();
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                // Answers first: they may slow down what begins next, which is all that the other two lead to.
                Some(done) = self.under_way.next() => self.take(done),
                () = shared.wake.notified() => {}
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Begins everything that may begin now, and says when to look again.
    fn begin_due(&mut self) -> Instant {
        let now = self.shared.now();
        if self.follow_clock_at <= now.at {
            self.follow_clock_at = now.at + LONGEST_SLEEP;
            self.shared.table().follow_clock(now);
            let waits_for_before = self.shared.look().waits_for_before(now);
            if !waits_for_before {
                // It keeps what its exchanges came to, of pods that have gone as well.
                self.shared.neighbors().before = None;
            }
        }
        // Looked at first: nearly always there are none.
        if self.shared.look().has_relays() {
            let relays = self.shared.table().take_relays();
            relays.into_iter().for_each(|key| self.relay(key));
        }
        let look_again_at = loop {
            // A place that comes free wakes the worker, so full is no reason to look again sooner.
            let Some(free_at) = self.pace.free_at(now.at) else {
                break self.follow_clock_at;
            };
            let Some(due_at) = self.shared.look().next_at() else {
                break self.follow_clock_at;
            };
            let begins_at = free_at.max(due_at);
            if now.at < begins_at {
                break begins_at.min(self.follow_clock_at);
            }
            let work = self.shared.table().begin(now);
            if let Some(work) = work {
                self.fetch(work);
            }
        };
        let counts = self.shared.look().counts(now);
        self.metrics.set_counts(counts);
        look_again_at
    }

    fn fetch(&mut self, Work { ticket, request, alive, elsewhere }: Work) {
        let fetcher = self.fetcher.clone();
        let other = elsewhere.and_then(|which| self.shared.neighbors().get(which));
        // Also while the other daemon has the exchange: the bound is on those of the node.
        let place = self.pace.take(Instant::now());
        self.under_way.push(Box::pin(async move {
            let fetch = async {
                if let Some(other) = other
                    && let Some(outcome) = other.fetch(&request.key).await
                {
                    return (outcome.map_or_else(Fetched::Failed, Fetched::Issued), By::TheOther);
                }
                (fetcher.fetch(&request, place).await, By::ThisDaemon)
            };
            // A panic must not take the credentials of the whole node with it.
            match alive.run_until_cancelled(AssertUnwindSafe(fetch).catch_unwind()).await {
                None => Done::GivenUp(ticket.key),
                Some(fetched) => {
                    let (fetched, by) = fetched.unwrap_or_else(|_| {
                        let error = FetchError::unreachable("BUG: the exchange panicked");
                        (Fetched::Failed(error), By::ThisDaemon)
                    });
                    Done::Fetched(Box::new(request), ticket, fetched, by)
                }
            }
        }));
    }

    /// Waits for a token beside the exchanges: a pod whose token never comes holds up nobody else.
    fn await_token(&mut self, Work { ticket, request, alive, .. }: Work) {
        let fetcher = self.fetcher.clone();
        self.under_way.push(Box::pin(async move {
            match alive.run_until_cancelled(fetcher.wait_for_token(&request)).await {
                None => Done::GivenUp(ticket.key),
                Some(()) => Done::TokenCame(ticket),
            }
        }));
    }

    /// Passes an exchange of the daemon before on to the next one. It holds no place: it does at the one before.
    fn relay(&mut self, key: CredentialKey) {
        let before = self.shared.neighbors().get(Neighbor::Before);
        self.under_way.push(Box::pin(async move {
            let outcome = match before {
                Some(before) => before.fetch(&key).await,
                None => None,
            };
            Done::Relayed(key, outcome)
        }));
    }

    fn take(&mut self, done: Done) {
        let now = self.shared.now();
        match done {
            Done::GivenUp(key) => self.tell_next(&key, None),
            Done::Relayed(key, outcome) => self.tell_next(&key, outcome.as_ref()),
            Done::TokenCame(ticket) => {
                let waited = self.shared.table().token_came(&ticket, now);
                if let Some(waited) = waited {
                    self.metrics.waited_for_token(waited);
                }
            }
            Done::Fetched(request, ticket, fetched, by) => {
                let report = match by {
                    By::ThisDaemon => Report::of(&fetched),
                    // The other daemon has logged it.
                    By::TheOther => Report::Nothing,
                };
                let outcome = match &fetched {
                    Fetched::Issued(credentials) => Some(Ok(credentials.clone())),
                    Fetched::Failed(error) => Some(Err(error.clone())),
                    Fetched::TokenMissing => None,
                };
                let consequence = self.shared.table().finish(&ticket, fetched, now);
                // Only then: who offers the table to the next daemon in between offers what has ended, or tells its end.
                self.tell_next(&ticket.key, outcome.as_ref());
                match consequence {
                    Consequence::Dropped => {}
                    Consequence::Settled { failures } => {
                        if let Report::Failed(error) = &report {
                            (self.on_failure)(&request, error);
                        }
                        report.log(&request, failures);
                    }
                    Consequence::AwaitToken(work) => {
                        tracing::debug!(pod = %request.pod, "wait for the pod's token");
                        self.await_token(*work);
                    }
                }
            }
        }
    }

    /// Lets the daemon that takes over know how an exchange ended, in case it waits for it.
    fn tell_next(&self, key: &CredentialKey, outcome: Option<&Outcome>) {
        let next = self.shared.neighbors().get(Neighbor::Next);
        if let Some(next) = next {
            next.ended(key, outcome);
        }
    }
}

/// What the log says of a fetch.
enum Report {
    Issued(Arc<Credentials>),
    Failed(FetchError),
    Nothing,
}

impl Report {
    fn of(fetched: &Fetched) -> Self {
        match fetched {
            Fetched::Issued(credentials) => Self::Issued(credentials.clone()),
            Fetched::Failed(error) => Self::Failed(error.clone()),
            Fetched::TokenMissing => Self::Nothing,
        }
    }

    /// Writes the audit line of an issuance; refusals each time, for they come rarely; what may pass only when it
    /// begins.
    fn log(self, request: &SessionRequest, failures: u32) {
        let SessionRequest { key, pod, .. } = request;
        match self {
            Self::Nothing => {}
            Self::Issued(credentials) => tracing::info!(
                target: "rolecall::audit",
                pod = %pod,
                pod_uid = %key.pod,
                service_account = %pod.service_account,
                role = %key.role,
                session_name = %key.session_name,
                sts_request_id = credentials.request_id().unwrap_or_default(),
                expires_at = %rfc3339(credentials.expires_at()),
                "assumed role"
            ),
            Self::Failed(error) if error.is_transient() && 1 < failures => tracing::debug!(
                pod = %pod, role = %key.role, failures, %error, "assume role again later"
            ),
            Self::Failed(error) => tracing::warn!(
                pod = %pod,
                service_account = %pod.service_account,
                role = %key.role,
                session_name = %key.session_name,
                sts_request_id = error.request_id().unwrap_or_default(),
                %error,
                "cannot assume role"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
