//! Answers a request: checks its form, finds out who asks, and hands out credentials, at once or as soon as they are
//! there.

use std::{net::IpAddr, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use rolecall_contract::{RoleArn, endpoint::PathRole};
use tokio::time::{Instant, timeout_at};

use super::{
    caller::{self, Callers, Memory},
    handed_out::HandedOut,
    limits::{self, Budget, Permit, Source},
    observe::{Exchange, Observer},
    refusal::Refusal,
    reply,
    request::Head,
    slow::{self, GivenUp, Mode, ReplyBody, ResetSwitch, Timing},
};
use crate::{
    credentials::{CredentialManager, Credentials, FetchError, Pending, SessionRequest},
    node::NodeAddresses,
    pods::Pod,
    sessions::Sessions,
    token::Token,
};
use rolecall_process::time::Clock;

/// The endpoint's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub timing: Timing,
    /// Whether a pod may name a role in the path; STS decides whether it gets it.
    pub role_in_path: bool,
}

/// Answers requests.
pub struct Endpoint {
    pub config: Config,
    pub callers: Callers,
    pub credentials: CredentialManager,
    pub sessions: Sessions,
    pub limits: Limits,
    pub node: NodeAddresses,
    pub observer: Observer,
    pub clock: Clock,
}

/// The limits, and with those of each address what is known of it.
pub type Limits = limits::Limits<Acquaintance>;

/// What is known of an address from its last requests.
#[derive(Debug, Default)]
pub struct Acquaintance {
    /// Whom it was found to be.
    memory: Memory,
    handed_out: HandedOut,
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// Ends the connection with a reset.
    pub reset: ResetSwitch,
    /// What requests from its address may do.
    budget: Budget<Acquaintance>,
}

/// What becomes of a request.
pub(super) enum Answer<'a> {
    Now(Response<ReplyBody>),
    Later(Later<'a>),
}

/// An answer that may have to wait. Boxed: nearly no request needs the room.
pub(super) type Later<'a> = Pin<Box<dyn Future<Output = Response<ReplyBody>> + Send + 'a>>;

/// A request without its head, which would hold on to the connection's read buffer.
struct Asked {
    peer: IpAddr,
    token: Option<Token>,
    arrived: Instant,
    /// Whether its answer can be begun.
    can_drip: bool,
}

/// Its place among what its source may do at a time.
struct Place {
    permit: Permit,
    /// It came from the node's own address, so it is charged to no pod yet.
    is_shared: bool,
}

/// What a pod gets.
enum Grant {
    Document(Bytes),
    /// Boxed: the warm path should not carry its size around.
    Expected(Box<Expected>),
}

/// Credentials that are on their way.
struct Expected {
    pending: Pending,
    pod: Arc<Pod>,
    role: RoleArn,
    _permit: Permit,
}

/// A request that waits for credentials: what it takes to finish it, wherever that happens.
struct Waiting {
    asked: Asked,
    expected: Box<Expected>,
    callers: Callers,
    timing: Timing,
}

impl Peer {
    pub fn new(address: IpAddr, budget: Budget<Acquaintance>) -> Self {
        Self { address, reset: ResetSwitch::default(), budget }
    }

    fn memory(&self) -> &Memory {
        &self.budget.known().memory
    }

    fn handed_out(&self) -> &HandedOut {
        &self.budget.known().handed_out
    }
}

impl Endpoint {
    /// Answers one request. It never fails: what goes wrong is an answer too.
    pub(super) fn answer<'a, B>(&'a self, request: &Request<B>, peer: &'a Peer) -> Answer<'a> {
        let arrived = Instant::now();
        let head = match Head::check(request) {
            Ok(head) => head,
            Err(refusal) => {
                return Answer::Now(refuse(self.observer.arrived(arrived, peer.address), &refusal));
            }
        };
        if let Some(document) = self.again(&head, peer)
            && peer.budget.charge(arrived).is_ok()
        {
            self.observer.answered_again(arrived);
            return Answer::Now(reply::credentials(document));
        }
        self.look_and_answer(&head, peer, arrived)
    }

    /// Whether no pod is known to have `address`. One that is remembered need not be looked for.
    pub(super) fn is_stranger(&self, address: IpAddr, budget: &Budget<Acquaintance>) -> bool {
        budget.known().memory.is_fresh() && !self.callers.is_known(address)
    }

    /// What the address got before, where it would get the same again.
    fn again(&self, head: &Head<'_>, peer: &Peer) -> Option<Bytes> {
        if head.role != PathRole::Own {
            return None;
        }
        let now = self.clock.now();
        let pod = self.callers.remembered(head.token?, peer.memory(), now)?;
        peer.handed_out().again(&pod, &self.credentials, now)
    }

    fn look_and_answer<'a>(&'a self, head: &Head<'_>, peer: &'a Peer, arrived: Instant) -> Answer<'a> {
        let mut exchange = self.observer.arrived(arrived, peer.address);
        let (token, place) = match head.token_text().and_then(|token| Ok((token, self.admit(peer)?))) {
            Ok(admitted) => admitted,
            Err(refusal) => return Answer::Now(refuse(exchange, &refusal)),
        };
        let asked = || Asked {
            peer: peer.address,
            token: token.map(Token::new),
            arrived,
            can_drip: self.config.timing.mode == Mode::Drip && !head.is_http_1_0,
        };
        let asking = caller::Request { peer: peer.address, token };
        let Some(pod) = self.callers.recall(asking, peer.memory()) else {
            let role = match head.role {
                PathRole::Own => None,
                PathRole::Named(role) => Some(role.into()),
            };
            return Answer::Later(Box::pin(self.find_out_and_answer(asked(), role, place, peer, exchange)));
        };
        match self.grant(&pod, head.role, place, peer, &mut exchange) {
            Ok(Grant::Document(document)) => Answer::Now(answered(exchange, document)),
            Ok(Grant::Expected(expected)) => {
                let reset = peer.reset.clone();
                Answer::Later(Box::pin(finish(self.waiting(asked(), expected), exchange, reset)))
            }
            Err(refusal) => Answer::Now(refuse(exchange, &refusal)),
        }
    }

    /// Answers a request on a connection that is one too many of its pod.
    pub fn refuse_connection(&self, peer: &Peer) -> Response<ReplyBody> {
        let exchange = self.observer.arrived(Instant::now(), peer.address);
        refuse(exchange, &Refusal::TooManyRequests("connections"))
    }

    /// Charges a request before anything is done for it, to whoever that can be told to be by now.
    fn admit(&self, peer: &Peer) -> Result<Place, Refusal> {
        let is_shared = self.node.contains(peer.address);
        let permit = if is_shared { self.limits.admit_unidentified()? } else { peer.budget.admit()? };
        Ok(Place { permit, is_shared })
    }

    async fn find_out_and_answer(
        &self,
        asked: Asked,
        role: Option<Box<str>>,
        place: Place,
        peer: &Peer,
        mut exchange: Exchange,
    ) -> Response<ReplyBody> {
        // Boxed, so that its room is given back before credentials are waited for.
        let found_out = Box::pin(self.callers.find_out(asked.caller(), asked.arrived)).await;
        let granted = match found_out {
            Ok(pod) => {
                let role = role.as_deref().map_or(PathRole::Own, PathRole::Named);
                self.grant(&pod, role, place, peer, &mut exchange)
            }
            Err(refusal) => {
                exchange.suspected(self.callers.suspects(asked.caller()));
                Err(refusal)
            }
        };
        match granted {
            Ok(Grant::Document(document)) => answered(exchange, document),
            Ok(Grant::Expected(expected)) => {
                finish(self.waiting(asked, expected), exchange, peer.reset.clone()).await
            }
            Err(refusal) => refuse(exchange, &refusal),
        }
    }

    /// What `pod` gets.
    fn grant(
        &self,
        pod: &Arc<Pod>,
        role: PathRole<'_>,
        place: Place,
        peer: &Peer,
        exchange: &mut Exchange,
    ) -> Result<Grant, Refusal> {
        exchange.identified(pod);
        // Others share the node's own addresses, and another pod's request may come on the same connection.
        let is_its_own = role == PathRole::Own && !place.is_shared;
        let permit = match place.is_shared {
            true => self.limits.of(Source::Pod(pod.uid().clone())).admit()?,
            false => place.permit,
        };
        let session = self.session(pod, role)?;
        if let Some(found) = self.credentials.find(&session.key) {
            let document = found.credentials().reply();
            if is_its_own && peer.memory().is_in_use() {
                peer.handed_out().remember(pod, &found);
            }
            return Ok(Grant::Document(document));
        }
        let role = session.key.role.clone();
        let pending = self
            .credentials
            .request(Arc::unwrap_or_clone(session))
            .map_err(|error| Refusal::TooManyRoles { limit: error.limit })?;
        Ok(Grant::Expected(Box::new(Expected { pending, pod: pod.clone(), role, _permit: permit })))
    }

    fn waiting(&self, asked: Asked, expected: Box<Expected>) -> Waiting {
        Waiting { asked, expected, callers: self.callers.clone(), timing: self.config.timing }
    }

    fn session(&self, pod: &Arc<Pod>, asked: PathRole<'_>) -> Result<Arc<SessionRequest>, Refusal> {
        let named;
        let role = match asked {
            PathRole::Own => match &pod.binding.role {
                None => return Err(Refusal::NoRole),
                Some(Err(error)) => return Err(Refusal::RoleMalformed(error.clone())),
                Some(Ok(role)) => role,
            },
            PathRole::Named(_) if !self.config.role_in_path => return Err(Refusal::RoleNotAllowed),
            PathRole::Named(text) => {
                named = text.parse().map_err(Refusal::RoleMalformed)?;
                &named
            }
        };
        if pod.token_volumes.is_empty() {
            return Err(Refusal::NoTokenVolume);
        }
        Ok(self.sessions.find(pod, role))
    }
}

impl Asked {
    fn caller(&self) -> caller::Request<'_> {
        caller::Request { peer: self.peer, token: self.token.as_ref().map(Token::expose) }
    }
}

/// Holds the request in silence, then begins the answer, or goes on in silence where it cannot be begun.
async fn finish(mut waiting: Waiting, mut exchange: Exchange, reset: ResetSwitch) -> Response<ReplyBody> {
    let hold_until = waiting.asked.arrived + waiting.timing.hold;
    // With the last look at who asks, which may have to wait too: silence is silence.
    let outcome = match timeout_at(hold_until, waiting.until(hold_until)).await.ok().flatten() {
        Some(outcome) => outcome,
        None if waiting.asked.can_drip => {
            exchange.begun();
            let (arrived, timing) = (waiting.asked.arrived, waiting.timing);
            return reply::begun(slow::drip(finish_begun(waiting, exchange), arrived, timing, reset));
        }
        None => waiting.outcome_at_last().await,
    };
    match outcome {
        Ok(document) => answered(exchange, document),
        Err(refusal) => refuse(exchange, &refusal),
    }
}

async fn finish_begun(waiting: Waiting, exchange: Exchange) -> Result<Bytes, GivenUp> {
    match waiting.outcome_at_last().await {
        Ok(document) => {
            exchange.answered();
            Ok(document)
        }
        Err(refusal) => {
            exchange.refused(&refusal);
            Err(GivenUp)
        }
    }
}

impl Waiting {
    /// The outcome if it is there by `deadline`. Valid credentials that are about to be renewed are handed out
    /// rather than waited past the deadline for better ones.
    async fn until(&mut self, deadline: Instant) -> Option<Result<Bytes, Refusal>> {
        let pending = &mut self.expected.pending;
        let outcome = match timeout_at(deadline, pending.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => Ok(pending.best()?),
        };
        Some(self.judge(outcome).await)
    }

    async fn outcome_at_last(mut self) -> Result<Bytes, Refusal> {
        // What was valid at the end of the hold may have waited for the last look at who asks.
        if let Some(best) = self.expected.pending.best() {
            return self.judge(Ok(best)).await;
        }
        let deadline = self.asked.arrived + self.timing.give_up_after;
        match self.until(deadline).await {
            Some(outcome) => outcome,
            None => {
                let Expected { pending, pod, role, .. } = *self.expected;
                Err(refusal_of(pending.give_up(), &pod, &role))
            }
        }
    }

    async fn judge(&self, outcome: Result<Arc<Credentials>, FetchError>) -> Result<Bytes, Refusal> {
        let Expected { pending, pod, role, .. } = &*self.expected;
        let credentials = outcome.map_err(|error| refusal_of(error, pod, role))?;
        // Time has passed since the caller was found out.
        self.callers.confirm(self.asked.caller(), pod).await?;
        // That may have waited for the watch.
        if pending.is_valid(&credentials) { Ok(credentials.reply()) } else { Err(Refusal::StsUnavailable) }
    }
}

fn answered(exchange: Exchange, document: Bytes) -> Response<ReplyBody> {
    exchange.answered();
    reply::credentials(document)
}

fn refuse(exchange: Exchange, refusal: &Refusal) -> Response<ReplyBody> {
    exchange.refused(refusal);
    reply::refusal(refusal)
}

fn refusal_of(error: FetchError, pod: &Pod, role: &RoleArn) -> Refusal {
    match error {
        FetchError::Denied { code, message, .. } => {
            Refusal::StsDenied { pod: pod.identity.clone(), role: role.clone(), code, message }
        }
        FetchError::TokenRefused { code, message, .. } => Refusal::StsTokenRefused { code, message },
        FetchError::Throttled { .. } | FetchError::Unreachable { .. } => Refusal::StsUnavailable,
        FetchError::TokenMissing | FetchError::TokenUnusable(_) => Refusal::TokenMissing,
        FetchError::PodGone => Refusal::PodFinished,
    }
}
