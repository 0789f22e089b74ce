//! The clients of the SDKs, and moto, work without Rolecall between them.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use aws_config::BehaviorVersion;
use rolecall_e2e::{Moto, Sdk};

const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

/// Keys that are found by the chain's first link, so that what follows it is what is tested.
const STATIC: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "ASIASTATICFORTESTS00"),
    ("AWS_SECRET_ACCESS_KEY", "static secret"),
    ("AWS_SESSION_TOKEN", "static token"),
];

#[tokio::test]
async fn moto_exchanges_a_web_identity_token() {
    let moto = Moto::start().await.unwrap();
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region("us-east-1")
        .endpoint_url(moto.url())
        .no_credentials()
        .load()
        .await;
    let exchanged = aws_sdk_sts::Client::new(&config)
        .assume_role_with_web_identity()
        .role_arn(ROLE)
        .role_session_name("default.app")
        .web_identity_token("a token, which moto does not read")
        .send()
        .await
        .unwrap();

    let credentials = exchanged.credentials.unwrap();
    let environment = [
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", &credentials.session_token),
    ];
    for sdk in Sdk::ALL {
        let answer = sdk.identity(&environment, &moto.url()).await.unwrap();
        let arn = answer.arn.as_deref();
        assert_eq!(
            arn,
            Some("arn:aws:sts::123456789012:assumed-role/reader/default.app"),
            "{sdk:?}: {answer:?}"
        );
        let told = (sdk != Sdk::AwsCli).then(|| credentials.access_key_id.clone());
        assert_eq!(answer.access_key_id, told, "{sdk:?}");
    }
}

#[tokio::test]
async fn every_sdk_reports_the_credentials_that_it_found() {
    for sdk in [Sdk::Boto3, Sdk::JavaScript, Sdk::Rust] {
        let answer = sdk.credentials(&STATIC).await.unwrap();
        assert_eq!(answer.access_key_id.as_deref(), Some("ASIASTATICFORTESTS00"), "{sdk:?}: {answer:?}");
        assert_eq!(answer.secret_sha256.as_deref(), Some(SHA256_OF_SECRET), "{sdk:?}");
        assert_eq!(answer.token_sha256.as_deref(), Some(SHA256_OF_TOKEN), "{sdk:?}");
    }
}

const SHA256_OF_SECRET: &str = "aaff33314664fb832783a62063db6bfe4f55223394e1ac3ff2b1cf0c69128adf";
const SHA256_OF_TOKEN: &str = "79c424fae323bb807f0448ec7286d8470f93f3168f146d8ecdb57a5974397bfa";

#[tokio::test]
async fn every_sdk_reports_that_it_has_no_credentials() {
    for sdk in Sdk::ALL {
        let answer = sdk.identity(&[], "http://127.0.0.1:9").await.unwrap();
        assert!(answer.error.is_some() && answer.arn.is_none(), "{sdk:?}: {answer:?}");
    }
}

#[tokio::test]
async fn credentials_that_stay_are_no_refresh() {
    let moto = Moto::start().await.unwrap();
    for sdk in [Sdk::Boto3, Sdk::JavaScript, Sdk::Rust] {
        let error = sdk.refresh(&STATIC, &moto.url(), Duration::from_millis(500)).await.unwrap_err();
        assert!(error.to_string().contains("did not change"), "{sdk:?}: {error:#}");
    }
}
