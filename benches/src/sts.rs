//! An exchange with the sandbox's STS without the daemon: STS's own time.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rolecall_sandbox::World;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

/// A connection to STS that is kept alive, over the daemon's own library for TLS and as little else as will do.
pub(crate) struct DirectSts {
    stream: TlsStream<TcpStream>,
}

impl DirectSts {
    pub(crate) async fn connect(world: &World) -> Result<Self> {
        let authority = world.authority.as_ref().context("the world speaks TLS")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(("127.0.0.1", world.sts.port())).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
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
