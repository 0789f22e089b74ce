//! Follows this node's pods at the API server and feeds the table.

use std::{
    error::Error,
    io,
    iter::successors,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use kube::{
    Api, Client,
    runtime::{
        utils::{Backoff, ResetTimerBackoff},
        watcher,
    },
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{
    Change, Event, Pod, Writer,
    object::{self, PodObject},
};
use rolecall_process::telemetry::chain;
use rolecall_process::time::{Clock, unix_seconds};

/// The pause after the first failure; each further one is twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(800);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause while a request waits for a pod that nobody knows and the API server cannot be reached: where the
/// kubelet has heard of the pod, it can be again, and most SDKs bear a second without a byte.
const WANTED_PAUSE: Duration = Duration::from_millis(250);

/// How long after a failure the pauses are short again, if they have not been made so by an event.
const PAUSES_FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// What the watch shows of itself.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    last_event: Gauge,
    errors: Counter,
    pods: Gauge,
    connection: Connection,
}

/// Whether the API server answers. Cloning is cheap.
///
/// The watch itself cannot tell: one that resumes in silence looks like one that is stuck. So whoever sees the
/// answers of the API server says so here.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    connected: Gauge,
    lost: Arc<AtomicBool>,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "pod_watch_connected",
            "Whether the API server answered last (1) or failed (0); what is known is served either way",
            metrics.connection.connected.clone(),
        );
        registry.register(
            "pod_watch_last_event_timestamp_seconds",
            "Unix time of the last event of the pod watch",
            metrics.last_event.clone(),
        );
        registry.register(
            "pod_watch_errors",
            "Failures of the pod watch; each is retried",
            metrics.errors.clone(),
        );
        registry.register(
            "pods",
            "Pods of this node in the table, finished ones included",
            metrics.pods.clone(),
        );
        metrics
    }

    /// Where the client that the watch uses reports answers.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }
}

impl Connection {
    /// The API server has answered.
    pub fn answered(&self) {
        self.connected.set(1);
        if self.lost.swap(false, Ordering::Relaxed) {
            info!("reached the API server again");
        }
    }

    fn failed(&self, error: &watcher::Error) {
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            // It has answered: what it is asked for is too old, and a list follows.
            return;
        }
        self.connected.set(0);
        if !self.lost.swap(true, Ordering::Relaxed) {
            warn!(error = %chain(error), "lost the API server; serving the pods that are known, and trying on");
        }
    }
}

/// What the API server sends of the pods of `node_name`. It goes on after an error.
///
/// The list is a consistent one: an older copy from the API server's cache could bring back a pod that has gone,
/// together with its address. Since Kubernetes 1.31 the API server answers consistent lists from its cache.
pub fn stream(
    client: Client,
    node_name: &str,
) -> impl Stream<Item = watcher::Result<watcher::Event<PodObject>>> + use<> {
    let api: Api<PodObject> = Api::all_with(client, &object::resource());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    watcher(api, config)
}

/// The pauses between attempts, up to half of each taken off by chance: all daemons of a cluster lose the API server
/// at once, and are not to come back at once.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = SHORTEST_PAUSE.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        Some(jittered(pause))
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fastrand::f64() / 2.0)
}

/// Whether nobody took the connection. Whoever has taken one, and ended it, kept silent or answered with an error, may have
/// more to do than it can: to ask more often does not help.
fn is_out_of_reach(error: &watcher::Error) -> bool {
    successors(Some(error as &(dyn Error + 'static)), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            )
        })
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Feeds `stream` into the table and calls `on_changes` with what each event changed; ends with the stream. After each
/// error it pauses, longer each time, but hardly while a request waits for news and the API server is out of reach.
pub async fn run(
    stream: impl Stream<Item = watcher::Result<watcher::Event<PodObject>>>,
    mut writer: Writer,
    audience: String,
    clock: Clock,
    metrics: Metrics,
    mut on_changes: impl FnMut(Vec<Change>),
) {
    let mut stream = pin!(stream);
    let mut pauses = ResetTimerBackoff::new(Pauses::default(), PAUSES_FORGOTTEN_AFTER);
    while let Some(item) = stream.next().await {
        let event = match item {
            Ok(event) => event,
            Err(error) => {
                metrics.errors.inc();
                metrics.connection.failed(&error);
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                if is_out_of_reach(&error) {
                    let least = pause.min(jittered(WANTED_PAUSE));
                    sleep(least).await;
                    let _ = timeout(pause - least, writer.news_are_wanted()).await;
                } else {
                    sleep(pause).await;
                }
                continue;
            }
        };
        // That a list begins is said before anybody is asked for it.
        if !matches!(event, watcher::Event::Init) {
            pauses.reset();
            metrics.last_event.set(unix_seconds(clock.now()));
        }
        let Some(event) = translate(event, &audience) else { continue };
        let changes = writer.apply(event);
        for change in &changes {
            match change {
                Change::Arrived(_) => metrics.pods.inc(),
                Change::Left(_) => metrics.pods.dec(),
                Change::Changed { .. } => 0,
            };
        }
        on_changes(changes);
    }
}

fn translate(event: watcher::Event<PodObject>, audience: &str) -> Option<Event> {
    let read = |object: &PodObject| {
        Pod::read(object, audience)
            .inspect_err(|error| {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                error!(%error, name, "leave out a pod that the API server sent");
            })
            .ok()
    };
    Some(match event {
        watcher::Event::Init => Event::Init,
        watcher::Event::InitApply(object) => Event::InitApply(read(&object)?),
        watcher::Event::InitDone => Event::InitDone,
        watcher::Event::Apply(object) => Event::Apply(read(&object)?),
        watcher::Event::Delete(object) => Event::Delete(read(&object)?.identity.uid),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use kube::core::Status;
    use tokio::time::Instant;

    use super::*;
    use crate::pods::PodTable;

    #[test]
    fn pauses_grow_to_the_longest_and_start_again() {
        let mut pauses = Pauses::default();
        let bounds = [(400, 800), (800, 1600), (1600, 3200), (2500, 5000), (2500, 5000)];
        for _ in 0..2 {
            for ((least, most), pause) in bounds.iter().zip(&mut pauses) {
                assert!((*least..=*most).contains(&pause.as_millis()), "{pause:?} for {least} to {most} ms");
            }
            pauses.reset();
        }
    }

    fn failed_with(kind: io::ErrorKind) -> watcher::Error {
        watcher::Error::InitialListFailed(kube::Error::Service(Box::new(io::Error::from(kind))))
    }

    fn unreachable() -> watcher::Error {
        failed_with(io::ErrorKind::ConnectionRefused)
    }

    fn overloaded() -> watcher::Error {
        watcher::Error::WatchError(Box::new(
            Status::failure("too many requests", "TooManyRequests").with_code(429),
        ))
    }

    /// As a server does that has more connections than it can bear.
    fn reset() -> watcher::Error {
        failed_with(io::ErrorKind::ConnectionReset)
    }

    /// How long it takes until the table is synced, where the API server fails four times before it answers; and a
    /// request waits, or not.
    async fn back_after(failure: fn() -> watcher::Error, waits: bool) -> Duration {
        let answers = [Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)];
        let stream = stream::iter((0..4).map(|_| Err(failure())).chain(answers));
        let (table, writer) = PodTable::new();
        let began = Instant::now();
        let _wanted = waits.then(|| table.want_news());
        // One that has been answered is none that waits.
        drop(table.want_news());
        let clock = Clock::from_fn(|| std::time::UNIX_EPOCH);
        run(stream, writer, String::new(), clock, Metrics::default(), drop).await;
        assert!(table.synced());
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_out_of_reach_is_tried_soon_while_a_request_waits_and_no_other() {
        let all_pauses = Duration::from_millis(400 + 800 + 1600 + 2500);
        assert!(back_after(unreachable, true).await <= 4 * WANTED_PAUSE + Duration::from_millis(10));
        assert!(all_pauses <= back_after(unreachable, false).await);
        assert!(all_pauses <= back_after(overloaded, true).await);
        assert!(all_pauses <= back_after(reset, true).await);
    }

    #[tokio::test]
    async fn an_api_server_that_is_not_there_is_out_of_reach() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
        let mut stream = pin!(stream(Client::try_from(config).unwrap(), "node-1"));
        assert!(matches!(stream.next().await, Some(Ok(watcher::Event::Init))));
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(is_out_of_reach(&error), "{error:?}");
    }

    #[tokio::test]
    async fn a_list_that_begins_is_no_event_of_the_api_server() {
        let last_event_after = async |events: Vec<watcher::Event<PodObject>>| {
            let metrics = Metrics::default();
            let clock = Clock::from_fn(|| std::time::UNIX_EPOCH + Duration::from_secs(7));
            let events = stream::iter(events.into_iter().map(Ok));
            run(events, PodTable::new().1, String::new(), clock, metrics.clone(), drop).await;
            metrics.last_event.get()
        };
        assert_eq!(last_event_after(vec![watcher::Event::Init]).await, 0);
        assert_eq!(last_event_after(vec![watcher::Event::Init, watcher::Event::InitDone]).await, 7);
    }

    #[test]
    fn pauses_never_end() {
        assert!(Pauses::default().nth(100_000).is_some_and(|pause| pause <= LONGEST_PAUSE));
    }
}
