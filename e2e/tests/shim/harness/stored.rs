//! What the API server has stored of a pod, as far as credentials go.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

/// A stored pod.
#[derive(Debug)]
pub(crate) struct Stored(pub(crate) Value);

impl Stored {
    pub(crate) fn new(pod: &Pod) -> Self {
        Self(serde_json::to_value(pod).unwrap())
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.0["metadata"]["annotations"][key].as_str()
    }

    /// The names and values of a container's variables, in their order; of a field of the pod, its path.
    pub(crate) fn env(&self, container: &str) -> Vec<(&str, &str)> {
        let variables = self.container(container)["env"].as_array();
        fn value(variable: &Value) -> Option<(&str, &str)> {
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            Some((variable["name"].as_str()?, variable["value"].as_str().or(field)?))
        }
        variables.into_iter().flatten().filter_map(value).collect()
    }

    /// Audience and lifetime of the only token in a volume.
    pub(crate) fn token(&self, volume: &str) -> Option<(&str, i64)> {
        let volumes = self.0["spec"]["volumes"].as_array()?;
        let volume = volumes.iter().find(|found| found["name"] == volume)?;
        let [source] = volume["projected"]["sources"].as_array()?.as_slice() else { return None };
        let token = &source["serviceAccountToken"];
        Some((token["audience"].as_str()?, token["expirationSeconds"].as_i64()?))
    }

    /// Where a container mounts a volume.
    pub(crate) fn mount(&self, container: &str, volume: &str) -> Option<&str> {
        let mounts = self.container(container)["volumeMounts"].as_array()?;
        mounts.iter().find(|mount| mount["name"] == volume)?["mountPath"].as_str()
    }

    fn container(&self, name: &str) -> &Value {
        let lists = ["containers", "initContainers"].map(|list| self.0["spec"][list].as_array());
        let mut containers = lists.into_iter().flatten().flatten();
        containers
            .find(|container| container["name"] == name)
            .unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}
