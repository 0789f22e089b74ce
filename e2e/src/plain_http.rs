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

/// Sends a request as [`send`] does and returns status and JSON, whatever the status is.
pub(crate) async fn ask(
    authority: &str,
    request: http::Request<Vec<u8>>,
) -> Result<(u16, serde_json::Value)> {
    use anyhow::Context;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // kube's client makes an error of each refusal and drops its body, so this one speaks for itself.
    let mut text = format!("{} {} HTTP/1.0\r\nhost: {authority}\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\r\n", value.to_str()?));
    }
    text.push_str("\r\n");
    let mut stream = tokio::net::TcpStream::connect(authority).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).context("an answer without a status")?.parse()?;
    Ok((status, serde_json::from_str(body)?))
}
