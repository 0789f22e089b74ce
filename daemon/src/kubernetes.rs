//! The way to the API server: the client, and the documents of the cluster's token issuer.

use std::{path::PathBuf, time::Duration};

use futures_util::FutureExt;
use http::Response;
use kube::{
    Client,
    client::ClientBuilder,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde_json::Value;
use tower::util::MapResponseLayer;

use crate::{
    pods::watch::Connection,
    token::keys::{Documents, Fetch, FetchError},
};

/// The watch is silent for a minute at most, for it asks for bookmarks, which the API server sends each minute; a
/// connection that stays silent longer has been lost on the way.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// An API server that is there takes a connection at once; one on the way to which packets are lost is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("read --kubeconfig {path}")]
    Kubeconfig { path: PathBuf, source: Box<KubeconfigError> },
    #[error("find the API server from inside of the cluster (give --kubeconfig outside of one)")]
    InCluster(#[source] Box<InClusterError>),
    #[error("build the client of the API server")]
    Build(#[source] Box<kube::Error>),
}

/// A client for the cluster of `kubeconfig`, or for the one that this process runs in. Each answer of the API
/// server is reported to `connection`.
///
/// # Errors
/// When the configuration cannot be used; the API server itself is not asked.
pub async fn client(kubeconfig: Option<PathBuf>, connection: Connection) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        None => kube::Config::incluster().map_err(|error| ClientError::InCluster(Box::new(error)))?,
        Some(path) => read(&path)
            .await
            .map_err(|error| ClientError::Kubeconfig { path: path.clone(), source: Box::new(error) })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let report = MapResponseLayer::new(move |response: Response<_>| {
        if response.status().is_success() {
            connection.answered();
        }
        response
    });
    let builder = ClientBuilder::try_from(config).map_err(|error| ClientError::Build(Box::new(error)))?;
    Ok(builder.with_layer(&report).build())
}

/// Fetches the discovery documents of the cluster's issuer.
///
/// Every ServiceAccount may read them (`system:service-account-issuer-discovery`).
pub fn issuer_documents(client: Client) -> Fetch {
    Box::new(move || {
        let client = client.clone();
        async move {
            let discovery = get(&client, "/.well-known/openid-configuration").await?;
            let issuer = discovery.get("issuer").and_then(Value::as_str).unwrap_or_default().to_owned();
            let jwks = get(&client, "/openid/v1/jwks").await?;
            Ok(Documents { issuer, jwks })
        }
        .boxed()
    })
}

async fn read(path: &std::path::Path) -> Result<kube::Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let proxy_url = proxy_url(&kubeconfig);
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // The proxies of the environment are for STS; kube would take them for the API server too.
    config.proxy_url = proxy_url.and_then(|url| url.parse().ok());
    Ok(config)
}

fn proxy_url(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_deref()?;
    let context = kubeconfig.contexts.iter().find(|it| it.name == current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|it| it.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone()
}

async fn get(client: &Client, path: &str) -> Result<Value, FetchError> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| FetchError(Box::new(error)))?;
    client.request(request).await.map_err(|error| FetchError(Box::new(error)))
}
