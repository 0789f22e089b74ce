//! The Query protocol's request: form fields in the body, or in the query string.

use http::Method;
use http::request::Parts;
use url::form_urlencoded;

use super::error::StsError;
use crate::jws::Jws;

/// The only version of STS's API.
const VERSION: &str = "2011-06-15";

/// The fields of a request.
pub(super) struct Query {
    fields: Vec<(String, String)>,
    is_s3: bool,
}

/// The operations there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    AssumeRoleWithWebIdentity,
    AssumeRole,
    GetCallerIdentity,
    /// For SDKs that come without STS: S3, on whose requests there is no action.
    ListBuckets,
}

impl Query {
    pub(super) fn parse(head: &Parts, body: &[u8]) -> Self {
        let in_uri = head.uri.query().unwrap_or_default().as_bytes();
        let fields = [in_uri, body].map(|fields| form_urlencoded::parse(fields).into_owned());
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        // S3 alone wants the body's digest in a header.
        let is_s3 = head.method == Method::GET && head.headers.contains_key("x-amz-content-sha256");
        Self { fields, is_s3 }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn role_arn(&self) -> Option<&str> {
        self.get("RoleArn")
    }

    pub(super) fn action(&self) -> Result<Action, StsError> {
        if self.is_s3 {
            return Ok(Action::ListBuckets);
        }
        let action = self.get("Action").ok_or_else(StsError::missing_action)?;
        let version = self.get("Version").unwrap_or("NO_VERSION_SPECIFIED");
        match action {
            _ if version != VERSION => Err(StsError::invalid_action(action, version)),
            "AssumeRoleWithWebIdentity" => Ok(Action::AssumeRoleWithWebIdentity),
            "AssumeRole" => Ok(Action::AssumeRole),
            "GetCallerIdentity" => Ok(Action::GetCallerIdentity),
            _ => Err(StsError::invalid_action(action, version)),
        }
    }

    /// A member that must be there; `member` is its name in AWS's messages.
    pub(super) fn require(&self, name: &str, member: &str) -> Result<&str, StsError> {
        self.get(name).ok_or_else(|| StsError::missing_member(member))
    }

    /// `RoleSessionName`, checked.
    pub(super) fn session_name(&self) -> Result<&str, StsError> {
        let name = self.require("RoleSessionName", "roleSessionName")?;
        let refuse =
            |constraint| Err(StsError::constraint(&format!("'{name}'"), "roleSessionName", constraint));
        let in_charset = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        match name.chars().count() {
            0..2 => refuse("Member must have length greater than or equal to 2"),
            65.. => refuse("Member must have length less than or equal to 64"),
            _ if !name.chars().all(in_charset) => {
                refuse("Member must satisfy regular expression pattern: [\\w+=,.@-]*")
            }
            _ => Ok(name),
        }
    }

    /// `DurationSeconds`, checked; an hour if the request does not say.
    pub(super) fn duration_seconds(&self) -> Result<u64, StsError> {
        let Some(text) = self.get("DurationSeconds") else {
            return Ok(3600);
        };
        let seconds: i64 = text.parse().map_err(|_| {
            StsError::new(http::StatusCode::BAD_REQUEST, "MalformedInput", "DurationSeconds is not a number")
        })?;
        let refuse =
            |constraint| Err(StsError::constraint(&format!("'{text}'"), "durationSeconds", constraint));
        match seconds {
            ..900 => refuse("Member must have value greater than or equal to 900"),
            43_201.. => refuse("Member must have value less than or equal to 43200"),
            _ => Ok(seconds.unsigned_abs()),
        }
    }

    /// Subject of the web identity token, not verified.
    pub(super) fn claimed_subject(&self) -> Option<String> {
        Jws::parse(self.get("WebIdentityToken")?)?.text("sub").map(str::to_owned)
    }

    /// When the web identity token was issued, not verified.
    pub(super) fn claimed_issue(&self) -> Option<u64> {
        Jws::parse(self.get("WebIdentityToken")?)?.claims.get("iat")?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(body: &str) -> Query {
        let (head, ()) = http::Request::post("/").body(()).unwrap().into_parts();
        Query::parse(&head, body.as_bytes())
    }

    #[track_caller]
    fn check_session_name(name: &str, expect: Result<(), &str>) {
        let encoded: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let query = query(&format!("RoleSessionName={encoded}"));
        match (query.session_name(), expect) {
            (Ok(read), Ok(())) => assert_eq!(read, name),
            (Err(error), Err(expect)) => {
                assert_eq!(error.code(), "ValidationError");
                assert!(error.message().contains(expect), "{error}");
            }
            (read, expect) => panic!("{name:?}: {read:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn session_names_keep_to_the_charset_and_the_length() {
        check_session_name("demo.orders-0_+=,.@-", Ok(()));
        check_session_name("ab", Ok(()));
        check_session_name(&"a".repeat(64), Ok(()));
        check_session_name("a", Err("greater than or equal to 2"));
        check_session_name("", Err("greater than or equal to 2"));
        check_session_name(&"a".repeat(65), Err("less than or equal to 64"));
        check_session_name("demo/orders", Err("regular expression"));
        check_session_name("demo orders", Err("regular expression"));
        check_session_name("démo", Err("regular expression"));
    }

    #[track_caller]
    fn check_duration(body: &str, expect: Result<u64, &str>) {
        let read = query(body).duration_seconds();
        assert_eq!(read.as_ref().copied().map_err(StsError::code), expect, "{body}");
    }

    #[test]
    fn durations_keep_to_the_bounds() {
        check_duration("", Ok(3600));
        check_duration("DurationSeconds=900", Ok(900));
        check_duration("DurationSeconds=43200", Ok(43_200));
        check_duration("DurationSeconds=899", Err("ValidationError"));
        check_duration("DurationSeconds=43201", Err("ValidationError"));
        check_duration("DurationSeconds=-1", Err("ValidationError"));
        check_duration("DurationSeconds=1h", Err("MalformedInput"));
    }

    #[track_caller]
    fn check_action(body: &str, expect: Result<Action, &str>) {
        assert_eq!(query(body).action().map_err(|error| error.code()), expect, "{body}");
    }

    #[test]
    fn actions_are_of_the_one_version() {
        check_action("Action=GetCallerIdentity&Version=2011-06-15", Ok(Action::GetCallerIdentity));
        check_action("Action=GetCallerIdentity", Err("InvalidAction"));
        check_action("Action=GetCallerIdentity&Version=2010-05-08", Err("InvalidAction"));
        check_action("Action=GetSessionToken&Version=2011-06-15", Err("InvalidAction"));
        check_action("Version=2011-06-15", Err("MissingAction"));
    }

    #[test]
    fn a_read_with_a_digest_is_meant_for_s3() {
        let request = |method: Method| {
            let request = http::Request::builder().method(method).uri("/");
            request.header("x-amz-content-sha256", "abc").body(()).unwrap().into_parts().0
        };
        assert_eq!(Query::parse(&request(Method::GET), b"").action().ok(), Some(Action::ListBuckets));
        let posted = Query::parse(&request(Method::POST), b"");
        assert_eq!(posted.action().err().map(|error| error.code()), Some("MissingAction"));
    }

    #[test]
    fn fields_may_come_in_the_query_string() {
        let (head, ()) =
            http::Request::get("/?Action=AssumeRole&RoleArn=arn%3Aaws").body(()).unwrap().into_parts();
        let query = Query::parse(&head, b"");
        assert_eq!(query.get("Action"), Some("AssumeRole"));
        assert_eq!(query.role_arn(), Some("arn:aws"));
    }
}
