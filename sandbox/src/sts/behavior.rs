//! Faults on demand: what happens to a request before its true answer, or instead of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::error::StsError;
use crate::gate::Turnstile;
use crate::listener;

/// How a request is treated. The default answers at once and truly.
#[derive(Debug, Clone, Default)]
pub struct Behavior {
    /// Silence before anything else.
    pub latency: Duration,
    /// What comes instead of the true answer, if anything.
    pub fault: Option<Fault>,
}

/// What comes instead of the true answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This error of AWS's.
    Error(StsError),
    /// Silence, until [`super::StsServer::release_hung`]; then the true answer.
    Hang,
    /// `200` with a body that is no answer of STS.
    Garbage,
    /// The end of the connection.
    Hangup(Hangup),
}

/// How a connection ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// With a TCP reset.
    Reset,
    /// In order, as a server that is shutting down may do.
    Close,
}

/// The faults in force.
#[derive(Default)]
pub(super) struct Behaviors {
    rules: Mutex<Rules>,
    /// How often the hanging requests were released.
    releases: watch::Sender<u64>,
}

/// What is in force for one request.
pub(super) struct Treatment {
    pub(super) behavior: Behavior,
    /// Where it has to queue first.
    pub(super) turnstile: Option<Turnstile>,
    releases: watch::Receiver<u64>,
}

#[derive(Default)]
struct Rules {
    default: Behavior,
    script: VecDeque<Behavior>,
    roles: HashMap<String, RoleRules>,
    turnstile: Option<Turnstile>,
}

#[derive(Default)]
struct RoleRules {
    default: Option<Behavior>,
    script: VecDeque<Behavior>,
}

impl Behavior {
    /// The true answer, at once.
    pub fn normal() -> Self {
        Self::default()
    }

    /// The true answer, after a while.
    pub fn slow(latency: Duration) -> Self {
        Self::normal().after(latency)
    }

    /// This error of AWS's, whatever the request.
    pub fn error(error: StsError) -> Self {
        Self::with(Fault::Error(error))
    }

    /// `Throttling`, status 400.
    pub fn throttled() -> Self {
        Self::error(StsError::throttling())
    }

    /// `InternalFailure`, status 500.
    pub fn internal_failure() -> Self {
        Self::error(StsError::internal_failure())
    }

    /// `ServiceUnavailable`, status 503.
    pub fn unavailable() -> Self {
        Self::error(StsError::service_unavailable())
    }

    /// `AccessDenied`, status 403.
    pub fn denied() -> Self {
        Self::error(StsError::not_authorized())
    }

    /// Silence, until [`super::StsServer::release_hung`].
    pub fn hang() -> Self {
        Self::with(Fault::Hang)
    }

    /// A TCP reset.
    pub fn reset() -> Self {
        Self::with(Fault::Hangup(Hangup::Reset))
    }

    /// The end of the connection, in order.
    pub fn close() -> Self {
        Self::with(Fault::Hangup(Hangup::Close))
    }

    /// `200` with a body that is no answer of STS.
    pub fn garbage() -> Self {
        Self::with(Fault::Garbage)
    }

    /// The same, after a while of silence.
    #[must_use]
    pub fn after(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    fn with(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }
}

impl From<Hangup> for listener::Hangup {
    fn from(hangup: Hangup) -> Self {
        match hangup {
            Hangup::Reset => Self::Reset,
            Hangup::Close => Self::Close,
        }
    }
}

impl Behaviors {
    pub(super) fn set(&self, behavior: Behavior) {
        self.rules().default = behavior;
    }

    pub(super) fn set_for_role(&self, role_arn: &str, behavior: Option<Behavior>) {
        self.rules().roles.entry(role_arn.to_owned()).or_default().default = behavior;
    }

    pub(super) fn script(&self, steps: impl IntoIterator<Item = Behavior>) {
        self.rules().script.extend(steps);
    }

    pub(super) fn script_role(&self, role_arn: &str, steps: impl IntoIterator<Item = Behavior>) {
        self.rules().roles.entry(role_arn.to_owned()).or_default().script.extend(steps);
    }

    pub(super) fn clear(&self) {
        let mut rules = self.rules();
        let turnstile = rules.turnstile.take();
        *rules = Rules { turnstile, ..Rules::default() };
    }

    /// Decides on the request that has just arrived. A release counts for it from now on, even before it hangs.
    pub(super) fn treatment(&self, role_arn: Option<&str>) -> Treatment {
        let releases = self.releases.subscribe();
        let mut rules = self.rules();
        Treatment { behavior: rules.next(role_arn), turnstile: rules.turnstile.clone(), releases }
    }

    pub(super) fn set_turnstile(&self, turnstile: Turnstile) {
        self.rules().turnstile = Some(turnstile);
    }

    pub(super) fn release_hung(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rules {
    /// By the role's script, the role, the script, or as to all.
    fn next(&mut self, role_arn: Option<&str>) -> Behavior {
        if let Some(role) = role_arn.and_then(|role_arn| self.roles.get_mut(role_arn)) {
            if let Some(step) = role.script.pop_front() {
                return step;
            }
            if let Some(behavior) = &role.default {
                return behavior.clone();
            }
        }
        self.script.pop_front().unwrap_or_else(|| self.default.clone())
    }
}

impl Treatment {
    /// Waits until the hanging requests are released.
    pub(super) async fn hang(&mut self) {
        // The sender lives as long as the server; when it goes, hanging on would be pointless.
        let _gone = self.releases.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

    fn latency(behaviors: &Behaviors, role_arn: Option<&str>) -> u64 {
        behaviors.treatment(role_arn).behavior.latency.as_secs()
    }

    fn slow(seconds: u64) -> Behavior {
        Behavior::slow(Duration::from_secs(seconds))
    }

    #[test]
    fn the_narrowest_rule_wins_and_scripts_are_used_up() {
        let behaviors = Behaviors::default();
        behaviors.set(slow(1));
        behaviors.script([slow(2)]);
        behaviors.set_for_role(ROLE, Some(slow(3)));
        behaviors.script_role(ROLE, [slow(4), slow(5)]);
        assert_eq!(latency(&behaviors, Some(ROLE)), 4);
        assert_eq!(latency(&behaviors, Some(ROLE)), 5);
        assert_eq!(latency(&behaviors, Some(ROLE)), 3);
        behaviors.set_for_role(ROLE, None);
        assert_eq!(latency(&behaviors, Some(ROLE)), 2);
        assert_eq!(latency(&behaviors, Some(ROLE)), 1);
        assert_eq!(latency(&behaviors, None), 1);
        behaviors.clear();
        assert_eq!(latency(&behaviors, None), 0);
    }
}
