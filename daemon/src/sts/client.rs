//! The client of STS: one unsigned attempt at a time, with nothing taken from the environment.

use std::time::{Duration, SystemTime};

use aws_sdk_sts::{
    Client,
    config::{
        AppName, BehaviorVersion, Config, Region, StalledStreamProtectionConfig, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityOutput,
};
use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{self, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_types::request_id::RequestId;
use url::Url;
use zeroize::Zeroizing;

use super::classify::classify;
use crate::{
    credentials::{Issued, SessionRequest, Sts, StsError},
    token::Token,
};

/// How long an idle connection is kept; AWS closes its end not much later.
const KEEP_IDLE: Duration = Duration::from_secs(15);

/// Where STS is and how to reach it.
///
/// It has no `Debug`: a proxy's URL may carry a password.
#[derive(Clone)]
pub struct StsConfig {
    /// The region whose STS is asked.
    pub region: String,
    /// Another endpoint than AWS's of the region.
    pub endpoint: Option<Url>,
    /// AWS's FIPS endpoint of the region.
    pub fips: bool,
    /// AWS's endpoint with IPv6.
    pub dual_stack: bool,
    /// Longest time to resolve, connect and shake hands.
    pub connect_timeout: Duration,
    /// Longest time for one attempt. A slow STS is not a dead one, so this is generous.
    pub attempt_timeout: Duration,
    pub proxy: ProxySettings,
}

/// The proxies of the environment, as whoever reads the environment found them.
#[derive(Clone, Default)]
pub struct ProxySettings {
    /// `HTTPS_PROXY`: for endpoints with `https`, as all of AWS's.
    pub https: Option<String>,
    /// `HTTP_PROXY`: for endpoints with `http`.
    pub http: Option<String>,
    /// `NO_PROXY`: hosts, domains, addresses and CIDR ranges that are asked directly.
    pub no_proxy: Option<String>,
}

/// A setting that no client can be made with. The text does not repeat the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StsConfigError {
    #[error("the proxy's URL is not usable; write http://host:port or https://host:port")]
    Proxy,
    #[error("the STS endpoint is not an http or https URL with a host")]
    Endpoint,
}

/// Asks STS for sessions. Cloning is cheap.
#[derive(Clone)]
pub struct StsClient {
    client: Client,
    attempt_timeout: Duration,
}

impl StsConfig {
    /// AWS's endpoint of `region`, connected to within 1 s; an attempt may take 20 s.
    pub fn regional(region: impl Into<String>) -> Self {
        Self {
            region: region.into(),
            endpoint: None,
            fips: false,
            dual_stack: false,
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(20),
            proxy: ProxySettings::default(),
        }
    }
}

impl StsClient {
    /// A client for `config`. It reads the machine's root certificates, and nothing else of the machine.
    ///
    /// # Errors
    /// An endpoint or a proxy that is no usable URL.
    pub fn new(config: StsConfig) -> Result<Self, StsConfigError> {
        if config
            .endpoint
            .as_ref()
            .is_some_and(|url| !matches!(url.scheme(), "http" | "https") || !url.has_host())
        {
            return Err(StsConfigError::Endpoint);
        }
        let mut sdk = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client(&config)?)
            .region(Region::new(config.region))
            .use_fips(config.fips)
            .use_dual_stack(config.dual_stack)
            .app_name(AppName::new("rolecall").expect("the name has only letters"))
            // The worker retries: it knows who waits, and slows down for all keys at once.
            .retry_config(RetryConfig::disabled())
            // Neither is time the SDK's: it would cut an answer short that comes slowly.
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .allow_no_auth();
        if let Some(endpoint) = config.endpoint {
            sdk = sdk.endpoint_url(endpoint);
        }
        Ok(Self { client: Client::from_conf(sdk.build()), attempt_timeout: config.attempt_timeout })
    }

    async fn ask(&self, request: &SessionRequest, token: &Token) -> Result<Issued, StsError> {
        let key = &request.key;
        let duration = i32::try_from(key.duration.as_seconds()).expect("a session lasts 12 hours at most");
        let answer = self
            .client
            .assume_role_with_web_identity()
            .role_arn(key.role.as_str())
            .role_session_name(key.session_name.as_str())
            .web_identity_token(token.expose())
            .duration_seconds(duration)
            .send()
            .await;
        match answer {
            Ok(output) => issued(output),
            Err(error) => Err(classify(&error, token)),
        }
    }
}

impl Sts for StsClient {
    async fn assume_role_with_web_identity(
        &self,
        request: &SessionRequest,
        token: &Token,
    ) -> Result<Issued, StsError> {
        tokio::time::timeout(self.attempt_timeout, self.ask(request, token))
            .await
            .unwrap_or_else(|_| Err(StsError::unreachable("timed out")))
    }
}

fn issued(output: AssumeRoleWithWebIdentityOutput) -> Result<Issued, StsError> {
    let request_id = output.request_id().map(str::to_owned);
    let credentials =
        output.credentials.ok_or_else(|| StsError::unreachable("the answer has no credentials"))?;
    Ok(Issued {
        access_key_id: credentials.access_key_id,
        secret_access_key: Zeroizing::new(credentials.secret_access_key),
        session_token: Zeroizing::new(credentials.session_token),
        expires_at: SystemTime::try_from(credentials.expiration)
            .map_err(|_| StsError::unreachable("the answer's expiry is out of range"))?,
        assumed_role_arn: output.assumed_role_user.map(|user| user.arn),
        request_id,
    })
}

/// One pool of connections, with its own roots, time limit and proxy.
fn http_client(config: &StsConfig) -> Result<SharedHttpClient, StsConfigError> {
    let mut connector = Connector::builder()
        .tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc))
        .connector_settings(HttpConnectorSettings::builder().connect_timeout(config.connect_timeout).build())
        .pool_idle_timeout(KEEP_IDLE);
    connector.set_proxy_config(proxy(config)?);
    let connector = SharedHttpConnector::new(connector.build());
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// The proxy for the endpoint's scheme. An empty setting is none.
fn proxy(config: &StsConfig) -> Result<Option<ProxyConfig>, StsConfigError> {
    let is_plain = config.endpoint.as_ref().is_some_and(|url| url.scheme() == "http");
    let proxies = &config.proxy;
    let url = if is_plain { &proxies.http } else { &proxies.https };
    let Some(url) = url.as_deref().map(str::trim).filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let no_proxy = proxies.no_proxy.as_deref().unwrap_or_default();
    // The matcher does not apply the star to addresses.
    if no_proxy.split(',').any(|host| host.trim() == "*") {
        return Ok(None);
    }
    // As curl and everyone who follows it, a proxy without a scheme is spoken to in plain HTTP.
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let proxy = if is_plain { ProxyConfig::http(url) } else { ProxyConfig::https(url) };
    let proxy = proxy.map_err(|_| StsConfigError::Proxy)?;
    Ok(Some(proxy.no_proxy(no_proxy)))
}
