//! What the endpoint tells of itself: a metric for each request, a log line and an Event for each refusal that is news.

mod histogram;

use std::{net::IpAddr, sync::Arc, time::Duration};

use moka::sync::Cache;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::histogram::DurationHistogram;
use super::{caller::Suspects, refusal::Refusal};
use crate::{
    events::{Events, Notice},
    identity::{PodIdentity, PodUid},
    pods::Pod,
};

/// The same refusal of the same source is logged once in this time.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Most sources and codes whose last line is remembered.
const MAX_REMEMBERED: u64 = 4096;

/// Watches over the endpoint's requests. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Observer(Arc<Records>);

#[derive(Debug)]
struct Records {
    metrics: Metrics,
    /// The pods that have asked before.
    seen: Cache<PodUid, ()>,
    logged: Cache<(IpAddr, Option<PodUid>, &'static str), ()>,
    events: Events,
}

/// One request, from its arrival to its end. It was hung up on if it is dropped before the end.
#[derive(Debug)]
pub struct Exchange {
    observer: Observer,
    arrived: Instant,
    peer: IpAddr,
    pod: Option<Arc<Pod>>,
    suspects: Suspects,
    begun: bool,
    ended: bool,
}

#[derive(Debug, Clone)]
struct Metrics {
    /// Those of `requests` that were answered: nearly all, so it is looked up once.
    answered: Counter,
    requests: Family<OutcomeLabel, Counter>,
    refusals: Family<CodeLabel, Counter>,
    duration: DurationHistogram,
    first_request_wait: Histogram,
    slow_answers: Family<SlowLabel, Counter>,
    in_progress: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SlowLabel {
    stage: &'static str,
}

impl Observer {
    pub fn new(registry: &mut Registry, events: Events) -> Self {
        let logged = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(REPEAT_AFTER).build();
        let seen = Cache::builder().max_capacity(MAX_REMEMBERED).build();
        Self(Arc::new(Records { metrics: Metrics::register(registry), seen, logged, events }))
    }

    /// A request has arrived.
    pub fn arrived(&self, at: Instant, peer: IpAddr) -> Exchange {
        self.0.metrics.in_progress.inc();
        Exchange {
            observer: self.clone(),
            arrived: at,
            peer,
            pod: None,
            suspects: Suspects::default(),
            begun: false,
            ended: false,
        }
    }

    /// A request that arrived `at` was handed out what its address got before: it is not its pod's first.
    pub fn answered_again(&self, at: Instant) {
        self.0.metrics.answered(at.elapsed());
    }

    /// Forgets a pod that has left.
    pub fn forget(&self, uid: &PodUid) {
        self.0.seen.invalidate(uid);
    }

    fn is_first_of(&self, uid: &PodUid) -> bool {
        !self.0.seen.contains_key(uid) && self.0.seen.entry_by_ref(uid).or_insert(()).is_fresh()
    }

    fn log(&self, exchange: &Exchange, refusal: &Refusal, begun: bool) {
        let key = (exchange.peer, exchange.pod.as_ref().map(|pod| pod.uid().clone()), refusal.code());
        if !self.0.logged.entry(key).or_insert(()).is_fresh() {
            return;
        }
        let shown = |pod: &Option<PodIdentity>| pod.as_ref().map(ToString::to_string);
        let pod = exchange.pod.as_ref().map(|pod| pod.identity.to_string());
        let (pod_at_address, pod_of_token) =
            (shown(&exchange.suspects.at_address), shown(&exchange.suspects.of_token));
        let code = refusal.code();
        let message = refusal.message();
        let peer = exchange.peer;
        if begun {
            warn!(pod, %peer, code, message, "gave up an answer that was begun");
        } else {
            warn!(pod, %peer, pod_at_address, pod_of_token, code, message, "refused a request");
        }
    }
}

impl Exchange {
    /// It is known who asks.
    pub fn identified(&mut self, pod: &Arc<Pod>) {
        self.pod = Some(pod.clone());
    }

    /// It is not known who asks, but whom it points at.
    pub fn suspected(&mut self, suspects: Suspects) {
        self.suspects = suspects;
    }

    /// The answer was begun and white space goes out.
    pub fn begun(&mut self) {
        self.begun = true;
        self.slow("begun");
    }

    /// Credentials were handed out.
    pub fn answered(mut self) {
        if self.begun {
            self.slow("finished");
        }
        let metrics = &self.observer.0.metrics;
        let took = self.arrived.elapsed();
        if let Some(pod) = &self.pod
            && self.observer.is_first_of(pod.uid())
        {
            metrics.first_request_wait.observe(took.as_secs_f64());
        }
        metrics.answered(took);
        self.end();
    }

    /// The request was refused: by status if it was not begun, by a reset if it was.
    pub fn refused(mut self, refusal: &Refusal) {
        self.observer.0.metrics.refusals.get_or_create(&CodeLabel { code: refusal.code() }).inc();
        self.observer.log(&self, refusal, self.begun);
        for (pod, notice) in
            notices(self.pod.as_ref().map(|pod| &pod.identity), &self.suspects, self.peer, refusal)
        {
            self.observer.0.events.tell(&pod, notice);
        }
        if self.begun {
            self.slow("given_up");
            self.end_as("given_up");
        } else {
            self.end_as("refused");
        }
    }

    fn slow(&self, stage: &'static str) {
        self.observer.0.metrics.slow_answers.get_or_create(&SlowLabel { stage }).inc();
    }

    fn end_as(&mut self, outcome: &'static str) {
        let metrics = &self.observer.0.metrics;
        metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
        metrics.duration.observe(self.arrived.elapsed());
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        self.observer.0.metrics.in_progress.dec();
    }
}

/// What a refusal is worth telling, and on which pods. What STS says is told where it is heard, asked for or not.
fn notices(
    pod: Option<&PodIdentity>,
    suspects: &Suspects,
    from: IpAddr,
    refusal: &Refusal,
) -> Vec<(PodIdentity, Notice)> {
    let on_itself = |notice| pod.cloned().map(|pod| (pod, notice)).into_iter().collect();
    match refusal {
        Refusal::NoRole => on_itself(Notice::NoRole),
        Refusal::RoleMalformed(error) => on_itself(Notice::RoleMalformed(error.clone())),
        Refusal::NoTokenVolume => on_itself(Notice::NoTokenVolume),
        Refusal::TokenMissing => on_itself(Notice::TokenMissing),
        // The pod at the address is known, it may go without a token, and the kubelet keeps none for it.
        Refusal::PodUnknown if !suspects.sent_token => {
            suspects.at_address.clone().map(|pod| (pod, Notice::TokenMissing)).into_iter().collect()
        }
        Refusal::WrongPod => {
            // The token was proven, or there would be no suspect: nobody can have Events written on other pods at will.
            let Some(owner) = &suspects.of_token else { return Vec::new() };
            let by = suspects.at_address.clone();
            let foreign = by.clone().map(|thief| (thief, Notice::ForeignToken { of: owner.clone() }));
            let stolen = (owner.clone(), Notice::TokenStolen { by, from });
            std::iter::once(stolen).chain(foreign).collect()
        }
        Refusal::MalformedRequest(_)
        | Refusal::MethodNotAllowed
        | Refusal::RequestTooLarge
        | Refusal::TokenRequired
        | Refusal::TokenInvalid(_)
        | Refusal::TokenExpired
        | Refusal::HostNetworkNeedsToken
        | Refusal::PodFinished
        | Refusal::NotFound
        | Refusal::RoleNotAllowed
        | Refusal::TooManyRoles { .. }
        | Refusal::StsDenied { .. }
        | Refusal::StsTokenRefused { .. }
        | Refusal::PodUnknown
        | Refusal::NotReady
        | Refusal::AddressAmbiguous
        | Refusal::StsUnavailable
        | Refusal::TooManyRequests(_) => Vec::new(),
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            if self.begun {
                self.slow("hung_up");
            }
            debug!(peer = %self.peer, "a client hung up before its answer");
            self.end_as("hung_up");
        }
    }
}

impl Metrics {
    fn answered(&self, took: Duration) {
        self.answered.inc();
        self.duration.observe(took);
    }

    fn register(registry: &mut Registry) -> Self {
        let requests: Family<OutcomeLabel, Counter> = Family::default();
        let answered = requests.get_or_create(&OutcomeLabel { outcome: "answered" }).clone();
        let metrics = Self {
            answered,
            requests,
            refusals: Family::default(),
            duration: DurationHistogram::default(),
            first_request_wait: Histogram::new(histogram::BOUNDS),
            slow_answers: Family::default(),
            in_progress: Gauge::default(),
        };
        // A counter that appears with its first failure cannot be alerted on with `increase`.
        for outcome in ["answered", "refused", "given_up", "hung_up"] {
            drop(metrics.requests.get_or_create(&OutcomeLabel { outcome }));
        }
        for stage in ["begun", "finished", "given_up", "hung_up"] {
            drop(metrics.slow_answers.get_or_create(&SlowLabel { stage }));
        }
        registry.register(
            "requests_in_progress",
            "Requests that have no answer yet, held and begun ones included",
            metrics.in_progress.clone(),
        );
        registry.register(
            "requests",
            "Requests by outcome: answered, refused, given_up (reset after it was begun), hung_up (by the client)",
            metrics.requests.clone(),
        );
        registry.register(
            "refusals",
            "Refused requests by code; docs/protocol.md lists the codes",
            metrics.refusals.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from the arrival of a request to the end of its answer",
            prometheus_client::registry::Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "first_request_wait",
            "Time that the first answered request of a pod took",
            prometheus_client::registry::Unit::Seconds,
            metrics.first_request_wait.clone(),
        );
        registry.register(
            "slow_answers",
            "Answers that were begun with white space, by stage: begun, finished, given_up, hung_up",
            metrics.slow_answers.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::Reason, token::verify::TokenFault};

    fn pod(name: &str) -> PodIdentity {
        PodIdentity {
            uid: name.parse().unwrap(),
            namespace: "shop".into(),
            name: name.into(),
            service_account: "orders".into(),
        }
    }

    #[track_caller]
    fn check(
        asking: Option<&str>,
        at: Option<&str>,
        of: Option<&str>,
        refusal: &Refusal,
        expect: &[(&str, Reason)],
    ) {
        let suspects = Suspects { at_address: at.map(pod), of_token: of.map(pod), sent_token: of.is_some() };
        let told = notices(asking.map(pod).as_ref(), &suspects, [10, 0, 0, 9].into(), refusal);
        let told: Vec<_> = told.iter().map(|(pod, notice)| (&*pod.name, notice.reason())).collect();
        assert_eq!(told, expect, "{refusal:?}");
    }

    #[test]
    fn a_stolen_token_is_told_on_the_pod_that_lost_it_and_on_the_one_that_sent_it() {
        let (stolen, foreign) = (("p", Reason::TokenStolen), ("q", Reason::ForeignToken));
        check(None, Some("q"), Some("p"), &Refusal::WrongPod, &[stolen, foreign]);
        check(None, None, Some("p"), &Refusal::WrongPod, &[stolen]);
        // Found out to be somebody else's while it waited: the address has changed hands, and nothing is proven.
        check(Some("p"), None, None, &Refusal::WrongPod, &[]);
        check(None, Some("q"), None, &Refusal::TokenInvalid(TokenFault::NotAuthentic), &[]);
    }

    #[test]
    fn what_a_pod_lacks_is_told_on_the_pod_and_where_nobody_is_known_on_none() {
        for (refusal, reason) in [
            (Refusal::NoRole, Reason::NoRole),
            (Refusal::NoTokenVolume, Reason::NoTokenVolume),
            (Refusal::TokenMissing, Reason::TokenMissing),
        ] {
            check(Some("p"), None, None, &refusal, &[("p", reason)]);
            check(None, Some("q"), None, &refusal, &[]);
        }
        check(Some("p"), None, None, &Refusal::StsUnavailable, &[]);
        check(None, Some("p"), None, &Refusal::PodUnknown, &[("p", Reason::TokenMissing)]);
        check(None, None, None, &Refusal::PodUnknown, &[]);
        check(None, Some("p"), Some("stranger"), &Refusal::PodUnknown, &[]);
    }
}
