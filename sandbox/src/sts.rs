//! AWS STS over HTTP: the Query protocol, its checks and errors, faults on demand and a record of the calls.

mod account;
mod arn;
mod behavior;
mod error;
mod ledger;
mod operation;
mod provider;
mod query;
mod reply;
mod sigv4;
mod trust;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use serde_json::Value;

use crate::authority::Authority;
use crate::gate::Gate;
use crate::ids;
use crate::issuer::Issuer;
use crate::listener::{self, Answer, Listener};
use account::Account;
pub use account::IssuedSession;
use behavior::Behaviors;
pub use behavior::{Behavior, Fault};
pub use error::StsError;
use ledger::Ledger;
pub use ledger::{Call, Outcome};
use provider::Keys;
use query::Query;
pub use trust::{Operator, TrustPolicy};

/// Part of every secret access key issued here, for tests that search for leaks.
pub const SECRET_MARK: &str = "SECRETMARK";

/// Part of every session token issued here, for tests that search for leaks.
pub const SESSION_MARK: &str = "SESSIONMARK";

/// Enough for a token, a session policy and 50 tags, the most that STS takes.
const BODY_LIMIT: usize = 256 * 1024;

/// How the server starts.
#[derive(Debug, Clone)]
pub struct StsConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// See [`StsServer::set_session_seconds`].
    pub session_seconds: Option<u64>,
    /// Whose certificate it has and speaks TLS with; without one it speaks plain HTTP.
    pub authority: Option<Authority>,
}

/// A running STS with one set of roles and identity providers, good for every account.
#[derive(Clone)]
pub struct StsServer(Arc<Inner>);

struct Inner {
    state: Arc<State>,
    listener: Listener,
}

#[derive(Default)]
struct State {
    account: Account,
    behaviors: Behaviors,
    ledger: Ledger,
    /// Makes a request's arrival one step: scripts are used up in the order of the record, and what a test sets after
    /// it has seen a request arrive does not concern that request.
    arriving: Mutex<()>,
}

impl Default for StsConfig {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { listen, session_seconds: None, authority: None }
    }
}

impl StsServer {
    /// Listens and answers until the last handle is dropped.
    pub async fn start(config: StsConfig) -> io::Result<Self> {
        let state = Arc::new(State::default());
        state.account.set_session_seconds(config.session_seconds);
        let serving = state.clone();
        let handler = move |request| answer(serving.clone(), request);
        let listener = Listener::start(config.listen, config.authority.as_ref(), handler).await?;
        Ok(Self(Arc::new(Inner { state, listener })))
    }

    /// The endpoint, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        self.0.listener.url()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.0.listener.port()
    }

    // Roles and identity providers.

    /// Registers an identity provider whose keys are followed, rotations included.
    pub fn register_issuer(&self, issuer: &Issuer) {
        self.0.state.account.register(issuer.url(), Keys::Of(issuer.clone()));
    }

    /// Registers an identity provider by its URL and the keys of its JWKS, or replaces its keys.
    pub fn register_jwks(&self, issuer_url: &str, jwks: Value) {
        self.0.state.account.register(issuer_url, Keys::Published(jwks));
    }

    /// Accepts tokens for these audiences from an identity provider; `sts.amazonaws.com` alone unless this is said.
    pub fn set_audiences(&self, issuer_url: &str, audiences: &[&str]) {
        self.0.state.account.set_audiences(issuer_url, audiences);
    }

    /// Makes STS fail to reach an identity provider: its tokens get `IDPCommunicationError`.
    pub fn set_issuer_reachable(&self, issuer_url: &str, reachable: bool) {
        self.0.state.account.set_reachable(issuer_url, reachable);
    }

    /// Creates a role, or replaces its trust policy.
    pub fn trust(&self, role_arn: &str, policy: TrustPolicy) {
        self.0.state.account.trust(role_arn, policy);
    }

    /// Adds statements to a role's trust policy, or creates the role with them.
    pub fn add_trust(&self, role_arn: &str, policy: TrustPolicy) {
        self.0.state.account.add_trust(role_arn, policy);
    }

    /// Deletes a role: whoever assumes it is denied. Sessions already issued stay good.
    pub fn remove_role(&self, role_arn: &str) {
        self.0.state.account.remove_role(role_arn);
    }

    /// Sets a role's `MaxSessionDuration`, an hour unless this is said.
    pub fn set_max_session(&self, role_arn: &str, duration: Duration) {
        self.0.state.account.set_max_session(role_arn, duration);
    }

    /// Issues sessions of this length whatever the request asks for, also shorter ones than AWS allows; `None`
    /// keeps to the request again.
    pub fn set_session_seconds(&self, seconds: Option<u64>) {
        self.0.state.account.set_session_seconds(seconds);
    }

    /// The same for one role, before what is set for all.
    pub fn set_role_session_seconds(&self, role_arn: &str, seconds: Option<u64>) {
        self.0.state.account.set_role_session_seconds(role_arn, seconds);
    }

    // Faults.

    /// Behaves like this from now on, towards every request that no script and no role's own behavior covers.
    pub fn set_behavior(&self, behavior: Behavior) {
        self.0.state.behaviors.set(behavior);
    }

    /// Behaves like this towards requests for one role; `None` ends it.
    pub fn set_role_behavior(&self, role_arn: &str, behavior: Option<Behavior>) {
        self.0.state.behaviors.set_for_role(role_arn, behavior);
    }

    /// Behaves like this towards the next requests, one step each in the order of their arrival; after that, as set.
    /// A second script goes on where the first one ends.
    pub fn script(&self, steps: impl IntoIterator<Item = Behavior>) {
        self.0.state.behaviors.script(steps);
    }

    /// A script for the requests for one role.
    pub fn script_role(&self, role_arn: &str, steps: impl IntoIterator<Item = Behavior>) {
        self.0.state.behaviors.script_role(role_arn, steps);
    }

    /// Behaves like this towards the next `count` requests.
    pub fn fail_next(&self, count: usize, behavior: Behavior) {
        self.script(std::iter::repeat_n(behavior, count));
    }

    /// Ends every script and behavior: answers at once and truly. Requests that hang go on hanging.
    pub fn behave(&self) {
        self.0.state.behaviors.clear();
    }

    /// Lets the requests that [`Fault::Hang`] keeps waiting go on to their true answer. Later ones hang again.
    pub fn release_hung(&self) {
        self.0.state.behaviors.release_hung();
    }

    /// Makes requests queue from now on, until the gate lets them through. What becomes of a request is decided
    /// once it is through. Another hold takes the place of this one for requests yet to come.
    #[must_use = "a dropped gate is open"]
    pub fn hold(&self) -> Gate {
        let (gate, turnstile) = Gate::closed();
        self.0.state.behaviors.set_turnstile(turnstile);
        gate
    }

    /// Closes every connection and refuses new ones, or listens again on the same port. Done when it returns.
    pub async fn set_outage(&self, outage: bool) -> io::Result<()> {
        self.0.listener.set_outage(outage).await
    }

    // The record.

    /// Every call so far, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.0.state.ledger.calls()
    }

    /// Number of calls so far.
    pub fn call_count(&self) -> usize {
        self.0.state.ledger.count()
    }

    /// Waits until at least `count` calls have arrived since the start, answered or not.
    pub async fn wait_for_requests(&self, count: usize) {
        let ledger = &self.0.state.ledger;
        ledger.wait_until(|| count <= ledger.count()).await;
    }

    /// Waits until the record is as `condition` says; asked again whenever a call arrives or ends.
    pub async fn wait_until(&self, mut condition: impl FnMut(&[Call]) -> bool) {
        let ledger = &self.0.state.ledger;
        ledger.wait_until(|| ledger.look(&mut condition)).await;
    }

    /// The most calls that have been under way at one moment.
    pub fn peak_in_flight(&self) -> usize {
        self.0.state.ledger.peak_in_flight()
    }

    /// Every session issued so far, in order.
    pub fn issued(&self) -> Vec<IssuedSession> {
        self.0.state.account.issued()
    }

    /// The session that an access key id belongs to.
    pub fn session(&self, access_key_id: &str) -> Option<IssuedSession> {
        self.0.state.account.session(access_key_id)
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let Some(body) = listener::read(body, BODY_LIMIT).await? else {
        return reply::document(&Err(StsError::request_too_large()), &ids::uuid());
    };
    let query = Query::parse(&head, &body);
    let (mut treatment, entry) = {
        let _arriving = state.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let treatment = state.behaviors.treatment(query.role_arn());
        // From here on the call is on record, and ends there too if the client hangs up and this future is dropped.
        (treatment, state.ledger.arrived(&query))
    };
    if let Some(turnstile) = &treatment.turnstile {
        turnstile.pass().await;
    }
    if !treatment.behavior.latency.is_zero() {
        tokio::time::sleep(treatment.behavior.latency).await;
    }
    match treatment.behavior.fault.take() {
        None => {}
        Some(Fault::Hang) => treatment.hang().await,
        Some(Fault::Error(error)) => {
            entry.ended(Outcome::Refused { code: error.code() });
            return reply::document(&Err(error), entry.request_id());
        }
        Some(Fault::Garbage) => {
            entry.ended(Outcome::Garbled);
            return reply::garbage();
        }
        Some(Fault::Hangup(hangup)) => {
            entry.ended(Outcome::HungUp);
            return Err(hangup.into());
        }
    }
    let result = operation::perform(&state.account, &head, &body, &query);
    entry.ended(match &result {
        Ok(document) => Outcome::Granted { access_key_id: document.access_key_id().to_owned() },
        Err(error) => Outcome::Refused { code: error.code() },
    });
    reply::document(&result, entry.request_id())
}
