//! The way to the API server.

use std::{error::Error, path::PathBuf, time::Duration};

use http::Uri;
use kube::{
    Client,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use rolecall_process::telemetry::chain;

/// How many objects of a list the API server sends at a time. Each may have 256 KiB of annotations, and a page is in
/// memory whole.
pub const PAGE: u32 = 200;

/// A watch is silent for a minute at most, for it asks for bookmarks, which the API server sends each minute; a
/// connection that stays silent longer has been lost on the way.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Which API server, and where in it the shim is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// `None` for the ServiceAccount of the shim's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Replaces the URL that is found otherwise.
    pub api: Option<Uri>,
    /// `None` for the namespace of the shim's own pod, or of the kubeconfig's context.
    pub namespace: Option<String>,
}

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

/// A client, and the namespace that the shim is in.
///
/// # Errors
/// When the configuration cannot be used; the API server itself is not asked.
pub async fn client(settings: KubernetesConfig) -> Result<(Client, String), ClientError> {
    let mut config = match settings.kubeconfig {
        None => kube::Config::incluster().map_err(|error| ClientError::InCluster(Box::new(error)))?,
        Some(path) => read(&path)
            .await
            .map_err(|error| ClientError::Kubeconfig { path: path.clone(), source: Box::new(error) })?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    if let Some(api) = settings.api {
        config.cluster_url = api;
    }
    let namespace = settings.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| ClientError::Build(Box::new(error)))?;
    Ok((client, namespace))
}

/// An error of the client with all its sources, less the content of objects: what cannot be parsed would be shown in
/// part, and may be a pod's environment or a private key.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(one) = cause {
        let is_content = one.is::<serde_json::Error>()
            || one.downcast_ref::<kube::Error>().is_some_and(|one| matches!(one, kube::Error::SerdeError(_)));
        if is_content {
            return "an answer of the API server cannot be parsed".to_owned();
        }
        cause = one.source();
    }
    chain(error).to_string()
}

async fn read(path: &std::path::Path) -> Result<kube::Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher;

    use super::*;

    #[test]
    fn what_an_object_holds_is_in_no_message() {
        let parse = || serde_json::from_str::<u32>("\"hunter2\"").unwrap_err();
        assert!(parse().to_string().contains("hunter2"));
        let list = watcher::Error::InitialListFailed(kube::Error::SerdeError(parse()));
        for error in
            [Box::new(list) as Box<dyn Error>, Box::new(kube::Error::SerdeError(parse())), Box::new(parse())]
        {
            assert_eq!(told(&*error), "an answer of the API server cannot be parsed");
        }
        assert!(told(&watcher::Error::NoResourceVersion).contains("resourceVersion"));
    }
}
