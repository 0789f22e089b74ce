//! What one pod may ask for at a time, so that it cannot make another wait.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use moka::sync::Cache;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::refusal::Refusal;
use crate::identity::PodUid;

/// Most sources that are kept track of; the one that was idle longest goes first.
const MAX_SOURCES: u64 = 8192;

/// Most requests from the node's own addresses that wait to be identified.
const MAX_UNIDENTIFIED: usize = 512;

/// A source that was idle for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

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
#[derive(Debug, Clone)]
pub struct Limits {
    config: Config,
    sources: Cache<Source, Arc<State>>,
    /// Places for requests from the node's own addresses while it is not known whose they are.
    unidentified: Arc<Semaphore>,
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
struct State {
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

impl Connection {
    /// A connection that has its place elsewhere.
    pub fn served(permit: OwnedSemaphorePermit) -> Self {
        Self::Served(Permit(permit))
    }
}

impl Limits {
    pub fn new(config: Config) -> Self {
        let sources = Cache::builder().max_capacity(MAX_SOURCES).time_to_idle(FORGET_AFTER).build();
        Self { config, sources, unidentified: Arc::new(Semaphore::new(MAX_UNIDENTIFIED)) }
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(&self, source: Source) -> Result<Permit, Refusal> {
        let state = self.state(source);
        let permit = state
            .waiting
            .clone()
            .try_acquire_owned()
            .map_err(|_| Refusal::TooManyRequests("requests at a time"))?;
        if !state.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.config.requests_per_second)
        {
            return Err(Refusal::TooManyRequests("requests per second"));
        }
        Ok(Permit(permit))
    }

    /// Takes a place for a request of which it is not known yet to whom to charge it.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit_unidentified(&self) -> Result<Permit, Refusal> {
        let permit = self.unidentified.clone().try_acquire_owned();
        permit.map(Permit).map_err(|_| Refusal::TooManyRequests("unidentified requests of the node"))
    }

    /// Takes a place for a connection.
    pub fn connect(&self, source: Source) -> Connection {
        let state = self.state(source);
        match state.connections.clone().try_acquire_owned() {
            Ok(permit) => Connection::Served(Permit(permit)),
            Err(_) => match state.overflow.clone().try_acquire_owned() {
                Ok(permit) => Connection::Refused(Permit(permit)),
                Err(_) => Connection::CutOff,
            },
        }
    }

    fn state(&self, source: Source) -> Arc<State> {
        self.sources.get_with(source, || {
            Arc::new(State {
                bucket: Mutex::new(Bucket {
                    level: burst(self.config.requests_per_second),
                    filled_at: Instant::now(),
                }),
                waiting: Arc::new(Semaphore::new(self.config.waiting)),
                connections: Arc::new(Semaphore::new(self.config.connections)),
                overflow: Arc::new(Semaphore::new(self.config.connections)),
            })
        })
    }
}

impl Bucket {
    fn take(&mut self, per_second: u32) -> bool {
        let now = Instant::now();
        let filled = now.duration_since(self.filled_at).as_secs_f64() * f64::from(per_second);
        self.level = (self.level + filled).min(burst(per_second));
        self.filled_at = now;
        let taken = 1.0 <= self.level;
        if taken {
            self.level -= 1.0;
        }
        taken
    }
}

fn burst(per_second: u32) -> f64 {
    2.0 * f64::from(per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source::Address([10, 0, 0, last].into())
    }

    fn limits() -> Limits {
        Limits::new(Config { requests_per_second: 10, waiting: 3, connections: 2 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_asks_too_often_is_slowed_down_and_no_other() {
        let limits = limits();
        let burst = (0..30).filter(|_| limits.admit(source(1)).is_ok()).count();
        assert_eq!(burst, 20);
        assert!(limits.admit(source(2)).is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = (0..30).filter(|_| limits.admit(source(1)).is_ok()).count();
        assert_eq!(later, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_given_back() {
        let limits = limits();
        let held: Vec<_> = (0..3).map(|_| limits.admit(source(1)).unwrap()).collect();
        assert_eq!(limits.admit(source(1)).unwrap_err(), Refusal::TooManyRequests("requests at a time"));
        assert!(limits.admit(Source::Pod("u".parse().unwrap())).is_ok());
        drop(held);
        assert!(limits.admit(source(1)).is_ok());
    }

    #[tokio::test]
    async fn connections_have_a_limit_of_their_own() {
        let limits = limits();
        let served: Vec<_> = (0..2).map(|_| limits.connect(source(1))).collect();
        assert!(served.iter().all(|place| matches!(place, Connection::Served(_))), "{served:?}");
        let refused: Vec<_> = (0..2).map(|_| limits.connect(source(1))).collect();
        assert!(refused.iter().all(|place| matches!(place, Connection::Refused(_))), "{refused:?}");
        assert!(matches!(limits.connect(source(1)), Connection::CutOff));
        assert!(matches!(limits.connect(source(2)), Connection::Served(_)));
        drop(served);
        assert!(matches!(limits.connect(source(1)), Connection::Served(_)));
    }
}
