//! One watch: what changed, as a stream of lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, sleep, sleep_until};

use super::State;
use super::selector::Selector;
use super::status::Refusal;
use super::store::Change;
use crate::listener::Body;

/// Time between bookmarks that nobody asked for.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);

/// Length of a watch whose client sets no timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(30);

/// How a client wants to watch.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) selector: Selector,
    /// Where to begin; from the present state if not said.
    pub(super) version: Option<u64>,
    pub(super) timeout: Option<Duration>,
    pub(super) bookmarks: bool,
    /// The present state first, and a bookmark where it ends.
    pub(super) send_initial_events: bool,
}

/// What all watches are told at once.
#[derive(Default)]
pub(super) struct Signals(Sender<Counts>);

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    closed: u64,
    expired: u64,
    bookmarks: u64,
}

struct Watch {
    state: Arc<State>,
    selector: Selector,
    bookmarks: bool,
    ends_at: Instant,
    /// Everything up to this version is sent or waiting in `lines`.
    version: u64,
    versions: Receiver<u64>,
    signals: Receiver<Counts>,
    seen: Counts,
    lines: VecDeque<Bytes>,
    is_over: bool,
    _open: Open,
}

/// Counts a watch as long as it is open.
struct Open(Arc<State>);

impl Signals {
    pub(super) fn close(&self) {
        self.0.send_modify(|counts| counts.closed += 1);
    }

    pub(super) fn expire(&self) {
        self.0.send_modify(|counts| counts.expired += 1);
    }

    pub(super) fn bookmark(&self) {
        self.0.send_modify(|counts| counts.bookmarks += 1);
    }
}

/// The body of a watch's reply. An expired version is an event in it, not a status: so the real one does it.
pub(super) fn body(state: &Arc<State>, request: Request) -> Body {
    let watch = Watch::open(state.clone(), request);
    let lines = stream::unfold(watch, async |mut watch| {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    StreamBody::new(lines).boxed_unsync()
}

impl Watch {
    fn open(state: Arc<State>, request: Request) -> Self {
        let signals = state.signals.0.subscribe();
        let seen = *signals.borrow();
        let mut watch = Self {
            selector: request.selector,
            bookmarks: request.bookmarks,
            ends_at: Instant::now() + request.timeout.unwrap_or(DEFAULT_TIMEOUT),
            version: 0,
            versions: state.store.follow(),
            signals,
            seen,
            lines: VecDeque::new(),
            is_over: false,
            _open: Open::count(&state),
            state,
        };
        match request.version.filter(|version| *version != 0 && !request.send_initial_events) {
            Some(version) => match watch.state.store.admit(version) {
                Ok(()) => watch.version = version,
                Err(refusal) => watch.fail(&refusal),
            },
            None => watch.begin_with_present_state(request.send_initial_events),
        }
        watch
    }

    fn begin_with_present_state(&mut self, ends_with_bookmark: bool) {
        let (version, pods) = self.state.store.current();
        self.version = version;
        let selected = pods.values().filter(|pod| self.selector.matches(pod));
        self.lines.extend(selected.map(|pod| line("ADDED", pod)));
        if ends_with_bookmark {
            let mut bookmark = bookmark(version);
            bookmark["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
            self.lines.push_back(line("BOOKMARK", &bookmark));
        }
    }

    /// The next line, once there is one; none at the watch's end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            match self.state.store.since(self.version) {
                Ok((version, changes)) => {
                    self.version = version;
                    let events = changes.iter().filter_map(|change| event(&self.selector, change));
                    self.lines.extend(events);
                }
                Err(expired) => self.fail(&expired.into()),
            }
            if self.lines.is_empty() {
                self.wait().await;
            }
        }
    }

    /// Waits for a reason to look again.
    async fn wait(&mut self) {
        tokio::select! {
            // Neither sender can go: both live in `state`.
            _ = self.versions.changed() => {}
            _ = self.signals.changed() => self.heed_signals(),
            () = sleep(BOOKMARK_EVERY) => self.bookmark(),
            () = sleep_until(self.ends_at) => {
                self.bookmark();
                self.is_over = true;
            }
        }
    }

    fn heed_signals(&mut self) {
        let now = *self.signals.borrow_and_update();
        if self.seen.bookmarks < now.bookmarks {
            self.bookmark();
        }
        if self.seen.expired < now.expired {
            let version = self.version;
            self.fail(&super::store::Expired { asked: version, oldest: version + 1 }.into());
        }
        if self.seen.closed < now.closed {
            self.is_over = true;
        }
        self.seen = now;
    }

    /// Sends what changed until now, and then the version that the watch has come to.
    fn bookmark(&mut self) {
        let Ok((version, changes)) = self.state.store.since(self.version) else {
            return;
        };
        self.version = version;
        self.lines.extend(changes.iter().filter_map(|change| event(&self.selector, change)));
        if self.bookmarks {
            self.lines.push_back(line("BOOKMARK", &bookmark(version)));
        }
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.lines.push_back(line("ERROR", &refusal.object()));
        self.is_over = true;
    }
}

impl Open {
    /// Counts a watch that hears signals from now on: who waits for it may send one at once.
    fn count(state: &Arc<State>) -> Self {
        state.note(|board| board.watches += 1);
        Self(state.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.note(|board| board.watches -= 1);
    }
}

/// A change as those see it who select only some pods: one that enters the selection is added, one that leaves it
/// deleted.
fn event(selector: &Selector, change: &Change) -> Option<Bytes> {
    let selected = |pod: &Option<Arc<Value>>| pod.as_ref().is_some_and(|pod| selector.matches(pod));
    let (kind, pod) = match (selected(&change.before), selected(&change.after)) {
        (false, false) => return None,
        (false, true) => ("ADDED", change.after.as_ref()),
        (true, true) => ("MODIFIED", change.after.as_ref()),
        (true, false) => ("DELETED", change.before.as_ref()),
    };
    let pod = pod?;
    if kind == "DELETED" {
        // The last state that was selected, with the version at which it was selected no longer.
        let mut last = Value::clone(pod);
        last["metadata"]["resourceVersion"] = change.version.to_string().into();
        return Some(line(kind, &last));
    }
    Some(line(kind, pod))
}

fn bookmark(version: u64) -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
        "spec": { "containers": null },
        "status": {},
    })
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({ "type": kind, "object": object })).into()
}
