//! Turns all the pages of pods: at the start, when asked to, and now and then.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream::unfold};
use kube::{
    Api, Client,
    api::{ListParams, ObjectList},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::object::{self, PodObject};
use crate::kubernetes::PAGE;

/// How long after a sweep the next one begins: it costs the API server a read of every pod.
const EVERY: Duration = Duration::from_secs(3600);

/// Pause between two pages. So much load is hardly seen, and 150 000 pods take two minutes: less than the five for
/// which the API server can go on with a list that was begun.
const BETWEEN: Duration = Duration::from_millis(100);

/// Pauses after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Pods that will not run again need no credentials.
const NOT_OVER: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Asks for a sweep.
#[derive(Clone)]
pub(super) struct Ask(Arc<Notify>);

/// Is asked.
pub(super) struct Asked(Arc<Notify>);

pub(super) fn asking() -> (Ask, Asked) {
    let notify = Arc::new(Notify::new());
    (Ask(notify.clone()), Asked(notify))
}

impl Ask {
    /// A sweep is to begin now, or once more after the present one.
    pub(super) fn ask(&self) {
        self.0.notify_one();
    }
}

/// Where a sweep is.
struct Sweep {
    pods: Api<PodObject>,
    asked: Asked,
    /// What is to be waited for before the next page.
    next: Next,
    retry: Duration,
}

enum Next {
    /// The first page, now.
    First,
    /// The page that follows.
    Page(String),
    /// This page (none: the first) once more, after a failure.
    Again(Option<String>),
    /// The first page of the next sweep.
    Sweep,
}

/// The pages of every sweep, for ever. One that cannot be had is an error, and is tried again.
pub(super) fn pages(client: Client, asked: Asked) -> impl Stream<Item = kube::Result<Vec<PodObject>>> {
    let pods = Api::all_with(client, &object::resource());
    let sweep = Sweep { pods, asked, next: Next::First, retry: RETRY.0 };
    unfold(sweep, |mut sweep| async move {
        let page = sweep.page().await;
        Some((page, sweep))
    })
}

impl Sweep {
    async fn page(&mut self) -> kube::Result<Vec<PodObject>> {
        let token = match &self.next {
            Next::First => None,
            Next::Page(token) => {
                sleep(BETWEEN).await;
                Some(token.clone())
            }
            Next::Again(token) => {
                sleep(self.retry).await;
                self.retry = (self.retry * 2).min(RETRY.1);
                token.clone()
            }
            Next::Sweep => {
                // So that two replicas do not go on together for ever.
                let every = EVERY.mul_f64(0.9 + 0.2 * fastrand::f64());
                let _ = timeout(every, self.asked.0.notified()).await;
                None
            }
        };
        let params = ListParams {
            limit: Some(PAGE),
            field_selector: Some(NOT_OVER.to_owned()),
            continue_token: token.clone(),
            ..ListParams::default()
        };
        match self.pods.list(&params).await {
            Ok(ObjectList { metadata, items, .. }) => {
                self.retry = RETRY.0;
                let token = metadata.continue_.filter(|token| !token.is_empty());
                self.next = token.map_or(Next::Sweep, Next::Page);
                Ok(items)
            }
            Err(error) => {
                self.next = Next::Again(after(&error, token));
                Err(error)
            }
        }
    }
}

/// Where to go on after a failure. A list that was begun too long ago cannot be gone on with as it was; the API server
/// then says how to go on with what is there now.
///
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks>
fn after(error: &kube::Error, token: Option<String>) -> Option<String> {
    match error {
        kube::Error::Api(status) if status.code == 410 => status
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.continue_.clone())
            .filter(|token| !token.is_empty()),
        _ => token,
    }
}
