//! moto: AWS's interfaces, STS among them, as a third party understands them.

use std::time::Duration;

use anyhow::Result;

use crate::loopback::{free_port, own_address};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::{plain_http, tools};

/// A running moto server. It issues credentials to anybody: it checks the form of requests, not their right.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    authority: String,
    _scratch: Scratch,
}

impl Moto {
    /// Starts one.
    pub async fn start() -> Result<Self> {
        let scratch = Scratch::new("moto")?;
        let address = own_address();
        let port = free_port(address)?;
        let authority = format!("{address}:{port}");
        let mut command = Process::command(tools::path("python")?);
        command.args(["-m", "moto.server", "--host", &address.to_string(), "--port", &port.to_string()]);
        command.current_dir(scratch.path()).env("HOME", scratch.path());
        let process = Process::spawn("moto", command, scratch.path())?;
        process
            .wait_until_ready(Duration::from_secs(60), async || {
                plain_http::answers(&authority, "/moto-api/").await
            })
            .await?;
        Ok(Self { process, authority, _scratch: scratch })
    }

    /// Its URL, to be used as STS's endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// What it has logged, each request included.
    pub fn logs(&self) -> String {
        self.process.logs()
    }
}
