//! Issuer, kubelet, STS and cluster together, with pods whose parts are made in any order.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::authority::Authority;
use crate::cluster::Cluster;
use crate::cluster::pod::PodBuilder;
use crate::issuer::{Algorithm, Issuer, TokenClaims};
use crate::kubelet::KubeletDir;
use crate::sts::{StsConfig, StsServer, TrustPolicy};

/// The node that pods are on unless they name another one.
pub const NODE: &str = "demo-node";

/// The issuer's URL, a cluster's default.
pub const ISSUER_URL: &str = "https://kubernetes.default.svc";

/// Everything around one node's daemon. A clone is another handle to the same world; when the last handle to a part
/// is gone, its tasks end and its files are removed.
#[derive(Clone)]
pub struct World {
    /// The cluster's token issuer, registered with the STS.
    pub issuer: Issuer,
    /// The node's kubelet.
    pub kubelet: KubeletDir,
    /// The AWS side.
    pub sts: StsServer,
    /// The API server.
    pub cluster: Cluster,
    /// Whose certificates STS and the API server have, where they speak TLS.
    pub authority: Option<Authority>,
}

/// A pod of this world: a handle to make its parts one by one, and to change them.
#[derive(Clone)]
pub struct WorldPod {
    world: World,
    builder: PodBuilder,
    token_lifetime: Duration,
}

impl World {
    /// Starts everything, with an ES256 key, which is generated in no time.
    pub async fn start() -> io::Result<Self> {
        Self::with_algorithm(Algorithm::Es256).await
    }

    /// Starts everything, with an issuer of this algorithm.
    pub async fn with_algorithm(algorithm: Algorithm) -> io::Result<Self> {
        Self::begin(algorithm, None).await
    }

    /// The same with an STS and an API server that speak TLS, with certificates of an authority that this world alone
    /// has.
    pub async fn with_tls(algorithm: Algorithm) -> io::Result<Self> {
        Self::begin(algorithm, Some(Authority::new())).await
    }

    async fn begin(algorithm: Algorithm, authority: Option<Authority>) -> io::Result<Self> {
        let issuer = Issuer::new(ISSUER_URL, algorithm);
        let sts =
            StsServer::start(StsConfig { authority: authority.clone(), ..StsConfig::default() }).await?;
        sts.register_issuer(&issuer);
        let cluster = match &authority {
            None => Cluster::start(&issuer).await?,
            Some(authority) => Cluster::start_with_tls(&issuer, authority).await?,
        };
        Ok(Self { kubelet: KubeletDir::new()?, issuer, sts, cluster, authority })
    }

    /// A pod with all its parts, in the order in which a cluster makes them: its role is trusted, the API server has
    /// it, the kubelet has written its token. It is on [`NODE`] unless the builder says otherwise.
    pub fn pod(&self, builder: PodBuilder) -> io::Result<WorldPod> {
        let pod = self.prepare(builder);
        pod.trust();
        pod.register();
        pod.write_token()?;
        Ok(pod)
    }

    /// A pod of which nothing is there yet; each part is made by its own call, in any order.
    pub fn prepare(&self, builder: PodBuilder) -> WorldPod {
        let builder = if builder.get_node().is_none() { builder.node(NODE) } else { builder };
        WorldPod { world: self.clone(), builder, token_lifetime: Duration::from_hours(24) }
    }
}

impl WorldPod {
    /// Sets the lifetime of the tokens written from now on.
    #[must_use]
    pub fn with_token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = lifetime;
        self
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.builder.get_namespace()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.builder.get_name()
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.builder.get_uid()
    }

    /// Its role, if it has one.
    pub fn role(&self) -> Option<&str> {
        self.builder.get_role()
    }

    /// Where its token lies, through the symlinks, whether it is there or not. `None` without a token volume.
    pub fn token_path(&self) -> Option<PathBuf> {
        let volume = self.builder.get_token_volume()?;
        Some(self.world.kubelet.token_path(self.uid(), &volume.name, &volume.path))
    }

    /// Its token as it lies there now.
    pub fn token(&self) -> io::Result<String> {
        let path = self.token_path().ok_or(io::ErrorKind::NotFound)?;
        std::fs::read_to_string(path)
    }

    /// Claims for a token of this pod, good from now on.
    pub fn claims(&self) -> TokenClaims {
        let claims = TokenClaims::new(self.namespace(), self.builder.get_service_account(), self.name())
            .pod_uid(self.uid())
            .lifetime(self.token_lifetime);
        let claims = match self.builder.get_token_volume() {
            Some(volume) => claims.audiences(&[&volume.audience]),
            None => claims,
        };
        match self.builder.get_node() {
            Some(node) => claims.node(node),
            None => claims,
        }
    }

    /// Lets its ServiceAccount assume its role, beside whoever may already.
    pub fn trust(&self) {
        if let Some(role) = self.role() {
            let service_account = self.builder.get_service_account();
            let policy =
                TrustPolicy::service_account(self.world.issuer.url(), self.namespace(), service_account);
            self.world.sts.add_trust(role, policy);
        }
    }

    /// Lets nobody assume its role any longer.
    pub fn distrust(&self) {
        if let Some(role) = self.role() {
            self.world.sts.trust(role, TrustPolicy::nobody());
        }
    }

    /// Creates it in the API server.
    pub fn register(&self) -> Value {
        self.world.cluster.apply(self.builder.build())
    }

    /// Signs a token and writes it as the kubelet would, or rotates the one that is there. A pod without a token
    /// volume gets none.
    pub fn write_token(&self) -> io::Result<()> {
        self.write(&self.world.issuer.mint(&self.claims()))
    }

    /// Writes this text in the place of its token.
    pub fn write(&self, token: &str) -> io::Result<()> {
        match self.builder.get_token_volume() {
            Some(volume) => self.world.kubelet.write_token(self.uid(), &volume.name, &volume.path, token),
            None => Ok(()),
        }
    }

    /// Reports it running at these addresses.
    pub fn run_at(&self, addresses: &[&str]) {
        self.world.cluster.set_running(self.namespace(), self.name(), addresses);
    }

    /// Reports it in this phase.
    pub fn set_phase(&self, phase: &str) {
        self.world.cluster.set_phase(self.namespace(), self.name(), phase);
    }

    /// Deletes it from the API server; its volume stays on disk, as it does for a while.
    pub fn delete(&self) {
        self.world.cluster.delete(self.namespace(), self.name());
    }

    /// Deletes it from the API server and from the node's disk.
    pub fn remove(&self) -> io::Result<()> {
        self.delete();
        self.world.kubelet.remove_pod(self.uid())
    }
}
