//! An application that uses the AWS SDK for Rust with its defaults: see `src/sdk.rs` for the commands and what is
//! printed.

#![allow(clippy::print_stdout, reason = "printing the answers is what this program is for")]

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sts::Client;
use aws_sdk_sts::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sts::config::{Config, ConfigBag, Intercept, ProvideCredentials, RuntimeComponents};
use aws_sdk_sts::error::{BoxError, DisplayErrorContext};
use aws_sdk_sts::primitives::{DateTime, DateTimeFormat};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["credentials"] => credentials().await,
        ["identity", endpoint] => identity(endpoint).await,
        ["refresh", endpoint, limit] => refresh(endpoint, seconds(limit)?, Duration::ZERO).await,
        ["refresh", endpoint, limit, beyond] => refresh(endpoint, seconds(limit)?, seconds(beyond)?).await,
        _ => bail!("usage: credentials | identity <endpoint> | refresh <endpoint> <seconds> [<beyond>]"),
    }
}

async fn credentials() -> Result<()> {
    let config = config().await;
    report(async || {
        let provider = config.credentials_provider().context("the default chain has no provider")?;
        let found = provider.provide_credentials().await.map_err(described)?;
        let expires_at =
            found.expiry().map(|at| DateTime::from(at).fmt(DateTimeFormat::DateTime)).transpose()?;
        Ok(json!({
            "access_key_id": found.access_key_id(),
            "secret_sha256": sha256(found.secret_access_key()),
            "token_sha256": found.session_token().map(sha256),
            "expires_at": expires_at,
        }))
    })
    .await;
    Ok(())
}

async fn identity(endpoint: &str) -> Result<()> {
    let config = config().await;
    report(async || Caller::new(&config, endpoint).call().await).await;
    Ok(())
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(text.parse()?))
}

async fn refresh(endpoint: &str, limit: Duration, beyond: Duration) -> Result<()> {
    let started = Instant::now();
    let caller = Caller::new(&config().await, endpoint);
    let first = report(async || caller.call().await).await;
    while first.get("error").is_none() && started.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = answer_to(async || caller.call().await).await;
        let enough = answer.get("error").is_some() || beyond <= started.elapsed();
        if enough && answer["access_key_id"] != first["access_key_id"] {
            println!("{answer}");
            break;
        }
    }
    Ok(())
}

async fn config() -> SdkConfig {
    aws_config::load_defaults(BehaviorVersion::latest()).await
}

/// A client that notes which key its last request was signed with: its cache of credentials is its own affair.
struct Caller {
    client: Client,
    signed_with: SignedWith,
}

impl Caller {
    fn new(config: &SdkConfig, endpoint: &str) -> Self {
        let signed_with = SignedWith::default();
        let config =
            Config::from(config).to_builder().endpoint_url(endpoint).interceptor(signed_with.clone()).build();
        Self { client: Client::from_conf(config), signed_with }
    }

    async fn call(&self) -> Result<Value> {
        let answer = self.client.get_caller_identity().send().await.map_err(described)?;
        let access_key_id =
            self.signed_with.0.lock().expect("nothing panics while it holds this lock").clone();
        Ok(json!({"arn": answer.arn(), "access_key_id": access_key_id}))
    }
}

#[derive(Debug, Clone, Default)]
struct SignedWith(Arc<Mutex<Option<String>>>);

impl Intercept for SignedWith {
    fn name(&self) -> &'static str {
        "SignedWith"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let header = context.request().headers().get("authorization").unwrap_or_default();
        let credential = header.split_once("Credential=").map_or("", |(_, rest)| rest);
        let key = credential.split('/').next().map(str::to_owned);
        *self.0.lock().expect("nothing panics while it holds this lock") = key;
        Ok(())
    }
}

async fn report(ask: impl AsyncFnOnce() -> Result<Value>) -> Value {
    let answer = answer_to(ask).await;
    println!("{answer}");
    answer
}

async fn answer_to(ask: impl AsyncFnOnce() -> Result<Value>) -> Value {
    let started = Instant::now();
    let mut answer = match ask().await {
        Ok(answer) => answer,
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    answer["elapsed_seconds"] = json!(started.elapsed().as_secs_f64());
    answer
}

/// The SDK's errors say little by themselves: this is the way that its documentation recommends to print them.
fn described(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow::anyhow!("{}", DisplayErrorContext(&error))
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
