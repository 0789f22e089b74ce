//! Plain HTTP to a server of ours on loopback: asking whether it is there, and etcd's own interface.

use anyhow::Result;
use kube::client::Client;

/// Sends a request without TLS to `http://<authority>` and returns the body of a success.
///
/// kube's client is a good HTTP client that is here anyway. Each call makes one: connections are not kept.
pub(crate) async fn send(authority: &str, request: http::Request<Vec<u8>>) -> Result<String> {
    let mut config = kube::Config::new(format!("http://{authority}").parse()?);
    config.proxy_url = None;
    Ok(Client::try_from(config)?.request_text(request).await?)
}

/// Whether `GET http://<authority><path>` succeeds.
pub(crate) async fn answers(authority: &str, path: &str) -> bool {
    match http::Request::get(path).body(Vec::new()) {
        Ok(request) => send(authority, request).await.is_ok(),
        Err(_) => false,
    }
}
