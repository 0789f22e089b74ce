//! An exchange with the sandbox's STS without the daemon: STS's own time.

use anyhow::{Context, Result, ensure};
use rolecall_sandbox::StsServer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A connection to STS that is kept alive.
pub(crate) struct DirectSts {
    stream: TcpStream,
}

impl DirectSts {
    pub(crate) async fn connect(sts: &StsServer) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", sts.port())).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Assumes `role` by `token`.
    ///
    /// # Errors
    /// Where STS does not grant it.
    pub(crate) async fn exchange(&mut self, role: &str, token: &str) -> Result<()> {
        let role = role.replace(':', "%3A").replace('/', "%2F");
        let form = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={role}&RoleSessionName=bench&WebIdentityToken={token}"
        );
        let request = format!(
            "POST / HTTP/1.1\r\nHost: sts\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::with_capacity(4096);
        loop {
            ensure!(self.stream.read_buf(&mut bytes).await? != 0, "STS ended the connection");
            if bytes.windows(30).any(|window| window == b"</AssumeRoleWithWebIdentityRes") {
                break;
            }
            let text = std::str::from_utf8(&bytes).context("STS answers with text")?;
            ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
        }
        // The rest of the closing tag may come later.
        while !bytes.trim_ascii_end().ends_with(b"Response>") {
            ensure!(self.stream.read_buf(&mut bytes).await? != 0, "STS ended the connection");
        }
        Ok(())
    }
}
