//! One account's STS: beyond its quota it throttles, as a token bucket.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use crate::{STS_TIME, epoch};

/// An account. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Account(Arc<Shared>);

/// How much an account grants.
#[derive(Clone, Copy)]
pub(crate) struct Quota {
    /// Tokens that its bucket gets in a second.
    pub(crate) rate: f64,
    /// Tokens that its bucket holds.
    pub(crate) size: f64,
    /// How long a session lasts.
    pub(crate) session: Duration,
}

/// What becomes of a call: when its session ends, or nothing where it is throttled.
pub(crate) type Answer = Option<SystemTime>;

struct Shared {
    book: Mutex<Book>,
    called: Notify,
}

struct Book {
    began: Instant,
    bucket: Bucket,
    /// The calls that wait for their answers, by when they came.
    open: BTreeMap<Instant, Vec<Call>>,
    seconds: Vec<Second>,
}

struct Bucket {
    quota: Quota,
    level: f64,
    filled_at: Instant,
}

struct Call {
    turn: u64,
    answer: oneshot::Sender<Answer>,
}

/// The calls that came within one second.
#[derive(Clone, Copy, Default)]
pub(crate) struct Second {
    pub(crate) calls: u32,
    pub(crate) throttled: u32,
}

impl Account {
    /// An account with a full bucket.
    pub(crate) fn new(quota: Quota) -> Self {
        let now = Instant::now();
        let bucket = Bucket { quota, level: quota.size, filled_at: now };
        let book = Book { began: now, bucket, open: BTreeMap::new(), seconds: Vec::new() };
        Self(Arc::new(Shared { book: Mutex::new(book), called: Notify::new() }))
    }

    /// Takes a call. Of those that come at the same instant the one with the lowest `turn` is the first, whatever
    /// order the machine has them come in.
    pub(crate) fn call(&self, turn: u64) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        self.book().open.entry(Instant::now()).or_default().push(Call { turn, answer });
        self.0.called.notify_one();
        answered
    }

    /// Answers calls, each after [`STS_TIME`]. It does not end.
    pub(crate) async fn serve(&self) {
        loop {
            let first = self.book().open.first_key_value().map(|(came_at, _)| *came_at);
            match first {
                None => self.0.called.notified().await,
                Some(came_at) => {
                    sleep_until(came_at + STS_TIME).await;
                    self.book().answer_those_of(came_at);
                }
            }
        }
    }

    /// What came in each second of a time.
    pub(crate) fn seconds(&self, (from, until): (Duration, Duration)) -> Vec<Second> {
        let book = self.book();
        let second = |number: u64| book.seconds.get(number as usize).copied().unwrap_or_default();
        (from.as_secs()..until.as_secs()).map(second).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn answer_those_of(&mut self, came_at: Instant) {
        let since = came_at - self.began;
        let session_ends_at = epoch() + since + self.bucket.quota.session;
        let second = since.as_secs() as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        let mut calls = self.open.remove(&came_at).unwrap_or_default();
        calls.sort_unstable_by_key(|call| call.turn);
        for call in calls {
            let is_granted = self.bucket.grants(came_at);
            self.seconds[second].calls += 1;
            self.seconds[second].throttled += u32::from(!is_granted);
            // Nobody hears it where the simulation has ended.
            call.answer.send(is_granted.then_some(session_ends_at)).ok();
        }
    }
}

impl Bucket {
    fn grants(&mut self, now: Instant) -> bool {
        let filled = self.level + (now - self.filled_at).as_secs_f64() * self.quota.rate;
        self.level = filled.min(self.quota.size);
        self.filled_at = now;
        let is_granted = 1.0 <= self.level;
        if is_granted {
            self.level -= 1.0;
        }
        is_granted
    }
}
