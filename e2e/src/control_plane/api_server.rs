//! One kube-apiserver process, which can be killed and started again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Result, bail};
use rolecall_contract::AUDIENCE;

use super::pki::SigningKey;
use super::site::SERVICES;
use super::{ISSUER, Site, client};
use crate::loopback::free_port;
use crate::process::Process;
use crate::tools;

/// A kube-apiserver at a fixed address and port. Dropping it kills it.
#[derive(Debug)]
pub struct ApiServer {
    name: String,
    folder: PathBuf,
    site: Site,
    port: u16,
    etcd_url: String,
    /// The last one, running or not, which has the log.
    process: Mutex<Option<Arc<Process>>>,
}

impl ApiServer {
    pub(super) fn new(folder: &Path, name: &str, site: Site, etcd_url: String) -> Result<Self> {
        let (name, folder) = (name.to_owned(), folder.to_owned());
        let port = free_port(site.address())?;
        Ok(Self { name, folder, site, port, etcd_url, process: Mutex::new(None) })
    }

    /// `https://` and its authority.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.site.address(), self.port)
    }

    /// Kills it, as a crash does. One that is down already stays down.
    pub fn stop(&self) -> Result<()> {
        match self.process().as_ref() {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Whether it is up, ready or not.
    pub(super) fn is_running(&self) -> Result<bool> {
        self.process().as_ref().map_or(Ok(false), |process| process.is_running())
    }

    /// What it has logged since its first start.
    pub fn logs(&self) -> String {
        match self.process().as_ref() {
            Some(process) => process.logs(),
            None => String::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it. Tokens are signed with the last key; those of all keys are accepted.
    pub(super) fn start(&self, signing_keys: &[SigningKey]) -> Result<()> {
        let mut process = self.process();
        if let Some(process) = process.as_ref()
            && process.is_running()?
        {
            bail!("{} is up already", self.name);
        }
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Process::command(tools::path("kube-apiserver")?);
        command
            .arg(format!("--etcd-servers={}", self.etcd_url))
            .arg(format!("--bind-address={}", self.site.address()))
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg(format!("--service-account-issuer={ISSUER}"))
            .arg(format!("--api-audiences={ISSUER},{AUDIENCE}"))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction");
        match self.site {
            // It refuses to advertise a loopback address. This one, for documentation, is reachable for nobody,
            // and with no reconciler nothing is done with it.
            Site::Loopback(_) => command
                .arg("--advertise-address=192.0.2.1")
                .arg("--endpoint-reconciler-type=none")
                .arg("--service-cluster-ip-range=198.51.100.0/24"),
            Site::Network { address } => command
                .arg(format!("--advertise-address={address}"))
                .arg(format!("--service-cluster-ip-range={SERVICES}"))
                .arg("--allow-privileged=true")
                .arg("--kubelet-preferred-address-types=InternalIP")
                .arg(format!("--kubelet-certificate-authority={}", file("ca.crt")))
                .arg(format!("--kubelet-client-certificate={}", file("admin.crt")))
                .arg(format!("--kubelet-client-key={}", file("admin.key")))
                // No kube-proxy serves the control plane, so webhooks are called at their pods' addresses.
                .arg("--enable-aggregator-routing=true"),
        };
        for key in signing_keys {
            command.arg(format!("--service-account-key-file={}", key.public.display()));
        }
        if let Some(newest) = signing_keys.last() {
            command.arg(format!("--service-account-signing-key-file={}", newest.private.display()));
        }
        *process = Some(Arc::new(Process::spawn(&self.name, command, &self.folder)?));
        Ok(())
    }

    pub(super) async fn wait_until_ready(&self, kubeconfig: &Path) -> Result<()> {
        let client = client(kubeconfig).await?;
        let ready = async || match http::Request::get("/readyz").body(Vec::new()) {
            Ok(request) => client.request_text(request).await.is_ok(),
            Err(_) => false,
        };
        let Some(process) = self.process().clone() else { bail!("{} was never started", self.name) };
        process.wait_until_ready(Duration::from_secs(120), ready).await
    }

    fn process(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.process.lock().expect("nothing panics while it holds this lock")
    }
}
