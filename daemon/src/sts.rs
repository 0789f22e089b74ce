//! AWS STS over the SDK: the only part that knows the AWS SDK.

mod classify;
mod client;

pub use self::client::{ProxySettings, StsClient, StsConfig, StsConfigError};
