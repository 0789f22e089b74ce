//! Identity providers and the verification of their tokens.

use std::time::SystemTime;

use serde_json::Value;

use super::error::StsError;
use crate::clock;
use crate::issuer::Issuer;
use crate::jws::Jws;

/// An OpenID Connect provider as IAM knows it.
pub(super) struct Provider {
    pub(super) keys: Keys,
    /// The audiences registered with it, IAM's "client ids".
    pub(super) audiences: Vec<String>,
    pub(super) is_reachable: bool,
}

/// Where a provider's keys come from.
pub(super) enum Keys {
    /// From this issuer, as it publishes them at the moment.
    Of(Issuer),
    /// From a JWKS fetched earlier.
    Published(Value),
}

/// What a token says, once it is verified.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WebIdentity {
    pub(super) issuer_url: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
}

impl Provider {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, audiences: vec![rolecall_contract::AUDIENCE.to_owned()], is_reachable: true }
    }

    fn jwks(&self) -> Value {
        match &self.keys {
            Keys::Of(issuer) => issuer.jwks(),
            Keys::Published(jwks) => jwks.clone(),
        }
    }
}

/// Verifies a token, in AWS's order: form, issuer, signature, expiry, audience.
pub(super) fn verify<'p>(
    token: &str,
    now: SystemTime,
    find: impl FnOnce(&str) -> Option<&'p Provider>,
) -> Result<WebIdentity, StsError> {
    let jws = Jws::parse(token).ok_or_else(StsError::not_a_jwt)?;
    let issuer_url = jws.text("iss").ok_or_else(StsError::not_a_jwt)?;
    let provider = find(issuer_url).ok_or_else(|| StsError::no_provider(issuer_url))?;
    if !provider.is_reachable {
        return Err(StsError::idp_communication());
    }
    if !jws.is_signed_by(&provider.jwks()) {
        return Err(StsError::no_verification_key());
    }

    let seconds = |claim: &str| jws.claims.get(claim).and_then(Value::as_u64);
    let expires_at = seconds("exp").ok_or_else(|| missing("exp"))?;
    if expires_at <= clock::unix_seconds(now) {
        return Err(StsError::expired_token(now, expires_at));
    }
    if seconds("nbf").is_some_and(|not_before| clock::unix_seconds(now) + 300 < not_before) {
        return Err(StsError::invalid_identity_token("The ID Token provided is not valid yet"));
    }

    let audiences = match jws.claims.get("aud") {
        Some(Value::String(audience)) => vec![audience.clone()],
        Some(Value::Array(audiences)) => {
            audiences.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => return Err(missing("aud")),
    };
    if !audiences.iter().any(|audience| provider.audiences.contains(audience)) {
        return Err(StsError::incorrect_audience());
    }
    let subject = jws.text("sub").ok_or_else(|| missing("sub"))?;
    Ok(WebIdentity { issuer_url: issuer_url.to_owned(), subject: subject.to_owned(), audiences })
}

fn missing(claim: &str) -> StsError {
    StsError::invalid_identity_token(format!("Missing a required claim: {claim}"))
}
