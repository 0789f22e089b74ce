//! An application that uses the AWS client of object_store with its defaults: see `../../src/sdk.rs` for what is
//! printed.

use std::error::Error;
use std::time::{Duration, Instant};

use object_store::ClientOptions;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, ReqwestConnector};
use serde_json::{Value, json};

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["refresh", endpoint, limit, beyond] => refresh(endpoint, seconds(limit)?, seconds(beyond)?).await,
        _ => Err("usage: refresh <endpoint> <seconds> <beyond>".into()),
    }
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(text.parse()?))
}

async fn refresh(endpoint: &str, limit: Duration, beyond: Duration) -> Result<()> {
    let started = Instant::now();
    let caller = Caller::new(endpoint)?;
    let first = answer_to(&caller).await;
    println!("{first}");
    while first.get("error").is_none() && started.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = answer_to(&caller).await;
        let enough = answer.get("error").is_some() || beyond <= started.elapsed();
        if enough && answer["access_key_id"] != first["access_key_id"] {
            println!("{answer}");
            break;
        }
    }
    Ok(())
}

/// Signs with what the store's own provider has, by the store's own signer, and says which key that was.
struct Caller<'a> {
    endpoint: &'a str,
    provider: AwsCredentialProvider,
    client: HttpClient,
}

impl<'a> Caller<'a> {
    fn new(endpoint: &'a str) -> Result<Self> {
        let store = AmazonS3Builder::from_env().with_bucket_name("bucket").build()?;
        let client = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true))?;
        Ok(Self { endpoint, provider: store.credentials().clone(), client })
    }

    async fn call(&self) -> Result<Value> {
        let credential = self.provider.get_credential().await?;
        let mut request: HttpRequest = http::Request::post(self.endpoint)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(BODY.to_owned().into())?;
        AwsAuthorizer::new(&credential, "sts", "us-east-1").try_authorize(&mut request, None)?;
        let response = self.client.execute(request).await?;
        let status = response.status();
        let text = response.into_body().bytes().await?;
        let text = String::from_utf8_lossy(&text);
        if !status.is_success() {
            return Err(format!("{status} {text}").into());
        }
        let arn = text.split_once("<Arn>").and_then(|(_, rest)| rest.split('<').next());
        Ok(json!({"arn": arn, "access_key_id": credential.key_id}))
    }
}

async fn answer_to(caller: &Caller<'_>) -> Value {
    let started = Instant::now();
    let mut answer = match caller.call().await {
        Ok(answer) => answer,
        Err(error) => json!({"error": error.to_string()}),
    };
    answer["elapsed_seconds"] = json!(started.elapsed().as_secs_f64());
    answer
}
