//! STS over HTTP as the AWS SDK for Rust, unmodified, finds it; and its answers byte by byte.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_sts::Client;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use rolecall_sandbox::sts::{Fault, Outcome, SECRET_MARK, SESSION_MARK, StsError};
use rolecall_sandbox::{
    Algorithm, Authority, Behavior, Issuer, StsConfig, StsServer, TokenClaims, TrustPolicy,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ISSUER: &str = "https://oidc.example/id/ABC";
const ROLE: &str = "arn:aws:iam::111122223333:role/team/orders";
const OTHER_ROLE: &str = "arn:aws:iam::111122223333:role/reports";

struct Fixture {
    issuer: Issuer,
    sts: StsServer,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(StsConfig::default()).await
    }

    async fn start_with(config: StsConfig) -> Self {
        let issuer = Issuer::new(ISSUER, Algorithm::Es256);
        let sts = StsServer::start(config).await.unwrap();
        sts.register_issuer(&issuer);
        sts.trust(ROLE, TrustPolicy::service_account(ISSUER, "demo", "orders"));
        Self { issuer, sts }
    }

    fn token(&self) -> String {
        self.issuer.mint(&claims())
    }

    async fn assume(&self) -> Result<Credentials, String> {
        self.assume_with(&self.token()).await
    }

    async fn assume_with(&self, token: &str) -> Result<Credentials, String> {
        self.assume_by(&client(&self.sts, None), token).await
    }

    async fn assume_by(&self, client: &Client, token: &str) -> Result<Credentials, String> {
        let call = client.assume_role_with_web_identity();
        let call = call.role_arn(ROLE).role_session_name("demo.orders-0").web_identity_token(token);
        credentials(call.send().await.map(|output| output.credentials))
    }

    /// `key=value` pairs that replace the parameters of a good request; an empty value takes one out.
    async fn post(&self, changes: &[(&str, &str)]) -> Reply {
        let token = self.token();
        let mut fields = vec![
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", ROLE),
            ("RoleSessionName", "demo.orders-0"),
            ("WebIdentityToken", &token),
        ];
        for change in changes {
            fields.retain(|(name, _)| name != &change.0);
            if !change.1.is_empty() {
                fields.push(*change);
            }
        }
        let body: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", value.replace('+', "%2B"))).collect();
        post(&self.sts, &body.join("&")).await
    }
}

fn claims() -> TokenClaims {
    TokenClaims::new("demo", "orders", "orders-0")
}

fn client(sts: &StsServer, credentials: Option<Credentials>) -> Client {
    client_that_trusts(TrustStore::default(), sts, credentials)
}

fn client_that_trusts(roots: TrustStore, sts: &StsServer, credentials: Option<Credentials>) -> Client {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(TlsContext::builder().with_trust_store(roots).build().unwrap());
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(sts.url())
        .http_client(http.build_https())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled());
    if let Some(credentials) = credentials {
        config = config.credentials_provider(credentials);
    }
    Client::from_conf(config.build())
}

/// The credentials, or AWS's code and message.
fn credentials<E, R>(
    result: Result<Option<aws_sdk_sts::types::Credentials>, SdkError<E, R>>,
) -> Result<Credentials, String>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match result {
        Ok(credentials) => {
            let it = credentials.unwrap();
            let expires_at = SystemTime::try_from(*it.expiration()).unwrap();
            Ok(Credentials::new(
                it.access_key_id(),
                it.secret_access_key(),
                Some(it.session_token().to_owned()),
                Some(expires_at),
                "sandbox",
            ))
        }
        Err(error) => Err(match error.code() {
            Some(code) => format!("{code}: {}", error.message().unwrap_or_default()),
            None => format!("{:?}", std::mem::discriminant(&error)),
        }),
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn element(&self, name: &str) -> &str {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let start = self.body.find(&open).unwrap_or_else(|| panic!("no {name} in {self:?}")) + open.len();
        &self.body[start..start + self.body[start..].find(&close).unwrap()]
    }
}

async fn post(sts: &StsServer, body: &str) -> Reply {
    let request = format!(
        "POST / HTTP/1.1\r\nHost: sts\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    exchange(sts, &request).await
}

async fn exchange(sts: &StsServer, request: &str) -> Reply {
    let mut stream = TcpStream::connect(("127.0.0.1", sts.port())).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_lowercase(), body: body.to_owned() }
}

// The exchange.

#[tokio::test]
async fn an_sdk_gets_credentials_and_is_told_who_it_is() {
    let fixture = Fixture::start().await;
    let output = client(&fixture.sts, None)
        .assume_role_with_web_identity()
        .role_arn(ROLE)
        .role_session_name("demo.orders-0")
        .web_identity_token(fixture.token())
        .duration_seconds(900)
        .send()
        .await
        .unwrap();
    let user = output.assumed_role_user().unwrap();
    assert_eq!(user.arn(), "arn:aws:sts::111122223333:assumed-role/orders/demo.orders-0");
    assert_eq!(output.subject_from_web_identity_token(), Some("system:serviceaccount:demo:orders"));
    assert_eq!(output.audience(), Some("sts.amazonaws.com"));
    assert_eq!(output.provider(), Some("arn:aws:iam::111122223333:oidc-provider/oidc.example/id/ABC"));
    let call = &fixture.sts.calls()[0];
    assert_eq!(output.request_id(), Some(call.request_id.as_str()));
    let user_id = user.assumed_role_id().to_owned();

    let credentials = credentials::<aws_sdk_sts::Error, ()>(Ok(output.credentials)).unwrap();
    assert!(credentials.access_key_id().starts_with("ASIA") && credentials.access_key_id().len() == 20);
    assert!(credentials.secret_access_key().contains(SECRET_MARK));
    assert_eq!(credentials.secret_access_key().len(), 40);
    assert!(credentials.session_token().unwrap().contains(SESSION_MARK));
    let session = fixture.sts.session(credentials.access_key_id()).unwrap();
    assert_eq!(credentials.expiry(), Some(session.expires_at));
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(seconds(session.expires_at), Duration::from_secs(seconds(session.issued_at).as_secs() + 900));

    let identity = client(&fixture.sts, Some(credentials)).get_caller_identity().send().await.unwrap();
    assert_eq!(identity.account(), Some("111122223333"));
    assert_eq!(identity.arn(), Some("arn:aws:sts::111122223333:assumed-role/orders/demo.orders-0"));
    assert_eq!(identity.user_id(), Some(user_id.as_str()));
}

#[tokio::test]
async fn an_rsa_token_is_good_too() {
    let fixture = Fixture::start().await;
    let rsa = Issuer::new("https://rsa.example", Algorithm::Rs256);
    fixture.sts.register_jwks(rsa.url(), rsa.jwks());
    fixture.sts.add_trust(ROLE, TrustPolicy::service_account(rsa.url(), "demo", "orders"));
    fixture.assume_with(&rsa.mint(&claims())).await.unwrap();
    fixture.assume().await.unwrap();
}

#[tokio::test]
async fn the_answer_is_awss_document() {
    let fixture = Fixture::start().await;
    let reply = fixture.post(&[]).await;
    let session = &fixture.sts.issued()[0];
    let call = &fixture.sts.calls()[0];
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("\r\ncontent-type: text/xml\r\n"), "{}", reply.head);
    assert!(reply.head.contains(&format!("\r\nx-amzn-requestid: {}\r\n", call.request_id)), "{}", reply.head);
    assert_eq!(
        reply.body,
        format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult>\
             <SubjectFromWebIdentityToken>system:serviceaccount:demo:orders</SubjectFromWebIdentityToken>\
             <Audience>sts.amazonaws.com</Audience>\
             <AssumedRoleUser><AssumedRoleId>{}</AssumedRoleId><Arn>{}</Arn></AssumedRoleUser>\
             <Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
             <SessionToken>{}</SessionToken><Expiration>{}</Expiration></Credentials>\
             <Provider>arn:aws:iam::111122223333:oidc-provider/oidc.example/id/ABC</Provider>\
             </AssumeRoleWithWebIdentityResult>\
             <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata>\
             </AssumeRoleWithWebIdentityResponse>\n",
            session.assumed_role_id,
            session.assumed_role_arn,
            session.access_key_id,
            session.secret_access_key,
            session.session_token,
            reply.element("Expiration"),
            call.request_id,
        )
    );
    let expiration = reply.element("Expiration");
    assert_eq!(expiration.len(), "2026-11-20T23:12:56Z".len());
    assert!(expiration.ends_with('Z') && !expiration.contains('.'), "{expiration}");
}

#[tokio::test]
async fn a_get_with_everything_in_the_query_string_is_answered_as_well() {
    let fixture = Fixture::start().await;
    let request = format!(
        "GET /?Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=ab\
         &WebIdentityToken={} HTTP/1.1\r\nHost: sts\r\nConnection: close\r\n\r\n",
        fixture.token()
    );
    assert_eq!(exchange(&fixture.sts, &request).await.status, 200);
}

// Refusals.

#[track_caller]
fn check_refusal(reply: &Reply, status: u16, code: &str, message: &str) {
    assert_eq!((reply.status, reply.element("Code")), (status, code), "{reply:?}");
    assert!(reply.element("Message").contains(message), "{reply:?}");
    assert_eq!(reply.element("Type"), if status < 500 { "Sender" } else { "Receiver" });
    assert!(reply.body.starts_with("<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">"));
    assert!(reply.head.contains(&format!("x-amzn-requestid: {}", reply.element("RequestId"))));
}

#[tokio::test]
async fn bad_parameters_are_validation_errors() {
    let fixture = Fixture::start().await;
    for (changes, code, message) in [
        (
            ("RoleArn", ""),
            "ValidationError",
            "'roleArn' failed to satisfy constraint: Member must not be null",
        ),
        (("RoleSessionName", ""), "ValidationError", "'roleSessionName'"),
        (("WebIdentityToken", ""), "ValidationError", "'webIdentityToken'"),
        (("RoleArn", "arn:aws:iam::1:role/x"), "ValidationError", "is invalid"),
        (("RoleArn", "orders"), "ValidationError", "length greater than or equal to 20"),
        (("RoleSessionName", "demo/orders"), "ValidationError", "regular expression"),
        (("DurationSeconds", "899"), "ValidationError", "greater than or equal to 900"),
        (("DurationSeconds", "43201"), "ValidationError", "less than or equal to 43200"),
        (("Action", ""), "MissingAction", ""),
        (("Action", "AssumeRoleWithSAML"), "InvalidAction", "AssumeRoleWithSAML for version 2011-06-15"),
        (("Version", ""), "InvalidAction", "NO_VERSION_SPECIFIED"),
    ] {
        check_refusal(&fixture.post(&[changes]).await, 400, code, message);
    }
}

#[tokio::test]
async fn bad_tokens_are_told_apart() {
    let fixture = Fixture::start().await;
    let stranger = Issuer::new(ISSUER, Algorithm::Es256);
    for (token, code, message) in [
        ("not-a-token".to_owned(), "InvalidIdentityToken", "not a valid JWT"),
        (
            fixture.issuer.mint(&claims().issuer("https://evil.example")),
            "InvalidIdentityToken",
            "No OpenIDConnect provider found in your account for https://evil.example",
        ),
        (
            stranger.mint(&claims()),
            "InvalidIdentityToken",
            "Couldn't retrieve verification key from your identity provider,  please reference \
             AssumeRoleWithWebIdentity documentation for requirements",
        ),
        (
            fixture.issuer.mint(&claims().expired()),
            "ExpiredTokenException",
            "Token expired: current date/time",
        ),
        (
            fixture.issuer.mint(&claims().audiences(&["https://kubernetes.default.svc"])),
            "InvalidIdentityToken",
            "Incorrect token audience",
        ),
        (
            fixture.issuer.mint(&claims().issued_at(SystemTime::now() + Duration::from_secs(3600))),
            "InvalidIdentityToken",
            "not valid yet",
        ),
    ] {
        check_refusal(&fixture.post(&[("WebIdentityToken", &token)]).await, 400, code, message);
    }
}

#[tokio::test]
async fn an_unknown_role_and_a_denied_one_get_the_same_answer() {
    let fixture = Fixture::start().await;
    fixture.sts.trust(OTHER_ROLE, TrustPolicy::service_account(ISSUER, "demo", "reports"));
    for role in [OTHER_ROLE, "arn:aws:iam::111122223333:role/unknown"] {
        let reply = fixture.post(&[("RoleArn", role)]).await;
        check_refusal(&reply, 403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    }
    fixture.sts.remove_role(ROLE);
    check_refusal(&fixture.post(&[]).await, 403, "AccessDenied", "");
}

#[tokio::test]
async fn the_roles_own_maximum_is_told_only_to_those_it_trusts() {
    let fixture = Fixture::start().await;
    let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
    let reply = fixture.post(&[("DurationSeconds", "3601")]).await;
    check_refusal(&reply, 400, "ValidationError", message);
    fixture.sts.set_max_session(ROLE, Duration::from_secs(43_200));
    assert_eq!(fixture.post(&[("DurationSeconds", "43200")]).await.status, 200);
    fixture.sts.set_max_session(ROLE, Duration::from_secs(3600));
    fixture.sts.trust(ROLE, TrustPolicy::nobody());
    check_refusal(&fixture.post(&[("DurationSeconds", "3601")]).await, 403, "AccessDenied", "");
}

#[tokio::test]
async fn an_issuer_out_of_reach_is_an_error_of_its_own() {
    let fixture = Fixture::start().await;
    fixture.sts.set_issuer_reachable(ISSUER, false);
    check_refusal(&fixture.post(&[]).await, 400, "IDPCommunicationError", "");
    fixture.sts.set_issuer_reachable(ISSUER, true);
    assert_eq!(fixture.post(&[]).await.status, 200);
}

#[tokio::test]
async fn a_rotated_issuer_key_is_followed_and_a_retired_one_is_not() {
    let fixture = Fixture::start().await;
    let old = fixture.token();
    fixture.issuer.rotate_key(Algorithm::Es256);
    fixture.assume_with(&old).await.unwrap();
    fixture.assume().await.unwrap();
    fixture.issuer.retire_old_keys();
    assert!(fixture.assume_with(&old).await.unwrap_err().starts_with("InvalidIdentityToken"));
}

#[tokio::test]
async fn audiences_are_those_registered() {
    let fixture = Fixture::start().await;
    fixture.sts.set_audiences(ISSUER, &["my-audience"]);
    assert!(fixture.assume().await.unwrap_err().contains("Incorrect token audience"));
    fixture.sts.trust(ROLE, TrustPolicy::federated(ISSUER).string_like("aud", &["my-*"]));
    let token = fixture.issuer.mint(&claims().audiences(&["my-audience"]));
    fixture.assume_with(&token).await.unwrap();
}

#[tokio::test]
async fn a_request_without_end_is_cut_off() {
    let fixture = Fixture::start().await;
    let reply = post(&fixture.sts, &"a".repeat(300 * 1024)).await;
    assert_eq!(reply.status, 413);
    assert_eq!(fixture.sts.call_count(), 0);
}

// Signatures.

async fn caller_identity(sts: &StsServer, credentials: Credentials) -> Result<String, String> {
    match client(sts, Some(credentials)).get_caller_identity().send().await {
        Ok(identity) => Ok(identity.arn().unwrap().to_owned()),
        Err(error) => Err(error.code().unwrap_or("none").to_owned()),
    }
}

#[tokio::test]
async fn only_the_holder_of_a_session_is_its_caller() {
    let fixture = Fixture::start().await;
    let good = fixture.assume().await.unwrap();
    let other = fixture.assume().await.unwrap();
    let forged =
        |id: &str, secret: &str, token: &str| Credentials::new(id, secret, Some(token.to_owned()), None, "t");
    let (id, secret, token) = (good.access_key_id(), good.secret_access_key(), good.session_token().unwrap());

    assert!(caller_identity(&fixture.sts, good.clone()).await.is_ok());
    for (credentials, code) in [
        (forged(id, other.secret_access_key(), token), "SignatureDoesNotMatch"),
        (forged(id, secret, other.session_token().unwrap()), "InvalidClientTokenId"),
        (forged("ASIAAAAAAAAAAAAAAAAA", secret, token), "InvalidClientTokenId"),
        (Credentials::new(id, secret, None, None, "t"), "InvalidClientTokenId"),
    ] {
        assert_eq!(caller_identity(&fixture.sts, credentials).await, Err(code.to_owned()));
    }
    let unsigned = post(&fixture.sts, "Action=GetCallerIdentity&Version=2011-06-15").await;
    check_refusal(&unsigned, 403, "MissingAuthenticationToken", "");
}

#[tokio::test]
async fn an_expired_session_is_nobody() {
    let fixture = Fixture::start().await;
    fixture.sts.set_session_seconds(Some(0));
    let credentials = fixture.assume().await.unwrap();
    let no_expiry = Credentials::new(
        credentials.access_key_id(),
        credentials.secret_access_key(),
        credentials.session_token().map(str::to_owned),
        None,
        "t",
    );
    assert_eq!(caller_identity(&fixture.sts, no_expiry).await, Err("ExpiredToken".to_owned()));
}

#[tokio::test]
async fn the_sessions_of_one_role_may_be_shorter_than_those_of_others() {
    let fixture = Fixture::start().await;
    let seconds = |fixture: &Fixture| {
        let session = fixture.sts.issued().pop().unwrap();
        session.expires_at.duration_since(session.issued_at).unwrap().as_secs()
    };
    for (of_role, of_all, expect) in
        [(Some(90), Some(200), 90), (None, Some(200), 200), (Some(90), None, 90), (None, None, 3600)]
    {
        fixture.sts.set_session_seconds(of_all);
        fixture.sts.set_role_session_seconds(ROLE, of_role);
        fixture.assume().await.unwrap();
        assert!(expect - seconds(&fixture) <= 1, "{of_role:?} {of_all:?}");
    }
}

#[tokio::test]
async fn a_session_assumes_another_role_that_trusts_its_own() {
    let fixture = Fixture::start().await;
    let sts = &fixture.sts;
    let caller = client(sts, Some(fixture.assume().await.unwrap()));
    let call = || caller.assume_role().role_arn(OTHER_ROLE).role_session_name("chained");

    let denied = credentials(call().send().await.map(|output| output.credentials)).unwrap_err();
    assert_eq!(
        denied,
        "AccessDenied: User: arn:aws:sts::111122223333:assumed-role/orders/demo.orders-0 is not authorized to \
         perform: sts:AssumeRole on resource: arn:aws:iam::111122223333:role/reports"
    );
    sts.trust(OTHER_ROLE, TrustPolicy::role(ROLE));
    sts.set_max_session(OTHER_ROLE, Duration::from_secs(43_200));
    let long = credentials(call().duration_seconds(3601).send().await.map(|output| output.credentials));
    assert!(long.unwrap_err().contains("role chaining"));
    let chained = credentials(call().send().await.map(|output| output.credentials)).unwrap();
    assert_eq!(
        caller_identity(sts, chained).await.unwrap(),
        "arn:aws:sts::111122223333:assumed-role/reports/chained"
    );
}

// Faults.

#[tokio::test]
async fn errors_on_demand_have_awss_codes_and_statuses() {
    let fixture = Fixture::start().await;
    fixture.sts.script([
        Behavior::throttled(),
        Behavior::unavailable(),
        Behavior::internal_failure(),
        Behavior::denied(),
        Behavior::error(StsError::idp_rejected_claim()),
    ]);
    check_refusal(&fixture.post(&[]).await, 400, "Throttling", "Rate exceeded");
    check_refusal(&fixture.post(&[]).await, 503, "ServiceUnavailable", "");
    check_refusal(&fixture.post(&[]).await, 500, "InternalFailure", "");
    check_refusal(&fixture.post(&[]).await, 403, "AccessDenied", "Not authorized");
    check_refusal(&fixture.post(&[]).await, 403, "IDPRejectedClaim", "");
    assert_eq!(fixture.post(&[]).await.status, 200);
}

#[tokio::test]
async fn a_fault_may_concern_one_role_alone() {
    let fixture = Fixture::start().await;
    fixture.sts.trust(OTHER_ROLE, TrustPolicy::service_account(ISSUER, "demo", "orders"));
    fixture.sts.set_role_behavior(ROLE, Some(Behavior::throttled()));
    assert_eq!(fixture.post(&[]).await.status, 400);
    assert_eq!(fixture.post(&[("RoleArn", OTHER_ROLE)]).await.status, 200);
    fixture.sts.behave();
    assert_eq!(fixture.post(&[]).await.status, 200);
}

#[tokio::test]
async fn resets_closes_and_garbage_are_no_answers_to_an_sdk() {
    let fixture = Fixture::start().await;
    fixture.sts.fail_next(2, Behavior::reset());
    fixture.sts.script([Behavior::close(), Behavior::garbage()]);
    for _ in 0..4 {
        assert!(fixture.assume().await.is_err());
    }
    fixture.assume().await.unwrap();
    let outcomes: Vec<String> = fixture.sts.calls().iter().map(|call| call.outcome.to_string()).collect();
    assert_eq!(outcomes[..4], ["hung up", "hung up", "hung up", "garbled"]);
    assert!(outcomes[4].starts_with("granted ASIA"), "{outcomes:?}");
}

#[tokio::test]
async fn latency_delays_the_true_answer_of_the_request_it_meets() {
    let fixture = Fixture::start().await;
    fixture.sts.script([Behavior::slow(Duration::from_hours(1)), Behavior::slow(Duration::from_millis(1))]);
    let call = client(&fixture.sts, None).assume_role_with_web_identity();
    let call = call.role_arn(ROLE).role_session_name("slow").web_identity_token(fixture.token());
    let slow = tokio::spawn(call.send());
    fixture.sts.wait_for_requests(1).await;
    fixture.assume().await.unwrap();
    assert_eq!(fixture.sts.calls()[0].outcome, Outcome::Pending);
    slow.abort();
}

#[tokio::test]
async fn requests_queue_at_a_gate_and_pass_in_order() {
    let fixture = Fixture::start().await;
    let gate = fixture.sts.hold();
    let assume = |name: &'static str| {
        let call = client(&fixture.sts, None).assume_role_with_web_identity();
        let call = call.role_arn(ROLE).role_session_name(name).web_identity_token(fixture.token());
        tokio::spawn(async move { call.send().await.map(drop).map_err(drop) })
    };
    let first = assume("first");
    fixture.sts.wait_for_requests(1).await;
    let second = assume("second");
    fixture.sts.wait_for_requests(2).await;
    let third = assume("third");
    fixture.sts.wait_for_requests(3).await;
    assert!(fixture.sts.calls().iter().all(|call| call.outcome == Outcome::Pending));
    assert_eq!(fixture.sts.peak_in_flight(), 3);

    gate.release_one();
    first.await.unwrap().unwrap();
    let calls = fixture.sts.calls();
    assert!(calls[0].outcome.is_granted());
    assert_eq!((&calls[1].outcome, &calls[2].outcome), (&Outcome::Pending, &Outcome::Pending));
    let names: Vec<_> = calls.iter().map(|call| call.session_name.as_deref().unwrap()).collect();
    assert_eq!(names, ["first", "second", "third"]);

    // What the policy says when a request is let through decides.
    fixture.sts.trust(ROLE, TrustPolicy::nobody());
    gate.release_all();
    assert_eq!((second.await.unwrap(), third.await.unwrap()), (Err(()), Err(())));
    fixture.sts.trust(ROLE, TrustPolicy::federated(ISSUER));
    fixture.assume().await.unwrap();
}

#[tokio::test]
async fn a_dropped_gate_is_open() {
    let fixture = Fixture::start().await;
    drop(fixture.sts.hold());
    fixture.assume().await.unwrap();
}

#[tokio::test]
async fn a_hanging_request_goes_on_when_it_is_released() {
    let fixture = Fixture::start().await;
    fixture.sts.set_behavior(Behavior { fault: Some(Fault::Hang), ..Behavior::normal() });
    let call = client(&fixture.sts, None).assume_role_with_web_identity();
    let call = call.role_arn(ROLE).role_session_name("hung").web_identity_token(fixture.token());
    let hung = tokio::spawn(call.send());
    fixture.sts.wait_for_requests(1).await;
    fixture.sts.release_hung();
    hung.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_whose_client_hangs_up_is_recorded_as_abandoned() {
    let fixture = Fixture::start().await;
    fixture.sts.set_behavior(Behavior::hang());
    let call = client(&fixture.sts, None).assume_role_with_web_identity();
    let call = call.role_arn(ROLE).role_session_name("gone").web_identity_token(fixture.token());
    let gone = tokio::spawn(call.send());
    fixture.sts.wait_for_requests(1).await;
    gone.abort();
    fixture.sts.wait_until(|calls| calls[0].outcome == Outcome::Abandoned).await;
    assert!(fixture.sts.issued().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_breaks_and_refuses_connections_and_ends() {
    let fixture = Fixture::start().await;
    fixture.sts.script([Behavior::hang()]);
    let call = client(&fixture.sts, None).assume_role_with_web_identity();
    let call = call.role_arn(ROLE).role_session_name("broken").web_identity_token(fixture.token());
    let broken = tokio::spawn(call.send());
    fixture.sts.wait_for_requests(1).await;

    fixture.sts.set_outage(true).await.unwrap();
    assert_eq!(fixture.sts.calls()[0].outcome, Outcome::Abandoned);
    assert!(broken.await.unwrap().is_err());
    assert!(fixture.assume().await.is_err());
    fixture.sts.set_outage(false).await.unwrap();
    fixture.assume().await.unwrap();
    assert_eq!(fixture.sts.call_count(), 2);
}

// The record.

#[tokio::test]
async fn a_call_is_recorded_as_it_came() {
    let fixture = Fixture::start().await;
    fixture.post(&[("DurationSeconds", "1200")]).await;
    fixture.post(&[("RoleArn", OTHER_ROLE)]).await;
    let calls = fixture.sts.calls();
    let first = &calls[0];
    assert_eq!(first.action, "AssumeRoleWithWebIdentity");
    assert_eq!(first.role_arn.as_deref(), Some(ROLE));
    assert_eq!(first.session_name.as_deref(), Some("demo.orders-0"));
    assert_eq!(first.duration, Some(Duration::from_secs(1200)));
    assert_eq!(first.subject.as_deref(), Some("system:serviceaccount:demo:orders"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(first.token_issued_at.is_some_and(|at| at.abs_diff(now) < 60), "{:?}", first.token_issued_at);
    let session = &fixture.sts.issued()[0];
    assert_eq!(first.outcome, Outcome::Granted { access_key_id: session.access_key_id.clone() });
    assert_eq!(calls[1].outcome, Outcome::Refused { code: "AccessDenied" });
    assert!(first.at <= calls[1].at);

    let found = fixture.sts.session(&session.access_key_id).unwrap();
    assert_eq!((found.role_arn.as_str(), found.session_name.as_str()), (ROLE, "demo.orders-0"));
    assert!(fixture.sts.session("ASIAAAAAAAAAAAAAAAAA").is_none());
    let debug = format!("{found:?} {calls:?}");
    assert!(!debug.contains(SECRET_MARK) && !debug.contains(SESSION_MARK), "{debug}");
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_gets_credentials_over_tls() {
    let authority = Authority::new();
    let config = StsConfig { authority: Some(authority.clone()), ..StsConfig::default() };
    let fixture = Fixture::start_with(config).await;
    let roots = TrustStore::empty().with_pem_certificate(authority.pem());
    let client = client_that_trusts(roots, &fixture.sts, None);
    fixture.assume_by(&client, &fixture.token()).await.unwrap();

    assert!(fixture.assume().await.is_err(), "the machine trusts it too");
    assert_eq!(fixture.sts.call_count(), 1);
}
