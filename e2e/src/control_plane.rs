//! A Kubernetes control plane: a real kube-apiserver with a real etcd, on an address of its own.

mod api_server;
mod etcd;
mod objects;
mod pki;
mod site;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};
use kube::client::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::sync::OnceCell;

pub use api_server::ApiServer;
pub use site::Site;

use crate::loopback::own_address;
use crate::scratch::Scratch;
use etcd::Etcd;
use pki::Pki;

/// The issuer in the tokens' `iss`.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// The files by which a part of the cluster is known to the API server.
#[derive(Debug, Clone)]
pub struct Component {
    /// How it reaches the API server.
    pub kubeconfig: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// A running control plane with RBAC, without controllers, scheduler or kubelet: tests act for those.
///
/// Nothing makes a namespace's `default` ServiceAccount, for example, but [`ControlPlane::create_namespace`].
#[derive(Debug)]
pub struct ControlPlane {
    // Fields are dropped in this order: no process is left that writes into the folder when it goes.
    api_server: ApiServer,
    etcd: Etcd,
    pki: Mutex<Pki>,
    site: Site,
    peers: Mutex<u16>,
    scratch: Scratch,
}

impl ControlPlane {
    /// Starts one for the caller alone, which takes a few seconds. Tests that stop it need their own.
    pub async fn start() -> Result<Self> {
        Self::start_at(Site::Loopback(own_address())).await
    }

    /// Starts one at a place of the caller's choice.
    pub async fn start_at(site: Site) -> Result<Self> {
        let scratch = Scratch::new("control-plane")?;
        let pki = Pki::make(scratch.path(), &site.served_addresses())?;
        let etcd = Etcd::start(scratch.path(), site.address()).await?;
        let api_server = ApiServer::new(scratch.path(), "kube-apiserver", site, etcd.url())?;
        let control_plane =
            Self { api_server, etcd, pki: Mutex::new(pki), site, peers: Mutex::new(0), scratch };
        control_plane.write_kubeconfig(
            "admin.kubeconfig",
            &control_plane.api_server,
            &control_plane.admin(),
        )?;
        control_plane.start_api_server().await?;
        Ok(control_plane)
    }

    /// The one that all tests of this process share, started for the first of them.
    /// A namespace each keeps them apart.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// A client with all rights.
    ///
    /// Each call makes one, for a client lives no longer than the runtime of the test that made it.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig_path()).await
    }

    /// A kubeconfig file with all rights.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.scratch.path().join("admin.kubeconfig")
    }

    /// A kubeconfig file with the rights of a ServiceAccount, by a token of one hour. Only the owner can read it.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.token_request(namespace, name, None, ISSUER, 3600).await?;
        let file = format!("{namespace}.{name}.kubeconfig");
        self.write_kubeconfig(&file, &self.api_server, &json!({"token": token}))
    }

    /// A client with the rights of a token.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        let path = self.write_kubeconfig("token.kubeconfig", &self.api_server, &json!({"token": token}))?;
        client(&path).await
    }

    /// A kubeconfig file of a component: a user by a certificate, which is also good for serving at `addresses`.
    pub fn kubeconfig_for_component(
        &self,
        user: &str,
        group: Option<&str>,
        addresses: &[Ipv4Addr],
    ) -> Result<Component> {
        let file = user.replace(':', ".");
        let (certificate, key) = self.pki().issue(&file, user, group, addresses)?;
        let user = json!({"client-certificate": certificate, "client-key": key});
        let kubeconfig = self.write_kubeconfig(&format!("{file}.kubeconfig"), &self.api_server, &user)?;
        Ok(Component { kubeconfig, certificate, key })
    }

    /// The key that ServiceAccount tokens are signed with, for whoever makes the old kind of them.
    pub fn signing_key_path(&self) -> Option<PathBuf> {
        self.pki().signing_keys().last().map(|key| key.private.clone())
    }

    /// The API server's URL, which stays the same over its restarts.
    pub fn api_server_url(&self) -> String {
        self.api_server.url()
    }

    /// The file with the certificate authority that signed the API server's certificate.
    pub fn ca_path(&self) -> PathBuf {
        self.pki().ca_path()
    }

    /// Kills the API server, as a crash does.
    pub fn stop_api_server(&self) -> Result<()> {
        self.api_server.stop()
    }

    /// Whether the API server is up, ready or not.
    pub fn api_server_is_running(&self) -> Result<bool> {
        self.api_server.is_running()
    }

    /// Starts the API server again, on the same port and data, and waits until it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        let signing_keys = self.pki().signing_keys().to_vec();
        self.api_server.start(&signing_keys)?;
        self.api_server.wait_until_ready(&self.kubeconfig_path()).await
    }

    /// Starts another API server on the same etcd, as in a cluster with several: the world can go on changing
    /// while the first one is down. The kubeconfigs do not name it; [`ControlPlane::peer_client`] speaks to it.
    pub async fn start_peer_api_server(&self) -> Result<ApiServer> {
        let number = {
            let mut peers = self.peers.lock().expect("nothing panics while it holds this lock");
            *peers += 1;
            *peers
        };
        let name = format!("kube-apiserver-peer-{number}");
        let peer = ApiServer::new(self.scratch.path(), &name, self.site, self.etcd.url())?;
        let kubeconfig = self.write_kubeconfig(&format!("{name}.kubeconfig"), &peer, &self.admin())?;
        let signing_keys = self.pki().signing_keys().to_vec();
        peer.start(&signing_keys)?;
        peer.wait_until_ready(&kubeconfig).await?;
        Ok(peer)
    }

    /// A client with all rights, at a peer.
    pub async fn peer_client(&self, peer: &ApiServer) -> Result<Client> {
        client(&self.scratch.path().join(format!("{}.kubeconfig", peer.name()))).await
    }

    /// Makes a new key that API servers sign ServiceAccount tokens with from their next start on.
    /// Tokens that older keys signed stay valid, and those keys stay published.
    pub fn rotate_signing_key(&self) -> Result<()> {
        self.pki().add_signing_key()
    }

    /// Compacts etcd up to the current revision, so that older resource versions are gone for good.
    ///
    /// An API server that runs goes on answering from its watch cache; one that starts afterwards cannot.
    pub async fn compact_etcd(&self) -> Result<()> {
        self.etcd.compact().await
    }

    /// What the API server and etcd have logged, for the message of a test that fails.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.etcd.logs(), self.api_server.logs())
    }

    fn admin(&self) -> serde_json::Value {
        let (certificate, key) = self.pki().admin_paths();
        json!({"client-certificate": certificate, "client-key": key})
    }

    fn write_kubeconfig(&self, file: &str, server: &ApiServer, user: &serde_json::Value) -> Result<PathBuf> {
        let cluster = json!({"server": server.url(), "certificate-authority": self.ca_path()});
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        let path = self.scratch.path().join(file);
        pki::write_private(&path, config.to_string().as_bytes())?;
        Ok(path)
    }

    fn pki(&self) -> MutexGuard<'_, Pki> {
        self.pki.lock().expect("nothing panics while it holds this lock")
    }
}

/// A client for a kubeconfig file. The environment is not asked: a proxy would only be in the way.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).context("read kubeconfig")?;
    let mut config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}
