//! Credentials that are fit for use, and the document by which the endpoint hands them out.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rolecall_contract::RoleArn;
use zeroize::Zeroizing;

use super::exchange::Issued;
use rolecall_process::time::rfc3339;

/// How long before the real expiry credentials are said to expire, so that no request is signed with keys that
/// AWS no longer takes when it arrives.
const ADVERTISED_EARLIER: Duration = Duration::from_secs(60);

/// What is left of the advertised life, at the least, when credentials are handed out: a reply is some time on its way,
/// the advertised second has no fraction, and botocore fails with credentials that arrive expired (measured: "refreshed
/// credentials are still expired").
const LEAST_LEFT: Duration = Duration::from_secs(5);

/// The document must be smaller: clients built on the AWS CRT fail above 10 000 bytes.
const MAX_REPLY_LENGTH: usize = 8_000;

/// One session of one role. Its secrets have no text form but the reply, and are wiped from memory with it.
pub struct Credentials {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    session_token: Zeroizing<String>,
    issued_at: SystemTime,
    expires_at: SystemTime,
    role: RoleArn,
    account_id: String,
    request_id: Option<String>,
    reply: Bytes,
}

/// An answer of STS that must not reach a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedAnswer {
    #[error("the answer has no {0}")]
    Empty(&'static str),
    #[error("the answer's {0} has characters that credentials do not have")]
    Illegal(&'static str),
    #[error("the answer makes a reply of {0} bytes, which some clients cannot read")]
    TooLong(usize),
    #[error("the answer has expired, or will within 65 s; compare the clocks")]
    Expired,
}

impl Credentials {
    /// Takes what STS issued at `issued_at` for `role`, and renders the reply.
    ///
    /// # Errors
    /// Where some client could not read the reply: a value that is empty or would need a JSON escape, a reply that
    /// is too long, or one that would be expired.
    pub fn new(issued: Issued, role: &RoleArn, issued_at: SystemTime) -> Result<Self, MalformedAnswer> {
        let account_id =
            issued.assumed_role_arn.as_deref().and_then(account_of).unwrap_or(role.account()).to_owned();
        Self::in_account(issued, role, account_id, issued_at)
    }

    /// As [`Credentials::new`], of a session that is known to be in `account_id`.
    ///
    /// # Errors
    /// As there.
    pub fn in_account(
        issued: Issued,
        role: &RoleArn,
        account_id: String,
        issued_at: SystemTime,
    ) -> Result<Self, MalformedAnswer> {
        let advertised_until =
            issued.expires_at.checked_sub(ADVERTISED_EARLIER).ok_or(MalformedAnswer::Expired)?;
        if advertised_until <= issued_at + LEAST_LEFT {
            return Err(MalformedAnswer::Expired);
        }
        let reply = render(&[
            ("Code", "Success"),
            ("AccessKeyId", &issued.access_key_id),
            ("SecretAccessKey", &issued.secret_access_key),
            ("Token", &issued.session_token),
            ("Expiration", &rfc3339(advertised_until)),
            ("AccountId", &account_id),
            ("RoleArn", role.as_str()),
        ])?;
        Ok(Self {
            access_key_id: issued.access_key_id,
            secret_access_key: issued.secret_access_key,
            session_token: issued.session_token,
            issued_at,
            expires_at: issued.expires_at,
            role: role.clone(),
            account_id,
            request_id: issued.request_id,
            reply,
        })
    }

    /// The document that the endpoint answers with, rendered once.
    pub fn reply(&self) -> Bytes {
        self.reply.clone()
    }

    /// The moment from which on they are not handed out: 65 s before they really expire, 5 s before they say so.
    pub fn handed_out_until(&self) -> SystemTime {
        self.expires_at - ADVERTISED_EARLIER - LEAST_LEFT
    }

    /// Whether they may still be handed out at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.handed_out_until()
    }

    /// When AWS stops to take them.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// When STS answered, by the clock of this machine.
    pub fn issued_at(&self) -> SystemTime {
        self.issued_at
    }

    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// The account that the session is in.
    pub fn account_id(&self) -> &str {
        &self.account_id
    }

    /// AWS's id of the exchange.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// The public half of the key.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The secret half of the key; never to be written anywhere but to its pod.
    pub fn expose_secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    /// The session's token; never to be written anywhere but to its pod.
    pub fn expose_session_token(&self) -> &str {
        &self.session_token
    }
}

/// Credentials have no text form.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// The account in `arn:<partition>:sts::<account>:assumed-role/…`.
fn account_of(arn: &str) -> Option<&str> {
    let account = arn.split(':').nth(4)?;
    (account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit())).then_some(account)
}

/// A flat JSON object of strings that need no escapes: fluent-bit does not undo them.
fn render(fields: &[(&'static str, &str)]) -> Result<Bytes, MalformedAnswer> {
    for (name, value) in fields {
        if value.is_empty() {
            return Err(MalformedAnswer::Empty(name));
        }
        if !value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            return Err(MalformedAnswer::Illegal(name));
        }
    }
    let length =
        1 + fields.iter().map(|(name, value)| name.len() + value.len() + "\"\":\"\",".len()).sum::<usize>();
    if MAX_REPLY_LENGTH <= length {
        return Err(MalformedAnswer::TooLong(length));
    }
    // The exact size at once: a buffer that grew would leave secrets behind in freed memory.
    let mut json = Zeroizing::new(Vec::with_capacity(length));
    for (index, (name, value)) in fields.iter().enumerate() {
        json.push(if index == 0 { b'{' } else { b',' });
        for part in ["\"", name, "\":\"", value, "\""] {
            json.extend_from_slice(part.as_bytes());
        }
    }
    json.push(b'}');
    debug_assert_eq!(json.len(), length, "BUG: the reply's length is not what was counted");
    Ok(Bytes::from_owner(json))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn issued() -> Issued {
        Issued {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            secret_access_key: Zeroizing::new("sEcReT/+=".to_owned()),
            session_token: Zeroizing::new("FwoG/+=".to_owned()),
            expires_at: NOW + Duration::from_secs(3600),
            assumed_role_arn: Some("arn:aws:sts::444455556666:assumed-role/orders/shop.orders-0".to_owned()),
            request_id: Some("id-1".to_owned()),
        }
    }

    fn role() -> RoleArn {
        "arn:aws:iam::111122223333:role/team/orders".parse().unwrap()
    }

    #[track_caller]
    fn check_refused(change: impl FnOnce(&mut Issued), expect: MalformedAnswer) {
        let mut issued = issued();
        change(&mut issued);
        assert_eq!(Credentials::new(issued, &role(), NOW).err(), Some(expect));
    }

    #[test]
    fn the_reply_is_the_document_that_every_sdk_reads() {
        let credentials = Credentials::new(issued(), &role(), NOW).unwrap();
        assert_eq!(
            str::from_utf8(&credentials.reply()).unwrap(),
            r#"{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"sEcReT/+=","Token":"FwoG/+=","Expiration":"1970-01-01T00:59:00Z","AccountId":"444455556666","RoleArn":"arn:aws:iam::111122223333:role/team/orders"}"#
        );
    }

    #[test]
    fn without_a_session_arn_the_account_is_the_roles() {
        for arn in
            [None, Some("arn:aws:sts::44445555:assumed-role/x/y".to_owned()), Some("nonsense".to_owned())]
        {
            let credentials =
                Credentials::new(Issued { assumed_role_arn: arn, ..issued() }, &role(), NOW).unwrap();
            assert_eq!(credentials.account_id(), "111122223333");
        }
    }

    #[test]
    fn what_some_client_could_not_read_is_no_reply() {
        check_refused(|i| i.access_key_id.clear(), MalformedAnswer::Empty("AccessKeyId"));
        check_refused(|i| i.secret_access_key.clear(), MalformedAnswer::Empty("SecretAccessKey"));
        check_refused(|i| i.session_token.clear(), MalformedAnswer::Empty("Token"));
        check_refused(|i| i.secret_access_key.push('"'), MalformedAnswer::Illegal("SecretAccessKey"));
        check_refused(|i| i.session_token.push('\\'), MalformedAnswer::Illegal("Token"));
        check_refused(|i| i.session_token.push('\n'), MalformedAnswer::Illegal("Token"));
        check_refused(|i| i.access_key_id.push('é'), MalformedAnswer::Illegal("AccessKeyId"));
        let rest =
            Credentials::new(issued(), &role(), NOW).unwrap().reply().len() - issued().session_token.len();
        check_refused(
            |i| *i.session_token = "t".repeat(MAX_REPLY_LENGTH - rest),
            MalformedAnswer::TooLong(MAX_REPLY_LENGTH),
        );
        let longest = Zeroizing::new("t".repeat(MAX_REPLY_LENGTH - rest - 1));
        let credentials =
            Credentials::new(Issued { session_token: longest, ..issued() }, &role(), NOW).unwrap();
        assert_eq!(credentials.reply().len(), MAX_REPLY_LENGTH - 1);
    }

    #[test]
    fn what_could_not_be_handed_out_any_more_is_refused() {
        check_refused(|i| i.expires_at = NOW, MalformedAnswer::Expired);
        check_refused(|i| i.expires_at = NOW - Duration::from_secs(1), MalformedAnswer::Expired);
        check_refused(|i| i.expires_at = NOW + Duration::from_secs(65), MalformedAnswer::Expired);
    }

    #[test]
    fn nothing_is_handed_out_in_the_last_five_seconds_before_the_advertised_expiry() {
        let credentials = Credentials::new(issued(), &role(), NOW).unwrap();
        assert!(
            str::from_utf8(&credentials.reply()).unwrap().contains(&rfc3339(NOW + Duration::from_secs(3540)))
        );
        assert!(credentials.is_valid_at(NOW + Duration::from_millis(3_534_999)));
        assert!(!credentials.is_valid_at(NOW + Duration::from_secs(3535)));
    }

    #[test]
    fn credentials_have_no_text_form() {
        let text = format!("{:?}", Credentials::new(issued(), &role(), NOW).unwrap());
        assert_eq!(text, "Credentials(…)");
    }
}
