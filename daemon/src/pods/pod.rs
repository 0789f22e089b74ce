//! What the daemon keeps of a pod.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rolecall_contract::{RoleBinding, volume};

use super::object::{PodObject, PodSpec, PodStatus};
use crate::{
    identity::{PodIdentity, PodUid, PodUidError},
    token::volume::TokenVolume,
};

/// Most token volumes that are kept of one pod; the shim adds one.
const MAX_TOKEN_VOLUMES: usize = 8;

/// A pod of this node, as far as its credentials go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub identity: PodIdentity,
    /// It lives in the node's own network namespace, so its address says nothing.
    pub on_host_network: bool,
    /// Succeeded or failed: its containers will not run again.
    pub finished: bool,
    /// How far it is, where it has not finished.
    pub stage: Stage,
    pub created_at: SystemTime,
    /// Its addresses on the pod network, both families; none before the kubelet has reported them, and none on
    /// the host network.
    pub addresses: Vec<IpAddr>,
    pub binding: RoleBinding,
    /// Its projected tokens with our audience, the shim's first.
    pub token_volumes: Arc<[TokenVolume]>,
}

/// How far a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No container of it has run, as far as the API server knows.
    Starting,
    Running,
    /// It is being deleted, and drains.
    Terminating,
}

impl Pod {
    /// Reads what the API server sent; `audience` tells our tokens from others.
    ///
    /// # Errors
    /// A uid that no pod can have.
    pub fn read(object: &PodObject, audience: &str) -> Result<Self, PodUidError> {
        let status = object.status.as_ref();
        let on_host_network = object.spec.host_network.unwrap_or_default();
        let annotations = object.metadata.annotations.as_ref();
        Ok(Self {
            identity: PodIdentity {
                uid: object.metadata.uid.as_deref().unwrap_or_default().parse::<PodUid>()?,
                namespace: object.metadata.namespace.as_deref().unwrap_or_default().into(),
                name: object.metadata.name.as_deref().unwrap_or_default().into(),
                service_account: object.spec.service_account_name.as_deref().unwrap_or("default").into(),
            },
            on_host_network,
            finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
            stage: stage(object),
            created_at: object.metadata.creation_timestamp.as_ref().map_or(UNIX_EPOCH, |time| time.0.into()),
            addresses: if on_host_network { Vec::new() } else { addresses(status) },
            binding: RoleBinding::from_annotations(|key| annotations?.get(key).map(String::as_str)),
            token_volumes: token_volumes(&object.spec, audience),
        })
    }

    pub fn uid(&self) -> &PodUid {
        &self.identity.uid
    }
}

fn stage(object: &PodObject) -> Stage {
    if object.metadata.deletion_timestamp.is_some() {
        return Stage::Terminating;
    }
    match object.status.as_ref().and_then(|status| status.phase.as_deref()) {
        None | Some("Pending") => Stage::Starting,
        Some(_) => Stage::Running,
    }
}

fn addresses(status: Option<&PodStatus>) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    // podIP repeats the first of podIPs.
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn token_volumes(spec: &PodSpec, audience: &str) -> Arc<[TokenVolume]> {
    let mut found: Vec<TokenVolume> = spec
        .volumes
        .iter()
        .flatten()
        .flat_map(|volume| {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
            tokens.filter(|token| token.audience.as_deref() == Some(audience)).map(|token| TokenVolume {
                volume: volume.name.as_str().into(),
                path: token.path.as_str().into(),
            })
        })
        .take(MAX_TOKEN_VOLUMES)
        .collect();
    found.sort_by_key(|token| &*token.volume != volume::NAME);
    found.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn read(extra: Value) -> Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": "u-1", "namespace": "shop", "name": "orders-0"},
            "spec": {"containers": [{"name": "main", "image": "x"}], "serviceAccountName": "orders"},
        });
        merge(&mut object, extra);
        Pod::read(&serde_json::from_value(object).unwrap(), "sts.amazonaws.com").unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn token(volume: &str, audience: Option<&str>, path: &str) -> Value {
        json!({"name": volume, "projected": {"sources": [
            {"configMap": {"name": "ca"}},
            {"serviceAccountToken": {"audience": audience, "path": path, "expirationSeconds": 3600}},
        ]}})
    }

    #[test]
    fn both_families_are_read_once_each() {
        let pod =
            read(json!({"status": {"podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}}));
        let expect: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(pod.addresses, expect);
        assert_eq!(read(json!({"status": {"podIP": "10.0.0.7"}})).addresses, expect[..1]);
        assert!(read(json!({"status": {"podIP": "", "podIPs": []}})).addresses.is_empty());
        assert!(read(json!({})).addresses.is_empty());
    }

    #[test]
    fn a_host_network_pod_has_no_address_of_its_own() {
        let pod = read(json!({"spec": {"hostNetwork": true}, "status": {"podIP": "192.0.2.1"}}));
        assert!(pod.on_host_network);
        assert!(pod.addresses.is_empty());
    }

    #[test]
    fn only_succeeded_and_failed_pods_are_finished() {
        for (phase, finished) in [
            ("Pending", false),
            ("Running", false),
            ("Unknown", false),
            ("Succeeded", true),
            ("Failed", true),
        ] {
            assert_eq!(read(json!({"status": {"phase": phase}})).finished, finished, "{phase}");
        }
        // A pod that is being deleted drains, and needs credentials while it does.
        assert!(!read(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).finished);
    }

    #[test]
    fn a_pod_starts_until_a_container_runs_and_terminates_once_it_is_deleted() {
        for (phase, stage) in
            [("Pending", Stage::Starting), ("Running", Stage::Running), ("Unknown", Stage::Running)]
        {
            assert_eq!(read(json!({"status": {"phase": phase}})).stage, stage, "{phase}");
        }
        assert_eq!(read(json!({})).stage, Stage::Starting);
        let deleted =
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "creationTimestamp": "1970-01-01T00:01:00Z"});
        let pod = read(json!({"metadata": deleted, "status": {"phase": "Running"}}));
        assert_eq!(pod.stage, Stage::Terminating);
        assert_eq!(pod.created_at, UNIX_EPOCH + std::time::Duration::from_secs(60));
    }

    #[test]
    fn tokens_are_found_by_their_audience_and_the_shims_comes_first() {
        let pod = read(json!({"spec": {"volumes": [
            {"name": "data", "emptyDir": {}},
            token("kube-api-access", None, "token"),
            token("vault", Some("vault"), "token"),
            token("aws-iam-token", Some("sts.amazonaws.com"), "sub/token"),
            token("rolecall-token", Some("sts.amazonaws.com"), "token"),
        ]}}));
        let found: Vec<_> = pod.token_volumes.iter().map(|t| (&*t.volume, &*t.path)).collect();
        assert_eq!(found, [("rolecall-token", "token"), ("aws-iam-token", "sub/token")]);
    }

    #[test]
    fn annotations_bind_the_role() {
        let pod = read(json!({"metadata": {"annotations": {
            "rolecall.dev/role-arn": "arn:aws:iam::111122223333:role/orders", "rolecall.dev/token": "required",
        }}}));
        assert_eq!(pod.binding.role.unwrap().unwrap().name(), "orders");
        assert_eq!(pod.binding.token, rolecall_contract::TokenRule::Required);
        assert_eq!(&*pod.identity.service_account, "orders");
    }
}
