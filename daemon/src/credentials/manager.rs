//! The handle by which the request path and the app reach the credentials.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::sync::{Notify, watch};

use super::{
    Config, CredentialKey, Credentials, SessionRequest,
    exchange::{FetchError, Sts},
    handover::{Counterpart, Inherited, Neighbors},
    metrics::Metrics,
    policy,
    table::{Limits, Now, Status, Table},
    worker::Worker,
};
use crate::{identity::PodUid, token::volume::TokenSource};
use rolecall_process::time::Clock;

/// Hands out credentials and takes wishes for them. Cloning is cheap.
#[derive(Clone)]
pub struct CredentialManager {
    shared: Arc<Shared>,
}

/// A request's wait for credentials. Dropping it cancels nothing but the wait.
pub struct Pending {
    shared: Arc<Shared>,
    key: CredentialKey,
    generation: Option<u64>,
    status: watch::Receiver<Status>,
    /// It has looked once, and found nothing.
    waits: bool,
}

/// Credentials that were good to hand out, and the state of the table that says so.
pub struct Found {
    credentials: Arc<Credentials>,
    version: u64,
}

/// Which credentials were found, for whoever will ask for the same again. It does not keep them.
#[derive(Debug)]
pub struct Mark {
    credentials: Weak<Credentials>,
    version: u64,
}

/// The pod asks for more roles than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pod may ask for {limit} roles and no more")]
pub struct TooManyRoles {
    pub limit: usize,
}

/// What the handles and the worker have in common.
pub(super) struct Shared {
    table: Mutex<Table>,
    /// Rises whenever the table may change.
    version: AtomicU64,
    pub(super) clock: Clock,
    /// Wakes the worker when there is something new to do.
    pub(super) wake: Arc<Notify>,
    roles_per_pod: usize,
    neighbors: Mutex<Neighbors>,
}

impl CredentialManager {
    /// A manager, and the worker without which it knows nothing: the caller runs it.
    pub fn new<S: Sts>(
        config: Config,
        sts: S,
        tokens: TokenSource,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, Worker<S>) {
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(Limits {
                roles: config.roles_per_pod,
                exchanges: config.burst.min(config.concurrency).div_ceil(4),
            })),
            version: AtomicU64::new(0),
            clock,
            wake: Arc::new(Notify::new()),
            roles_per_pod: config.roles_per_pod,
            neighbors: Mutex::default(),
        });
        let worker = Worker::new(config, sts, tokens, metrics, shared.clone());
        (Self { shared }, worker)
    }

    /// Has credentials fetched before they are asked for, and kept fresh until the pod is forgotten.
    pub fn warm(&self, request: SessionRequest) {
        let now = self.shared.now();
        self.shared.table().warm(request, now);
        self.shared.wake.notify_one();
    }

    /// Forgets everything of `pod`, which is finished or gone; whoever waits gets [`FetchError::PodGone`].
    ///
    /// To be called for every pod that goes, warmed or not: its requests may have asked for roles.
    pub fn forget(&self, pod: &PodUid) {
        self.shared.table().forget(pod);
        self.shared.wake.notify_one();
    }

    /// Lets a pod ask that was forgotten and is there again.
    pub fn readmit(&self, pod: &PodUid) {
        self.shared.table().readmit(pod);
    }

    /// The credentials of `key`, where there are some that are good to hand out.
    ///
    /// What has expired by the wall clock never is; what lasts less than 20 min is only while STS fails, for
    /// clients fetch again and again near the end.
    pub fn valid(&self, key: &CredentialKey) -> Option<Arc<Credentials>> {
        let now = self.shared.clock.now();
        self.shared.look().status(key)?.hand_out(now).cloned()
    }

    /// As [`Self::valid`], for whoever will ask for the same again.
    pub fn find(&self, key: &CredentialKey) -> Option<Found> {
        // Taken before looking, so that what changes meanwhile is looked at the next time.
        let version = self.shared.version.load(Ordering::Acquire);
        self.valid(key).map(|credentials| Found { credentials, version })
    }

    /// What was found, where looking for it again at `now` would find the same. Where that takes a closer look, it is
    /// nothing.
    pub fn again(&self, mark: &Mark, now: SystemTime) -> Option<Arc<Credentials>> {
        let holds = mark.version == self.shared.version.load(Ordering::Acquire);
        let credentials = holds.then(|| mark.credentials.upgrade())??;
        let is_good = credentials.is_valid_at(now) && policy::is_above_floor(&credentials, now);
        is_good.then_some(credentials)
    }

    /// Asks for credentials at once. One exchange serves all who wait for a key.
    ///
    /// # Errors
    /// The pod has as many roles as it may have, and none that failed makes room.
    pub fn request(&self, request: SessionRequest) -> Result<Pending, TooManyRoles> {
        let key = request.key.clone();
        let now = self.shared.now();
        let mut table = self.shared.table();
        let limit = self.shared.roles_per_pod;
        let status = table.request(request, now).ok_or(TooManyRoles { limit })?;
        let generation = table.generation(&key);
        let hurried = table.ask(&key, now);
        drop(table);
        if hurried {
            self.shared.wake.notify_one();
        }
        Ok(Pending { shared: self.shared.clone(), key, generation, status, waits: false })
    }

    /// Tells all that the next daemon has to know, and leaves all exchanges to it from now on, but for those that
    /// are out: `successor` hears of their ends, and is asked for what requests still wait for here.
    pub fn freeze(&self, successor: Arc<dyn Counterpart>) -> Vec<Inherited> {
        // Before the table says what is under way, so that no end is missed.
        self.shared.neighbors().next = Some(successor.clone());
        let now = self.shared.now();
        let mut table = self.shared.table();
        let inherited = table.freeze(now);
        let under_way = inherited.iter().filter(|inherited| inherited.is_under_way);
        // Under the lock: none of them ends before.
        successor.awaits(under_way.map(|inherited| inherited.key.clone()).collect());
        drop(table);
        self.shared.wake.notify_one();
        inherited
    }

    /// Makes exchanges again: the next daemon did not come to be.
    pub fn thaw(&self) {
        self.shared.neighbors().next = None;
        let now = self.shared.now();
        self.shared.table().thaw(now);
        self.shared.wake.notify_one();
    }

    /// Takes over from `predecessor`, who told `inherited`; to be called before the worker runs.
    ///
    /// `wanted` makes the request for a key that is good here as well; other keys wait for a minute for their pods.
    pub fn adopt(
        &self,
        inherited: Vec<Inherited>,
        predecessor: Arc<dyn Counterpart>,
        wanted: impl Fn(&CredentialKey) -> Option<SessionRequest>,
    ) {
        self.shared.neighbors().before = Some(predecessor);
        let now = self.shared.now();
        self.shared.table().adopt(inherited, wanted, now);
        self.shared.wake.notify_one();
    }
}

impl Found {
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// A note of them.
    pub fn mark(&self) -> Mark {
        Mark { credentials: Arc::downgrade(&self.credentials), version: self.version }
    }
}

impl Pending {
    /// What is known, or else what comes to be known: credentials, or a failure that is remembered.
    ///
    /// A failure that the worker retries is none of these. It may be dropped and called again.
    pub async fn outcome(&mut self) -> Result<Arc<Credentials>, FetchError> {
        let mut asked = false;
        loop {
            let known = self.status.borrow_and_update().outcome(self.shared.now(), self.waits);
            if let Some(outcome) = known {
                return outcome;
            }
            self.waits = true;
            if !asked {
                // A failure that was remembered when the request came may have been forgotten since.
                asked = true;
                let now = self.shared.now();
                let hurried = self.shared.table().ask(&self.key, now);
                if hurried {
                    self.shared.wake.notify_one();
                }
            }
            if self.status.changed().await.is_err() {
                return Err(FetchError::PodGone);
            }
        }
    }

    /// What is still valid although better is on its way: good to hand out when the wait ends.
    pub fn best(&self) -> Option<Arc<Credentials>> {
        self.status.borrow().valid(self.shared.clock.now()).cloned()
    }

    /// Whether `credentials`, which came of this, may still be handed out.
    pub fn is_valid(&self, credentials: &Credentials) -> bool {
        credentials.is_valid_at(self.shared.clock.now())
    }

    /// Ends the wait, and says what the request is to be told.
    ///
    /// A failure is remembered for 5 s from now, unless an attempt is running: a retry had better wait for that.
    pub fn give_up(self) -> FetchError {
        let now = self.shared.now();
        match self.generation {
            Some(generation) => self.shared.table().give_up(&self.key, generation, now),
            None => FetchError::PodGone,
        }
    }
}

impl Shared {
    /// The table, to change it.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        let table = self.look();
        // Before the change and under the lock: whoever reads the new number looks after the change.
        self.version.fetch_add(1, Ordering::Release);
        table
    }

    /// The table, to look at it.
    pub(super) fn look(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Now {
        Now::of(&self.clock)
    }

    pub(super) fn neighbors(&self) -> MutexGuard<'_, Neighbors> {
        self.neighbors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
