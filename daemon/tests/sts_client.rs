//! The client of STS against a server on loopback that speaks its wire format.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rolecall_contract::SessionDuration;
use rolecall_daemon::{
    credentials::{
        CredentialKey, Issued, SessionNameTemplate, SessionNameValues, SessionRequest, Sts, StsError, Urgency,
    },
    identity::PodIdentity,
    sts::{ProxySettings, StsClient, StsConfig, StsConfigError},
    token::Token,
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};
use url::Url;

const TOKEN: &str =
    "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsic3RzLmFtYXpvbmF3cy5jb20iXX0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";

/// A request as the server saw it.
#[derive(Clone)]
struct Received {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A server on loopback that answers everything with one answer and keeps what it was asked.
struct Server {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    accepting: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    /// Answers with `status` and `body`; not at all where there is no status.
    async fn answering(status: Option<u16>, body: impl Into<Bytes>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (body, keep) = (body.into(), received.clone());
        let serve = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (body, keep) = (body.clone(), keep.clone());
                let service = service_fn(move |request| answer(request, status, body.clone(), keep.clone()));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        };
        Self { port, received, accepting: spawn(serve) }
    }

    fn url(&self) -> Url {
        format!("http://127.0.0.1:{}", self.port).parse().unwrap()
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    status: Option<u16>,
    body: Bytes,
    keep: Arc<Mutex<Vec<Received>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, incoming) = request.into_parts();
    let body_received = incoming.collect().await.unwrap().to_bytes();
    keep.lock().unwrap().push(Received {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        body: body_received,
    });
    match status {
        None => std::future::pending().await,
        Some(status) => Ok(Response::builder()
            .status(status)
            .header("content-type", "text/xml")
            .header("x-amzn-requestid", "f2c1a0d8-0001")
            .body(Full::new(body))
            .unwrap()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the task is aborted with its server")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

fn request() -> SessionRequest {
    let pod = PodIdentity {
        uid: "0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11".parse().unwrap(),
        namespace: "shop".into(),
        name: "orders-0".into(),
        service_account: "orders".into(),
    };
    let values = SessionNameValues {
        cluster: "",
        namespace: "shop",
        pod: "orders-0",
        service_account: "orders",
        node: "",
    };
    let key = CredentialKey {
        pod: pod.uid.clone(),
        role: "arn:aws:iam::111122223333:role/team/orders".parse().unwrap(),
        session_name: SessionNameTemplate::default().render(&values),
        duration: SessionDuration::from_seconds(3600).unwrap(),
    };
    SessionRequest { key, pod, volumes: [].into(), urgency: Urgency::LEAST }
}

fn config(endpoint: Option<Url>) -> StsConfig {
    StsConfig { endpoint, ..StsConfig::regional("eu-west-1") }
}

async fn ask(config: StsConfig) -> Result<Issued, StsError> {
    log();
    StsClient::new(config).unwrap().assume_role_with_web_identity(&request(), &Token::new(TOKEN)).await
}

async fn ask_server(status: u16, body: impl Into<Bytes>) -> Result<Issued, StsError> {
    let server = Server::answering(Some(status), body).await;
    let result = ask(config(Some(server.url()))).await;
    assert_eq!(server.received().len(), 1, "the client makes one attempt");
    result
}

fn success() -> String {
    r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>system:serviceaccount:shop:orders</SubjectFromWebIdentityToken>
    <Audience>sts.amazonaws.com</Audience>
    <AssumedRoleUser>
      <Arn>arn:aws:sts::111122223333:assumed-role/orders/shop.orders-0</Arn>
      <AssumedRoleId>AROAEXAMPLE:shop.orders-0</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <SessionToken>session/token+1==</SessionToken>
      <SecretAccessKey>secret/key</SecretAccessKey>
      <Expiration>2026-11-21T15:00:00Z</Expiration>
      <AccessKeyId>ASIAEXAMPLE</AccessKeyId>
    </Credentials>
    <Provider>arn:aws:iam::111122223333:oidc-provider/oidc.example.com</Provider>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata><RequestId>f2c1a0d8-0001</RequestId></ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>"#
        .to_owned()
}

fn failure(code: &str, message: &str) -> String {
    format!(
        r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>
  <RequestId>f2c1a0d8-0001</RequestId>
</ErrorResponse>"#
    )
}

/// Checks what an error document means: its class, and whether it carries AWS's code and request id.
#[track_caller]
fn check(result: Result<Issued, StsError>, class: &str, code: &str) {
    let Err(error) = result else { panic!("{code} is no success") };
    let (is, has) = match &error {
        StsError::Denied { code, request_id, .. } => ("denied", Some((code, request_id))),
        StsError::TokenRefused { code, request_id, .. } => ("token refused", Some((code, request_id))),
        StsError::Throttled { code, request_id, .. } => ("throttled", Some((code, request_id))),
        StsError::Unreachable { .. } => ("unreachable", None),
    };
    assert_eq!(is, class, "{code}: {error}");
    match has {
        Some((has, request_id)) => {
            assert_eq!(&**has, code);
            assert_eq!(request_id.as_deref(), Some("f2c1a0d8-0001"));
        }
        None => assert!(error.to_string().contains(code), "{error}"),
    }
}

#[track_caller]
fn cause(result: Result<Issued, StsError>) -> String {
    match result {
        Err(StsError::Unreachable { cause }) => cause.to_string(),
        Err(other) => panic!("it is not out of reach: {other}"),
        Ok(_) => panic!("it is no success"),
    }
}

#[tokio::test]
async fn the_request_is_the_one_that_sts_documents_and_is_not_signed() {
    let server = Server::answering(Some(200), success()).await;
    assert!(ask(config(Some(server.url()))).await.is_ok());
    let [received] = &server.received()[..] else { panic!("the client makes one attempt") };
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/"));
    assert_eq!(received.headers["content-type"], "application/x-www-form-urlencoded");
    assert!(!received.headers.contains_key("authorization"));
    let agent = received.headers["x-amz-user-agent"].to_str().unwrap().to_owned();
    assert!(agent.contains("app/rolecall"), "{agent}");
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&received.body).into_owned().collect();
    let expect = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", "arn:aws:iam::111122223333:role/team/orders"),
        ("RoleSessionName", "shop.orders-0"),
        ("WebIdentityToken", TOKEN),
        ("DurationSeconds", "3600"),
    ];
    assert_eq!(form, expect.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn the_answer_is_read_with_the_id_of_the_exchange() {
    let issued = ask_server(200, success()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(issued.access_key_id, "ASIAEXAMPLE");
    assert_eq!(*issued.secret_access_key, "secret/key");
    assert_eq!(*issued.session_token, "session/token+1==");
    assert_eq!(issued.expires_at, UNIX_EPOCH + Duration::from_secs(1_795_273_200));
    assert_eq!(
        issued.assumed_role_arn.as_deref(),
        Some("arn:aws:sts::111122223333:assumed-role/orders/shop.orders-0")
    );
    assert_eq!(issued.request_id.as_deref(), Some("f2c1a0d8-0001"));
}

#[tokio::test]
async fn every_error_of_sts_has_its_class() {
    for (status, code, class) in [
        (403, "AccessDenied", "denied"),
        (400, "MalformedPolicyDocument", "denied"),
        (400, "PackedPolicyTooLarge", "denied"),
        (403, "RegionDisabledException", "denied"),
        (400, "ValidationError", "denied"),
        (400, "NoSuchThingYet", "denied"),
        (400, "InvalidIdentityToken", "token refused"),
        (400, "ExpiredTokenException", "token refused"),
        (403, "IDPRejectedClaim", "token refused"),
        (400, "IDPCommunicationError", "unreachable"),
        (400, "Throttling", "throttled"),
        (400, "ThrottlingException", "throttled"),
        (400, "ThrottledException", "throttled"),
        (400, "RequestLimitExceeded", "throttled"),
        (400, "TooManyRequestsException", "throttled"),
        (429, "AnythingElse", "throttled"),
        (503, "Throttling", "throttled"),
        (500, "InternalFailure", "unreachable"),
        (503, "ServiceUnavailable", "unreachable"),
        (503, "AccessDenied", "unreachable"),
        (400, "RequestTimeout", "unreachable"),
    ] {
        check(ask_server(status, failure(code, "a message")).await, class, code);
    }
}

#[tokio::test]
async fn a_key_that_sts_could_not_fetch_is_no_fault_of_the_token() {
    let message = "Couldn't retrieve verification key from your identity provider, please reference \
                   AssumeRoleWithWebIdentity documentation for requirements";
    check(
        ask_server(400, failure("InvalidIdentityToken", message)).await,
        "unreachable",
        "InvalidIdentityToken",
    );
}

#[tokio::test]
async fn the_message_is_passed_on_without_tokens_control_characters_and_length() {
    let signature = TOKEN.rsplit('.').next().unwrap();
    let long = format!(
        "Not&#10;authorized for {TOKEN} or x{signature}y or {} end {}",
        "w".repeat(200),
        "and so on ".repeat(90)
    );
    let Err(StsError::Denied { message, .. }) = ask_server(403, failure("AccessDenied", &long)).await else {
        panic!("it is denied")
    };
    assert!(message.starts_with("Not authorized for … or … or … end and so on and"), "{message}");
    assert!(message.len() <= 512, "{}", message.len());
}

#[tokio::test]
async fn what_is_no_answer_of_sts_is_unreachable() {
    for (status, body, expect) in [
        (200, "it works!", "cannot read the answer"),
        (
            200,
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult/></AssumeRoleWithWebIdentityResponse>",
            "no credentials",
        ),
        (403, "<html>blocked by the proxy</html>", "status 403 without an error document"),
        (407, "", "status 407 without an error document"),
        (502, "<html>bad gateway</html>", "status 502"),
    ] {
        let cause = cause(ask_server(status, body).await);
        assert!(cause.contains(expect), "{status}: {cause}");
    }
    let Err(StsError::Throttled { .. }) = ask_server(429, "slow down").await else {
        panic!("429 is throttling")
    };
}

#[tokio::test]
async fn a_hang_is_cut_at_the_attempts_timeout() {
    let server = Server::answering(None, "").await;
    let config = StsConfig { attempt_timeout: Duration::from_millis(300), ..config(Some(server.url())) };
    assert_eq!(cause(ask(config).await), "timed out");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_told_in_few_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(cause(ask(config(Some(url.parse().unwrap()))).await), "connection refused");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_told() {
    // No name server is asked for a label of 64 characters: it is too long to be one.
    let url = format!("http://{}.invalid", "n".repeat(64));
    let config = StsConfig { connect_timeout: Duration::from_secs(10), ..config(Some(url.parse().unwrap())) };
    let cause = cause(ask(config).await);
    assert!(cause.starts_with("cannot resolve the endpoint's name"), "{cause}");
}

#[tokio::test]
async fn a_connection_that_never_comes_about_is_cut_at_the_connect_timeout() {
    // It accepts and says nothing, so the handshake of TLS never ends.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let config =
        StsConfig { connect_timeout: Duration::from_millis(300), ..config(Some(url.parse().unwrap())) };
    assert_eq!(cause(ask(config).await), "timed out while connecting");
}

#[tokio::test]
async fn a_plain_endpoint_is_asked_through_the_http_proxy() {
    let proxy = Server::answering(Some(200), success()).await;
    let settings = ProxySettings {
        http: Some(format!("http://user:word@127.0.0.1:{}", proxy.port)),
        https: Some("http://127.0.0.1:1".to_owned()),
        no_proxy: None,
    };
    let endpoint = "http://sts.example.invalid".parse().unwrap();
    assert!(ask(StsConfig { proxy: settings, ..config(Some(endpoint)) }).await.is_ok());
    let [received] = &proxy.received()[..] else { panic!("the proxy was asked once") };
    assert_eq!(received.target, "http://sts.example.invalid/");
    assert_eq!(received.headers["proxy-authorization"], "Basic dXNlcjp3b3Jk");
}

#[tokio::test]
async fn what_no_proxy_names_is_asked_directly() {
    let server = Server::answering(Some(200), success()).await;
    for no_proxy in ["127.0.0.1", "example.com,127.0.0.0/8", "*"] {
        let settings = ProxySettings {
            http: Some("http://127.0.0.1:1".to_owned()),
            https: None,
            no_proxy: Some(no_proxy.to_owned()),
        };
        let result = ask(StsConfig { proxy: settings, ..config(Some(server.url())) }).await;
        assert!(result.is_ok(), "{no_proxy}");
    }
}

/// The host and port that the proxy is asked for a tunnel to.
async fn tunnel_to(change: impl FnOnce(&mut StsConfig)) -> String {
    let proxy = Server::answering(Some(502), "").await;
    let mut config = config(None);
    // Without a scheme, as many write it.
    config.proxy.https = Some(format!("127.0.0.1:{}", proxy.port));
    change(&mut config);
    cause(ask(config).await);
    let [received] = &proxy.received()[..] else { panic!("the proxy was asked once") };
    assert_eq!(received.method, Method::CONNECT);
    assert!(received.body.is_empty(), "the token is not for the proxy");
    received.target.clone()
}

#[tokio::test]
async fn the_endpoint_is_the_regions_own_through_the_https_proxy() {
    assert_eq!(tunnel_to(|_| {}).await, "sts.eu-west-1.amazonaws.com:443");
    assert_eq!(tunnel_to(|c| c.region = "us-east-1".to_owned()).await, "sts.us-east-1.amazonaws.com:443");
    assert_eq!(
        tunnel_to(|c| c.region = "cn-north-1".to_owned()).await,
        "sts.cn-north-1.amazonaws.com.cn:443"
    );
    assert_eq!(
        tunnel_to(|c| c.region = "us-gov-west-1".to_owned()).await,
        "sts.us-gov-west-1.amazonaws.com:443"
    );
    let fips = tunnel_to(|c| (c.region, c.fips) = ("us-east-2".to_owned(), true));
    assert_eq!(fips.await, "sts-fips.us-east-2.amazonaws.com:443");
    assert_eq!(tunnel_to(|c| c.dual_stack = true).await, "sts.eu-west-1.api.aws:443");
}

#[test]
fn a_setting_that_no_client_can_be_made_with_is_refused() {
    let proxy = |url: &str| ProxySettings { https: Some(url.to_owned()), ..ProxySettings::default() };
    for url in ["socks5://127.0.0.1:1080", "http://", "http://a b"] {
        let error = StsClient::new(StsConfig { proxy: proxy(url), ..config(None) }).err();
        assert_eq!(error, Some(StsConfigError::Proxy), "{url}");
    }
    for url in ["ftp://sts.example.com", "unix:/run/sts", "data:,x"] {
        let error = StsClient::new(config(Some(url.parse().unwrap()))).err();
        assert_eq!(error, Some(StsConfigError::Endpoint), "{url}");
    }
    assert!(StsClient::new(StsConfig { proxy: proxy(" "), ..config(None) }).is_ok(), "empty is none");
}

#[tokio::test]
async fn not_even_the_sdks_own_trace_has_a_secret_in_it() {
    assert!(ask_server(200, success()).await.is_ok());
    assert!(ask_server(403, failure("AccessDenied", "no")).await.is_err());
    assert!(ask_server(200, "<html>").await.is_err());
    let text = String::from_utf8(log().0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("transmitting request"), "the trace is on");
    for secret in [TOKEN, "secret/key", "session/token", "ASIAEXAMPLE"] {
        let as_bytes = format!("{:?}", secret.as_bytes());
        let as_bytes = as_bytes.trim_matches(['[', ']']);
        let line = text.lines().find(|line| line.contains(secret) || line.contains(as_bytes));
        assert_eq!(line, None, "{secret}");
    }
}

/// Everything that is logged while these tests run, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of this process: the SDK works on threads of its own, too.
fn log() -> &'static Log {
    static LOG: LazyLock<Log> = LazyLock::new(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    });
    &LOG
}
