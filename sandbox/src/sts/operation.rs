//! The three operations of STS, and one of S3: what each checks, in AWS's order.

use http::request::Parts;

use super::account::Account;
use super::arn::Role;
use super::error::StsError;
use super::query::{Action, Query};
use super::reply::Document;
use super::sigv4::{self, Service};
use super::trust;
use crate::clock;

/// The true answer to a request.
pub(super) fn perform(
    account: &Account,
    head: &Parts,
    body: &[u8],
    query: &Query,
) -> Result<Document, StsError> {
    match query.action()? {
        Action::AssumeRoleWithWebIdentity => assume_role_with_web_identity(account, query),
        Action::AssumeRole => assume_role(account, head, body, query),
        Action::GetCallerIdentity => {
            sigv4::authenticate(account, head, body, Service::Sts, clock::now()).map(Document::CallerIdentity)
        }
        Action::ListBuckets => {
            sigv4::authenticate(account, head, body, Service::S3, clock::now()).map(Document::Buckets)
        }
    }
}

fn assume_role_with_web_identity(account: &Account, query: &Query) -> Result<Document, StsError> {
    let role_arn = query.require("RoleArn", "roleArn")?;
    let token = query.require("WebIdentityToken", "webIdentityToken")?;
    let session_name = query.session_name()?;
    let duration = query.duration_seconds()?;
    let role = Role::parse(role_arn)?;
    check_token_length(token)?;

    let identity = account.verify_token(token)?;
    let session = account.assume_with_web_identity(role_arn, session_name, duration, &identity)?;
    let provider = role.provider(trust::without_scheme(&identity.issuer_url));
    Ok(Document::WebIdentitySession { session, provider, audience: identity.audiences.join(",") })
}

fn assume_role(account: &Account, head: &Parts, body: &[u8], query: &Query) -> Result<Document, StsError> {
    let caller = sigv4::authenticate(account, head, body, Service::Sts, clock::now())?;
    let role_arn = query.require("RoleArn", "roleArn")?;
    let session_name = query.session_name()?;
    let duration = query.duration_seconds()?;
    Role::parse(role_arn)?;
    account.assume(role_arn, session_name, duration, &caller).map(Document::Session)
}

/// The token is not repeated in the message, unlike other values.
fn check_token_length(token: &str) -> Result<(), StsError> {
    let refuse =
        |constraint| Err(StsError::constraint("at 'webIdentityToken'", "webIdentityToken", constraint));
    match token.len() {
        0..4 => refuse("Member must have length greater than or equal to 4"),
        20_001.. => refuse("Member must have length less than or equal to 20000"),
        _ => Ok(()),
    }
}
