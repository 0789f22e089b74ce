//! How tasks start and end: the only way to spawn one, and the orderly end of them all.
//!
//! Shutting down is: say so ([`Trigger::begin`]), wait, cut off what is still running at the deadline, and say
//! what that was ([`Trigger::finish`]).

mod signal;

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::signal::Signal;

/// How long tasks that were cut off get to be dropped.
const DROP_WITHIN: Duration = Duration::from_secs(1);

/// Begins and ends the drain. There is one, and the wiring keeps it.
pub struct Trigger {
    inner: Arc<Inner>,
}

/// Begins a drain from where the [`Trigger`] is not. Cloning is cheap.
#[derive(Clone)]
pub struct Beginner(Signal);

/// Tells whether the drain has begun. Cloning is cheap.
#[derive(Clone)]
pub struct Watch(Signal);

/// The only way to spawn a task, so that none is orphaned. Cloning is cheap.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

/// Spawns the tasks of one name, of which there may be many: to spawn one takes no lock. Cloning is cheap.
#[derive(Clone)]
pub struct TasksOf {
    name: &'static str,
    running: Arc<AtomicUsize>,
    inner: Arc<Inner>,
}

/// Tasks of one name that had not ended when the drain's deadline came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub name: &'static str,
    pub count: usize,
}

/// A task without which the daemon is of no use has ended although nothing told it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("essential task {name:?} {end} before the drain began")]
pub struct EssentialTaskEnded {
    pub name: &'static str,
    pub end: End,
}

/// How a task came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Returned,
    Panicked,
}

struct Inner {
    begun: Signal,
    cut_off: Signal,
    tracker: TaskTracker,
    /// How many tasks of each name exist.
    running: Mutex<BTreeMap<&'static str, Arc<AtomicUsize>>>,
    ended: watch::Sender<Option<EssentialTaskEnded>>,
}

/// Counts a task for as long as it exists, however it ends.
struct Running(Arc<AtomicUsize>);

/// A drain that has not begun.
#[must_use]
pub fn new() -> (Trigger, Watch) {
    let begun = Signal::default();
    let inner = Arc::new(Inner {
        begun: begun.clone(),
        cut_off: Signal::default(),
        tracker: TaskTracker::new(),
        running: Mutex::default(),
        ended: watch::Sender::new(None),
    });
    (Trigger { inner }, Watch(begun))
}

impl Trigger {
    /// Tells every [`Watch`] that it is time to finish.
    pub fn begin(&self) {
        self.inner.begun.give();
    }

    /// Lets another part begin the drain.
    #[must_use]
    pub fn beginner(&self) -> Beginner {
        Beginner(self.inner.begun.clone())
    }

    /// Begins the drain, waits up to `deadline` for the tasks to end and cuts off those that have not.
    pub async fn finish(self, deadline: Duration) -> Vec<Left> {
        self.begin();
        self.inner.tracker.close();
        if tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let left = self.inner.left();
        self.inner.cut_off.give();
        // A task that blocks its thread is never dropped; the process must end all the same.
        let _ = tokio::time::timeout(DROP_WITHIN, self.inner.tracker.wait()).await;
        left
    }

    /// Waits for an essential task to end out of turn; forever, if none does.
    pub async fn essential_task_ended(&self) -> EssentialTaskEnded {
        let mut ended = self.inner.ended.subscribe();
        let first = ended.wait_for(Option::is_some).await.expect("self holds the sender");
        first.clone().expect("it was just seen to be there")
    }

    /// Spawns tasks that this drain waits for.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        Tasks { inner: self.inner.clone() }
    }
}

impl Beginner {
    /// As [`Trigger::begin`].
    pub fn begin(&self) {
        self.0.give();
    }
}

impl Watch {
    /// Completes when the drain begins.
    pub async fn begun(&self) {
        self.0.given().await;
    }

    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.is_given()
    }
}

impl Tasks {
    /// Spawns `future`, which the drain waits for. A panic in it is logged and ends it alone.
    ///
    /// The `name` says what the task is for; tasks of one kind share it.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.of(name).spawn(future);
    }

    /// Spawns tasks of this name.
    #[must_use]
    pub fn of(&self, name: &'static str) -> TasksOf {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        TasksOf { name, running: running.entry(name).or_default().clone(), inner: self.inner.clone() }
    }

    /// Spawns `future`, without which the daemon is of no use: if it ends before the drain began,
    /// [`Trigger::essential_task_ended`] says so, and the process is to end, so that it is started afresh.
    pub fn spawn_essential(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let inner = self.inner.clone();
        self.of(name).start(future, move |end| inner.essential_ended(name, end));
    }

    /// Tells whether the drain has begun.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.inner.begun.clone())
    }
}

impl TasksOf {
    /// As [`Tasks::spawn`].
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.start(future, |_| {});
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    fn start(
        &self,
        future: impl Future<Output = ()> + Send + 'static,
        on_end: impl FnOnce(End) + Send + 'static,
    ) {
        let name = self.name;
        let running = Running::new(self.running.clone());
        let cut_off = self.inner.cut_off.clone();
        // Boxed, for each layer around a future has room for it twice: where it is captured and where it is polled.
        let future = Box::pin(AssertUnwindSafe(future).catch_unwind());
        tokio::spawn(self.inner.tracker.track_future(async move {
            let _running = running;
            let result = tokio::select! {
                result = future => result,
                () = cut_off.given() => return,
            };
            match result {
                Ok(()) => on_end(End::Returned),
                Err(panic) => {
                    tracing::error!(task = name, panic = panic_message(&*panic), "a task panicked");
                    on_end(End::Panicked);
                }
            }
        }));
    }
}

impl Inner {
    fn left(&self) -> Vec<Left> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = running.iter().map(|(&name, count)| Left { name, count: count.load(Ordering::Relaxed) });
        counts.filter(|left| left.count != 0).collect()
    }

    fn essential_ended(&self, name: &'static str, end: End) {
        if self.begun.is_given() {
            return;
        }
        // The first one is the cause; what it takes down with it is not.
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(EssentialTaskEnded { name, end });
            first
        });
    }
}

impl Running {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Returned => "returned",
            Self::Panicked => "panicked",
        })
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.count, self.name)
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::future;

    use tokio::{
        sync::oneshot,
        time::{self, Instant},
    };

    use super::*;
    use crate::telemetry::test::Captured;

    const DEADLINE: Duration = Duration::from_secs(25);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_as_soon_as_the_last_task_has() {
        let (trigger, watch) = new();
        for seconds in [1, 3, 2] {
            let watch = watch.clone();
            trigger.tasks().spawn("connection", async move {
                watch.begun().await;
                time::sleep(Duration::from_secs(seconds)).await;
            });
        }
        let began = Instant::now();
        assert_eq!(trigger.finish(DEADLINE).await, []);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_at_the_deadline_is_counted_by_name_and_cut_off() {
        let (trigger, _watch) = new();
        let tasks = trigger.tasks();
        let (dropped, was_dropped) = oneshot::channel::<()>();
        tasks.spawn("connection", async move {
            let _dropped = dropped;
            future::pending().await
        });
        tasks.spawn("connection", future::pending());
        tasks.spawn("watch", future::pending());
        tasks.spawn("short", future::ready(()));
        let began = Instant::now();
        let left = trigger.finish(DEADLINE).await;
        assert_eq!(left, [Left { name: "connection", count: 2 }, Left { name: "watch", count: 1 }]);
        assert_eq!(left[0].to_string(), "2 × connection");
        assert_eq!(began.elapsed(), DEADLINE);
        assert!(was_dropped.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_may_spawn_another_while_the_drain_is_on() {
        let (trigger, watch) = new();
        let tasks = trigger.tasks();
        let (done, is_done) = oneshot::channel();
        trigger.tasks().spawn("listener", async move {
            watch.begun().await;
            tasks.spawn("connection", async move {
                time::sleep(Duration::from_secs(5)).await;
                done.send(()).unwrap();
            });
        });
        assert_eq!(trigger.finish(DEADLINE).await, []);
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn the_watch_tells_that_the_drain_has_begun() {
        let (trigger, watch) = new();
        assert!(!watch.has_begun());
        assert!(watch.begun().now_or_never().is_none());
        trigger.begin();
        assert!(watch.has_begun() && trigger.tasks().watch().has_begun());
        watch.begun().await;
    }

    #[tokio::test]
    async fn a_panic_is_logged_with_the_name_of_its_task_and_ends_no_other() {
        let captured = Captured::default();
        let _guard = captured.subscribe("info");
        let (trigger, _watch) = new();
        let (done, is_done) = oneshot::channel();
        trigger.tasks().spawn("warm-up", async { panic!("nothing left of {}", "it") });
        trigger.tasks().spawn("other", async move { done.send(()).unwrap() });
        is_done.await.unwrap();
        assert_eq!(trigger.finish(DEADLINE).await, []);
        let log = captured.text();
        assert!(
            log.contains("ERROR") && log.contains("warm-up") && log.contains("nothing left of it"),
            "{log}"
        );
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_before_the_drain_is_fatal() {
        // tracing remembers for the whole process whether anybody hears of a place in the code that logs: a first
        // panic that nobody hears of would, at the wrong moment, silence the one of the test above.
        let _guard = Captured::default().subscribe("info");
        for (end, panics) in [(End::Returned, false), (End::Panicked, true)] {
            let (trigger, _watch) = new();
            trigger.tasks().spawn("other", future::ready(()));
            trigger.tasks().spawn_essential("worker", async move { assert!(!panics, "so it ends") });
            let ended = trigger.essential_task_ended().await;
            assert_eq!(ended, EssentialTaskEnded { name: "worker", end });
            assert_eq!(ended.to_string(), format!("essential task \"worker\" {end} before the drain began"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_essential_task_that_ends_with_the_drain_is_not_fatal() {
        let (trigger, watch) = new();
        trigger.tasks().spawn_essential("worker", async move { watch.begun().await });
        trigger.begin();
        let ended = time::timeout(Duration::from_secs(60), trigger.essential_task_ended());
        assert!(ended.await.is_err());
        assert_eq!(trigger.finish(DEADLINE).await, []);
    }
}
