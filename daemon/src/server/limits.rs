//! What one pod may ask for at a time, so that it cannot make another wait.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::HashMap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::refusal::Refusal;
use crate::identity::PodUid;

/// Sources that are kept track of before idle ones are looked for.
const MANY_SOURCES: usize = 1024;

/// Most requests from the node's own addresses that wait to be identified.
const MAX_UNIDENTIFIED: usize = 512;

/// The limits of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Requests per second, on average; twice as many may come at once.
    pub requests_per_second: u32,
    /// Requests that are being answered, held and begun ones included.
    pub waiting: usize,
    /// Open connections.
    pub connections: usize,
}

/// Whom a request is charged to: the pod's address, which is known at once, or on the host network, where pods
/// share theirs, the pod itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    Address(IpAddr),
    Pod(PodUid),
}

/// Keeps the limits. Cloning is cheap.
///
/// `K` is what else is known of a source; it is forgotten with its budget.
#[derive(Debug)]
pub struct Limits<K>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    config: Config,
    sources: Mutex<Sources<K>>,
    /// Places for requests from the node's own addresses while it is not known whose they are.
    unidentified: Arc<Semaphore>,
}

/// What one source may do and has done. A connection keeps its own, so that its requests need not look for it.
/// Cloning is cheap.
#[derive(Debug)]
pub struct Budget<K>(Arc<State<K>>);

/// The budgets that differ from a fresh one, and some that do not any more.
#[derive(Debug)]
struct Sources<K> {
    budgets: HashMap<Source, Budget<K>>,
    /// How many there may be before idle ones are dropped.
    sweep_at: usize,
}

/// A place among what a source may do at a time; it is given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Whether a connection has a place.
#[derive(Debug)]
pub enum Connection {
    Served(Permit),
    /// One too many: it is told so and closed.
    Refused(Permit),
    /// Far too many: it is cut off.
    CutOff,
}

#[derive(Debug)]
struct State<K> {
    config: Config,
    known: K,
    bucket: Mutex<Bucket>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// As many again, which are only told that there are too many.
    overflow: Arc<Semaphore>,
}

/// A token bucket: it fills with time up to its burst, and each request takes one.
#[derive(Debug)]
struct Bucket {
    level: f64,
    filled_at: Instant,
}

impl<K: Default> Limits<K> {
    pub fn new(config: Config) -> Self {
        let sources = Sources { budgets: HashMap::default(), sweep_at: MANY_SOURCES };
        Self(Arc::new(Shared {
            config,
            sources: Mutex::new(sources),
            unidentified: Arc::new(Semaphore::new(MAX_UNIDENTIFIED)),
        }))
    }

    /// The budget of `source`.
    pub fn of(&self, source: Source) -> Budget<K> {
        let mut sources = self.sources();
        if let Some(budget) = sources.budgets.get(&source) {
            return budget.clone();
        }
        if sources.sweep_at <= sources.budgets.len() {
            sources.sweep();
        }
        let budget = self.unshared();
        sources.budgets.insert(source, budget.clone());
        budget
    }

    /// A budget that nobody else finds.
    pub fn unshared(&self) -> Budget<K> {
        Budget::new(self.0.config)
    }

    /// Forgets `source`, which is a pod that has left, or was its address: whoever has it next starts afresh.
    pub fn forget(&self, source: &Source) {
        let forgotten = self.sources().budgets.remove(source);
        // What is known of it may be dropped with it, which need not hold up others.
        drop(forgotten);
    }

    /// Takes a place for a request of which it is not known yet to whom to charge it.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit_unidentified(&self) -> Result<Permit, Refusal> {
        let permit = self.0.unidentified.clone().try_acquire_owned();
        permit.map(Permit).map_err(|_| Refusal::TooManyRequests("unidentified requests of the node"))
    }

    fn sources(&self) -> MutexGuard<'_, Sources<K>> {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Limits<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Clone for Budget<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Sources<K> {
    /// Drops the budgets that are as good as fresh ones, so that nobody gains by being forgotten. What is left was
    /// used within the last seconds, or has connections.
    fn sweep(&mut self) {
        self.budgets.retain(|_, budget| !budget.is_idle());
        self.sweep_at = MANY_SOURCES.max(2 * self.budgets.len());
    }
}

impl<K: Default> Budget<K> {
    fn new(config: Config) -> Self {
        let bucket = Bucket { level: burst(config.requests_per_second), filled_at: Instant::now() };
        Self(Arc::new(State {
            config,
            known: K::default(),
            bucket: Mutex::new(bucket),
            waiting: Arc::new(Semaphore::new(config.waiting)),
            connections: Arc::new(Semaphore::new(config.connections)),
            overflow: Arc::new(Semaphore::new(config.connections)),
        }))
    }
}

impl<K> Budget<K> {
    /// What else is known of the source.
    pub fn known(&self) -> &K {
        &self.0.known
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(&self) -> Result<Permit, Refusal> {
        let waiting = self.0.waiting.clone().try_acquire_owned();
        let permit = waiting.map_err(|_| Refusal::TooManyRequests("requests at a time"))?;
        self.charge(Instant::now())?;
        Ok(Permit(permit))
    }

    /// Charges a request that is answered as soon as it has come, at `now`, and needs no place.
    ///
    /// # Errors
    /// There were too many.
    pub fn charge(&self, now: Instant) -> Result<(), Refusal> {
        let is_within = self.0.bucket().take(self.0.config.requests_per_second, now);
        if is_within { Ok(()) } else { Err(Refusal::TooManyRequests("requests per second")) }
    }

    /// Takes a place for a connection.
    pub fn connect(&self) -> Connection {
        match self.0.connections.clone().try_acquire_owned() {
            Ok(permit) => Connection::Served(Permit(permit)),
            Err(_) => match self.0.overflow.clone().try_acquire_owned() {
                Ok(permit) => Connection::Refused(Permit(permit)),
                Err(_) => Connection::CutOff,
            },
        }
    }

    /// Whether nobody holds it or a place of it, and its bucket is full.
    fn is_idle(&self) -> bool {
        let State { config, waiting, connections, overflow, .. } = &*self.0;
        Arc::strong_count(&self.0) == 1
            && waiting.available_permits() == config.waiting
            && connections.available_permits() == config.connections
            && overflow.available_permits() == config.connections
            && self.0.bucket().is_full(config.requests_per_second, Instant::now())
    }
}

impl<K> State<K> {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn take(&mut self, per_second: u32, now: Instant) -> bool {
        self.fill(per_second, now);
        let taken = 1.0 <= self.level;
        if taken {
            self.level -= 1.0;
        }
        taken
    }

    fn is_full(&mut self, per_second: u32, now: Instant) -> bool {
        self.fill(per_second, now);
        burst(per_second) <= self.level
    }

    fn fill(&mut self, per_second: u32, now: Instant) {
        // Another thread's request may have come later and been charged sooner.
        let now = now.max(self.filled_at);
        let filled = now.duration_since(self.filled_at).as_secs_f64() * f64::from(per_second);
        self.level = (self.level + filled).min(burst(per_second));
        self.filled_at = now;
    }
}

fn burst(per_second: u32) -> f64 {
    2.0 * f64::from(per_second)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;

    fn source(last: u8) -> Source {
        Source::Address([10, 0, 0, last].into())
    }

    fn limits() -> Limits<()> {
        Limits::new(Config { requests_per_second: 10, waiting: 3, connections: 2 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_asks_too_often_is_slowed_down_and_no_other() {
        let limits = limits();
        let burst = (0..30).filter(|_| limits.of(source(1)).admit().is_ok()).count();
        assert_eq!(burst, 20);
        assert!(limits.of(source(2)).admit().is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = (0..30).filter(|_| limits.of(source(1)).admit().is_ok()).count();
        assert_eq!(later, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_given_back() {
        let limits = limits();
        let held: Vec<_> = (0..3).map(|_| limits.of(source(1)).admit().unwrap()).collect();
        assert_eq!(limits.of(source(1)).admit().unwrap_err(), Refusal::TooManyRequests("requests at a time"));
        assert!(limits.of(Source::Pod("u".parse().unwrap())).admit().is_ok());
        drop(held);
        assert!(limits.of(source(1)).admit().is_ok());
    }

    #[tokio::test]
    async fn connections_have_a_limit_of_their_own() {
        let limits = limits();
        let served: Vec<_> = (0..2).map(|_| limits.of(source(1)).connect()).collect();
        assert!(served.iter().all(|place| matches!(place, Connection::Served(_))), "{served:?}");
        let refused: Vec<_> = (0..2).map(|_| limits.of(source(1)).connect()).collect();
        assert!(refused.iter().all(|place| matches!(place, Connection::Refused(_))), "{refused:?}");
        assert!(matches!(limits.of(source(1)).connect(), Connection::CutOff));
        assert!(matches!(limits.of(source(2)).connect(), Connection::Served(_)));
        drop(served);
        assert!(matches!(limits.of(source(1)).connect(), Connection::Served(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_sources_that_are_as_good_as_fresh_are_forgotten() {
        let limits = limits();
        let address =
            |n: usize| Source::Address(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n as u32).into());
        let known = |n| limits.sources().budgets.contains_key(&address(n));
        (0..MANY_SOURCES).for_each(|n| drop(limits.of(address(n))));
        let _connection = limits.of(address(1)).connect();
        let _held = limits.of(address(2));
        drop(limits.of(address(3)).admit());
        drop(limits.of(address(MANY_SOURCES)));
        assert_eq!([0, 1, 2, 3, MANY_SOURCES].map(known), [false, true, true, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_an_address_next_starts_afresh() {
        let limits: Limits<AtomicBool> =
            Limits::new(Config { requests_per_second: 10, waiting: 3, connections: 2 });
        let asked = |source| limits.of(source).known().swap(true, Ordering::Relaxed);
        let admits = |source| limits.of(source).admit().is_ok();
        assert!(!asked(source(1)) && asked(source(1)), "it is kept between connections");
        while admits(source(1)) {}
        limits.forget(&source(1));
        assert!(!asked(source(1)) && admits(source(1)));
        assert!(!asked(source(2)), "of another source");
    }
}
