//! The etcd beneath an API server.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use serde_json::{Value, json};

use crate::loopback::free_port;
use crate::process::Process;
use crate::{plain_http, tools};

#[derive(Debug)]
pub(super) struct Etcd {
    process: Process,
    authority: String,
}

impl Etcd {
    pub(super) async fn start(folder: &Path, address: Ipv4Addr) -> Result<Self> {
        let authority = format!("{address}:{}", free_port(address)?);
        let clients = format!("http://{authority}");
        let peers = format!("http://{address}:{}", free_port(address)?);
        let mut command = Process::command(tools::path("etcd")?);
        command
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=default={peers}"))
            // The data need to outlive the process, but not the machine.
            .arg("--unsafe-no-fsync")
            .arg("--log-level=warn");
        let process = Process::spawn("etcd", command, folder)?;
        process
            .wait_until_ready(Duration::from_secs(60), async || {
                plain_http::answers(&authority, "/health").await
            })
            .await?;
        Ok(Self { process, authority })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    pub(super) async fn compact(&self) -> Result<()> {
        let key = base64::engine::general_purpose::STANDARD.encode("any");
        let answer = self.post("/v3/kv/range", &json!({"key": key})).await.context("read etcd's revision")?;
        let revision = answer["header"]["revision"].as_str().context("etcd's answer has no revision")?;
        self.post("/v3/kv/compaction", &json!({"revision": revision, "physical": true}))
            .await
            .context("compact etcd")?;
        Ok(())
    }

    pub(super) fn logs(&self) -> String {
        self.process.logs()
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = http::Request::post(path).body(body.to_string().into_bytes())?;
        Ok(serde_json::from_str(&plain_http::send(&self.authority, request).await?)?)
    }
}
