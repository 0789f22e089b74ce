//! The few fields of a pod that tell whether to look closer; all others are dropped while parsing.

use kube::core::{ApiResource, Object};
use rolecall_contract::{annotation, endpoint};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::review::SKIP_LABEL;

/// A pod as the API server sends it, less what nobody here reads.
pub type PodObject = Object<PodSpec, PodStatus>;

/// The resource that the watch asks for.
pub(super) fn resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub service_account_name: Option<String>,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    pub name: String,
    pub env: Vec<Variable>,
}

/// A variable, without its value.
#[derive(Debug, Clone, Deserialize)]
pub struct Variable {
    #[serde(default)]
    pub name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    pub phase: Option<String>,
}

/// Whether it will never run (again).
pub(super) fn is_over(pod: &PodObject) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some()
}

/// Whether any container was pointed at credentials, by us or by somebody else.
pub(super) fn has_credentials(pod: &PodObject) -> bool {
    let is_one = |variable: &Variable| {
        [endpoint::FULL_URI_ENV, endpoint::RELATIVE_URI_ENV, "AWS_ROLE_ARN", "AWS_ACCESS_KEY_ID"]
            .contains(&variable.name.as_str())
    };
    let spec = &pod.spec;
    let annotated = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(annotation::TOKEN));
    annotated || spec.init_containers.iter().chain(&spec.containers).any(|one| one.env.iter().any(is_one))
}

/// Whether the API server does not ask about it.
pub(super) fn is_left_out(pod: &PodObject) -> bool {
    let is_mirror =
        pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"));
    is_mirror || pod.metadata.labels.as_ref().is_some_and(|all| all.contains_key(SKIP_LABEL))
}

/// As much of the pod as tells whether anything binds it, or a container of it, to a role.
pub(super) fn sketch(pod: &PodObject) -> Value {
    let named = |containers: &[Container]| -> Vec<Value> {
        containers.iter().map(|container| json!({"name": container.name})).collect()
    };
    json!({
        "metadata": {
            "name": pod.metadata.name,
            "namespace": pod.metadata.namespace,
            "annotations": pod.metadata.annotations,
        },
        "spec": {
            "serviceAccountName": pod.spec.service_account_name,
            "containers": named(&pod.spec.containers),
            "initContainers": named(&pod.spec.init_containers),
        },
    })
}

/// Unix time; 0 where it is not told.
pub(super) fn created(pod: &PodObject) -> i64 {
    pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> PodObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_with_any_credentials_is_no_suspect() {
        for (variable, expect) in [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", true),
            ("AWS_ROLE_ARN", true),
            ("AWS_ACCESS_KEY_ID", true),
            ("AWS_REGION", false),
        ] {
            let pod = pod(json!({
                "metadata": {"name": "a"},
                "spec": {
                    "containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}],
                    "initContainers": [{"name": "b", "env": [{"name": variable, "valueFrom": {}}]}],
                },
            }));
            assert_eq!(has_credentials(&pod), expect, "{variable}");
        }
    }

    #[test]
    fn a_pod_that_the_api_server_does_not_ask_about_is_left_out() {
        let skipped = json!({"metadata": {"name": "a", "labels": {SKIP_LABEL: ""}}, "spec": {}});
        let mirror = json!({
            "metadata": {"name": "a", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {}
        });
        for (value, expect) in [(skipped, true), (mirror, true), (json!({"metadata": {}, "spec": {}}), false)]
        {
            assert_eq!(is_left_out(&pod(value.clone())), expect, "{value}");
        }
    }
}
