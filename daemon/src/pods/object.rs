//! The few fields of a pod that are read off the wire; all others are dropped while parsing.

use kube::core::{ApiResource, Object};
use serde::Deserialize;

/// A pod as the API server sends it, less what nobody here reads.
///
/// A pod's JSON has 5 to 20 KiB; parsing it into the full type of the API would keep all of that for a moment
/// and run 10 000 lines of generated code.
pub type PodObject = Object<PodSpec, PodStatus>;

/// The resource that the watch asks for.
pub fn resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub host_network: Option<bool>,
    pub service_account_name: Option<String>,
    pub volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Volume {
    pub name: String,
    pub projected: Option<Projected>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Projected {
    pub sources: Option<Vec<ProjectedSource>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectedSource {
    pub service_account_token: Option<ServiceAccountToken>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ServiceAccountToken {
    pub audience: Option<String>,
    pub path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PodIp {
    #[serde(default)]
    pub ip: String,
}
