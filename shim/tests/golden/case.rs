//! The form of a case.

use std::collections::BTreeMap;

use rolecall_shim::policy::{ContainerCredentials, Policy};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Case {
    /// What is shown, as a sentence.
    pub(crate) describe: String,
    /// The operator's settings, where they differ from the defaults.
    #[serde(default)]
    pub(crate) policy: PolicyOfCase,
    #[serde(default = "shop")]
    pub(crate) namespace: String,
    /// The pod's ServiceAccount; absent where the shim does not know it.
    pub(crate) service_account: Option<ServiceAccount>,
    /// The entries of the ConfigMap `pod-identity-webhook`.
    #[serde(default)]
    pub(crate) config_map: Map<String, Value>,
    /// The identities of the container-credentials file.
    #[serde(default)]
    pub(crate) identities: Vec<Value>,
    /// Spreads the lifetimes of tokens; 0 leaves them as they are.
    #[serde(default)]
    pub(crate) seed: u64,
    pub(crate) pod: Value,
    pub(crate) expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceAccount {
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    pub(crate) outcome: String,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    /// Absent where the pod stays as it is.
    pub(crate) pod: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PolicyOfCase {
    default_mode: Option<String>,
    /// Empty: only our own annotations count.
    compatibility_prefix: Option<String>,
    audience: Option<String>,
    token_mount_path: Option<String>,
    token_expiration: Option<u64>,
    region: Option<String>,
    sts_regional_endpoints: bool,
    base_role_arn: Option<String>,
    pod_role_annotation_allowed: bool,
    take_over_irsa: bool,
    endpoint_address: Option<String>,
    node_selectors_without_daemon: BTreeMap<String, String>,
    session_name: Option<String>,
    container_credentials_full_uri: Option<String>,
}

impl PolicyOfCase {
    pub(crate) fn build(&self) -> Policy {
        let usual = Policy::default();
        let full_uri = self.container_credentials_full_uri.clone();
        Policy {
            default_mode: self.default_mode.as_ref().map_or(usual.default_mode, |mode| mode.parse().unwrap()),
            compatibility_prefix: match self.compatibility_prefix.as_deref() {
                None => usual.compatibility_prefix,
                Some("") => None,
                Some(prefix) => Some(prefix.to_owned()),
            },
            audience: self.audience.clone().unwrap_or(usual.audience),
            token_mount_path: self.token_mount_path.clone().unwrap_or(usual.token_mount_path),
            token_expiration: self.token_expiration.unwrap_or(usual.token_expiration),
            region: self.region.clone(),
            sts_regional_endpoints: self.sts_regional_endpoints,
            base_role_arn: self.base_role_arn.as_ref().map(|base| base.parse().unwrap()),
            pod_role_annotation_allowed: self.pod_role_annotation_allowed,
            take_over_irsa: self.take_over_irsa,
            endpoint_address: self
                .endpoint_address
                .as_ref()
                .map_or(usual.endpoint_address, |address| address.parse().unwrap()),
            node_selectors_without_daemon: self.node_selectors_without_daemon.clone().into_iter().collect(),
            session_name: self.session_name.as_ref().map(|template| template.parse().unwrap()),
            container_credentials: ContainerCredentials {
                full_uri: full_uri.unwrap_or(usual.container_credentials.full_uri),
                ..usual.container_credentials
            },
        }
    }
}

fn shop() -> String {
    "shop".to_owned()
}
