//! Roles, identity providers and issued sessions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::arn::Role;
use super::error::StsError;
use super::provider::{self, Keys, Provider, WebIdentity};
use super::trust::TrustPolicy;
use super::{SECRET_MARK, SESSION_MARK};
use crate::{clock, ids};

/// `MaxSessionDuration` of a role that does not set it.
const DEFAULT_MAX_SESSION: Duration = Duration::from_hours(1);

/// A session of a role, with its credentials.
#[derive(Clone)]
pub struct IssuedSession {
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key. Not in `Debug`.
    pub secret_access_key: String,
    /// The session token. Not in `Debug`.
    pub session_token: String,
    /// The role it is a session of, with its path.
    pub role_arn: String,
    /// ARN of the session.
    pub assumed_role_arn: String,
    /// `AROA…:<session name>`.
    pub assumed_role_id: String,
    /// Account of the role.
    pub account: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// Subject of the web identity token; none for `AssumeRole`.
    pub subject: Option<String>,
    /// When it was issued.
    pub issued_at: SystemTime,
    /// When it expires, in whole seconds as the answer states it.
    pub expires_at: SystemTime,
}

#[derive(Default)]
pub(super) struct Account(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    providers: HashMap<String, Provider>,
    roles: HashMap<String, RoleEntry>,
    sessions: Vec<IssuedSession>,
    by_access_key_id: HashMap<String, usize>,
    session_seconds: Option<u64>,
}

struct RoleEntry {
    /// IAM's unique id of the role.
    id: String,
    policy: TrustPolicy,
    max_session: Duration,
    session_seconds: Option<u64>,
}

impl fmt::Debug for IssuedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedSession")
            .field("access_key_id", &self.access_key_id)
            .field("assumed_role_arn", &self.assumed_role_arn)
            .field("subject", &self.subject)
            .field("expires_at", &clock::iso8601(self.expires_at))
            .finish_non_exhaustive()
    }
}

impl Account {
    pub(super) fn register(&self, issuer_url: &str, keys: Keys) {
        match self.registry().providers.entry(issuer_url.to_owned()) {
            Entry::Occupied(mut provider) => provider.get_mut().keys = keys,
            Entry::Vacant(vacant) => {
                vacant.insert(Provider::new(keys));
            }
        }
    }

    pub(super) fn set_audiences(&self, issuer_url: &str, audiences: &[&str]) {
        if let Some(provider) = self.registry().providers.get_mut(issuer_url) {
            provider.audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
        }
    }

    pub(super) fn set_reachable(&self, issuer_url: &str, reachable: bool) {
        if let Some(provider) = self.registry().providers.get_mut(issuer_url) {
            provider.is_reachable = reachable;
        }
    }

    pub(super) fn trust(&self, role_arn: &str, policy: TrustPolicy) {
        self.registry().role(role_arn).policy = policy;
    }

    pub(super) fn add_trust(&self, role_arn: &str, policy: TrustPolicy) {
        let mut registry = self.registry();
        let role = registry.role(role_arn);
        role.policy = std::mem::take(&mut role.policy).or(policy);
    }

    pub(super) fn remove_role(&self, role_arn: &str) {
        self.registry().roles.remove(role_arn);
    }

    pub(super) fn set_max_session(&self, role_arn: &str, duration: Duration) {
        self.registry().role(role_arn).max_session = duration;
    }

    pub(super) fn set_session_seconds(&self, seconds: Option<u64>) {
        self.registry().session_seconds = seconds;
    }

    pub(super) fn set_role_session_seconds(&self, role_arn: &str, seconds: Option<u64>) {
        self.registry().role(role_arn).session_seconds = seconds;
    }

    pub(super) fn issued(&self) -> Vec<IssuedSession> {
        self.registry().sessions.clone()
    }

    pub(super) fn session(&self, access_key_id: &str) -> Option<IssuedSession> {
        let registry = self.registry();
        registry.by_access_key_id.get(access_key_id).map(|&index| registry.sessions[index].clone())
    }

    pub(super) fn verify_token(&self, token: &str) -> Result<WebIdentity, StsError> {
        let registry = self.registry();
        provider::verify(token, clock::now(), |issuer_url| registry.providers.get(issuer_url))
    }

    /// A session for the holder of a web identity.
    pub(super) fn assume_with_web_identity(
        &self,
        role_arn: &str,
        session_name: &str,
        duration_seconds: u64,
        identity: &WebIdentity,
    ) -> Result<IssuedSession, StsError> {
        let audiences: Vec<&str> = identity.audiences.iter().map(String::as_str).collect();
        let mut registry = self.registry();
        let role = registry
            .roles
            .get(role_arn)
            .filter(|role| role.policy.allows_token(&identity.issuer_url, &identity.subject, &audiences))
            .ok_or_else(StsError::not_authorized)?;
        if role.max_session.as_secs() < duration_seconds {
            return Err(StsError::validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        registry.issue(role_arn, session_name, duration_seconds, Some(identity.subject.clone()))
    }

    /// A session for the holder of another role's session.
    pub(super) fn assume(
        &self,
        role_arn: &str,
        session_name: &str,
        duration_seconds: u64,
        caller: &IssuedSession,
    ) -> Result<IssuedSession, StsError> {
        let mut registry = self.registry();
        if !registry.roles.get(role_arn).is_some_and(|role| role.policy.allows_role(&caller.role_arn)) {
            return Err(StsError::access_denied(format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                caller.assumed_role_arn
            )));
        }
        if DEFAULT_MAX_SESSION.as_secs() < duration_seconds {
            return Err(StsError::validation(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
            ));
        }
        registry.issue(role_arn, session_name, duration_seconds, None)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn role(&mut self, role_arn: &str) -> &mut RoleEntry {
        self.roles.entry(role_arn.to_owned()).or_insert_with(|| RoleEntry {
            id: format!("AROA{}", ids::base32(17)),
            policy: TrustPolicy::nobody(),
            max_session: DEFAULT_MAX_SESSION,
            session_seconds: None,
        })
    }

    fn issue(
        &mut self,
        role_arn: &str,
        session_name: &str,
        duration_seconds: u64,
        subject: Option<String>,
    ) -> Result<IssuedSession, StsError> {
        let role = Role::parse(role_arn)?;
        let RoleEntry { id, session_seconds, .. } = self.role(role_arn);
        let (role_id, of_role) = (id.clone(), *session_seconds);
        let issued_at = clock::now();
        let lifetime = of_role.or(self.session_seconds).unwrap_or(duration_seconds);
        let session = IssuedSession {
            access_key_id: format!("ASIA{}", ids::base32(16)),
            // As long as AWS's: 40 characters, and a token of several hundred.
            secret_access_key: format!("{}{SECRET_MARK}{}", ids::base64(15), ids::base64(15)),
            session_token: format!(
                "IQoJb3JpZ2luX2Vj{}{SESSION_MARK}{}==",
                ids::base64(300),
                ids::base64(303)
            ),
            role_arn: role_arn.to_owned(),
            assumed_role_arn: role.session(session_name),
            assumed_role_id: format!("{role_id}:{session_name}"),
            account: role.account.to_owned(),
            session_name: session_name.to_owned(),
            subject,
            issued_at,
            expires_at: SystemTime::UNIX_EPOCH
                + Duration::from_secs(clock::unix_seconds(issued_at) + lifetime),
        };
        self.by_access_key_id.insert(session.access_key_id.clone(), self.sessions.len());
        self.sessions.push(session.clone());
        Ok(session)
    }
}
