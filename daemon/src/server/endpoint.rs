//! Answers a request: checks its form, finds out who asks, and hands out credentials as soon as they are there.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use rolecall_contract::{RoleArn, endpoint::PathRole};
use tokio::time::{Instant, timeout_at};

use super::{
    caller::{self, Callers, Memory},
    limits::{Budget, Limits, Permit, Source},
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
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// Ends the connection with a reset.
    pub reset: ResetSwitch,
    /// What requests from its address may do.
    budget: Budget,
    /// Whom it was found to be.
    memory: Memory,
}

/// A request that waits for credentials: what it takes to finish it, wherever that happens.
struct Waiting {
    pending: Pending,
    pod: Arc<Pod>,
    role: RoleArn,
    callers: Callers,
    peer: IpAddr,
    token: Option<Token>,
    arrived: Instant,
    timing: Timing,
    /// Its place among what the pod may do at a time.
    _permit: Permit,
}

impl Peer {
    pub fn new(address: IpAddr, budget: Budget) -> Self {
        Self { address, reset: ResetSwitch::default(), budget, memory: Memory::default() }
    }
}

impl Endpoint {
    /// Answers one request. It never fails: what goes wrong is an answer too.
    pub async fn answer<B>(&self, request: Request<B>, peer: &Peer) -> Response<ReplyBody> {
        let arrived = Instant::now();
        let mut exchange = self.observer.arrived(arrived, peer.address);
        let waiting = match self.begin(&request, peer, arrived, &mut exchange).await {
            Ok(Progress::Done(document)) => {
                exchange.answered();
                return reply::credentials(document);
            }
            Ok(Progress::Waiting(waiting)) => waiting,
            Err(refusal) => return refuse(exchange, &refusal),
        };
        let can_drip = self.config.timing.mode == Mode::Drip && request.version() == http::Version::HTTP_11;
        // Not kept while it waits: its headers would hold on to the connection's read buffer.
        drop(request);
        // Boxed like what finds out who asks: hyper keeps room for this future on every connection.
        Box::pin(finish(waiting, exchange, can_drip, peer.reset.clone())).await
    }

    /// Answers a request on a connection that is one too many of its pod.
    pub fn refuse_connection(&self, peer: &Peer) -> Response<ReplyBody> {
        let exchange = self.observer.arrived(Instant::now(), peer.address);
        refuse(exchange, &Refusal::TooManyRequests("connections"))
    }

    async fn begin<B>(
        &self,
        request: &Request<B>,
        peer: &Peer,
        arrived: Instant,
        exchange: &mut Exchange,
    ) -> Result<Progress, Refusal> {
        let head = Head::check(request)?;
        // Charged before anything is done for it, to whoever that can be told to be by now.
        let on_node = self.node.contains(peer.address);
        let permit = if on_node { self.limits.admit_unidentified()? } else { peer.budget.admit()? };
        let asking = caller::Request { peer: peer.address, token: head.token };
        let identified = self.callers.identify(asking, &peer.memory, arrived).await;
        let pod = identified.inspect_err(|_| exchange.suspected(self.callers.suspects(asking)))?;
        exchange.identified(&pod);
        let permit = if on_node { self.limits.of(Source::Pod(pod.uid().clone())).admit()? } else { permit };
        let session = self.session(&pod, head.role)?;
        if let Some(credentials) = self.credentials.valid(&session.key) {
            return Ok(Progress::Done(credentials.reply()));
        }
        let role = session.key.role.clone();
        let pending = self
            .credentials
            .request(Arc::unwrap_or_clone(session))
            .map_err(|error| Refusal::TooManyRoles { limit: error.limit })?;
        Ok(Progress::Waiting(Box::new(Waiting {
            pending,
            pod,
            role,
            callers: self.callers.clone(),
            peer: peer.address,
            token: head.token.map(Token::new),
            arrived,
            timing: self.config.timing,
            _permit: permit,
        })))
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

enum Progress {
    Done(Bytes),
    /// Boxed: the warm path should not carry its size around.
    Waiting(Box<Waiting>),
}

/// Holds the request in silence, then begins the answer, or goes on in silence where it cannot be begun.
async fn finish(
    mut waiting: Box<Waiting>,
    mut exchange: Exchange,
    can_drip: bool,
    reset: ResetSwitch,
) -> Response<ReplyBody> {
    let hold_until = waiting.arrived + waiting.timing.hold;
    let outcome = match waiting.until(hold_until).await {
        Some(outcome) => outcome,
        None if can_drip => {
            exchange.begun();
            let (arrived, timing) = (waiting.arrived, waiting.timing);
            return reply::begun(slow::drip(finish_begun(waiting, exchange), arrived, timing, reset));
        }
        None => waiting.outcome_at_last().await,
    };
    match outcome {
        Ok(document) => {
            exchange.answered();
            reply::credentials(document)
        }
        Err(refusal) => refuse(exchange, &refusal),
    }
}

async fn finish_begun(waiting: Box<Waiting>, exchange: Exchange) -> Result<Bytes, GivenUp> {
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
        let outcome = match timeout_at(deadline, self.pending.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => Ok(self.pending.best()?),
        };
        Some(self.judge(outcome).await)
    }

    async fn outcome_at_last(mut self) -> Result<Bytes, Refusal> {
        let deadline = self.arrived + self.timing.give_up_after;
        match self.until(deadline).await {
            Some(outcome) => outcome,
            None => {
                let error = self.pending.give_up();
                Err(refusal_of(error, &self.pod, &self.role))
            }
        }
    }

    async fn judge(&self, outcome: Result<Arc<Credentials>, FetchError>) -> Result<Bytes, Refusal> {
        let credentials = outcome.map_err(|error| refusal_of(error, &self.pod, &self.role))?;
        let asking = caller::Request { peer: self.peer, token: self.token.as_ref().map(Token::expose) };
        // Time has passed since the caller was found out.
        self.callers.confirm(asking, &self.pod).await?;
        // That may have waited for the watch.
        if self.pending.is_valid(&credentials) {
            Ok(credentials.reply())
        } else {
            Err(Refusal::StsUnavailable)
        }
    }
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
