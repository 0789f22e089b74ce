//! Pods as the shim makes them: role, token volume, environment.

use rolecall_contract::{AUDIENCE, annotation, endpoint, volume};
use serde_json::{Map, Value, json};

use crate::ids;

/// Builds the JSON of a pod. One container, no role, on no node, `Pending`, until told otherwise.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    namespace: String,
    name: String,
    uid: String,
    node: Option<String>,
    service_account: String,
    annotations: Map<String, Value>,
    labels: Map<String, Value>,
    host_network: bool,
    addresses: Vec<String>,
    phase: String,
    token_volume: Option<TokenVolume>,
    is_injected: bool,
}

/// A projected volume with a ServiceAccount token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenVolume {
    /// The volume's name.
    pub name: String,
    /// The token's audience.
    pub audience: String,
    /// The token's path in the volume.
    pub path: String,
}

impl PodBuilder {
    /// A pod with a random uid and the ServiceAccount `default`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: ids::uuid(),
            node: None,
            service_account: "default".to_owned(),
            annotations: Map::new(),
            labels: Map::new(),
            host_network: false,
            addresses: Vec::new(),
            phase: "Pending".to_owned(),
            token_volume: None,
            is_injected: false,
        }
    }

    /// Sets `metadata.uid`.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// Sets `spec.nodeName`.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Sets `spec.serviceAccountName`.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Injects a role as the shim does: its annotation, the one that makes the token required, the token volume and
    /// the container's environment.
    #[must_use]
    pub fn role(mut self, role_arn: &str) -> Self {
        self.is_injected = true;
        if self.token_volume.is_none() {
            self = self.token_volume(volume::NAME, AUDIENCE, volume::TOKEN_FILE);
        }
        self.annotation(annotation::ROLE_ARN, role_arn)
            .annotation(annotation::TOKEN, annotation::TOKEN_REQUIRED)
    }

    /// As in relative-URI mode: a request may come without the token.
    #[must_use]
    pub fn token_optional(self) -> Self {
        self.annotation(annotation::TOKEN, annotation::TOKEN_OPTIONAL)
    }

    /// Sets `spec.hostNetwork`.
    #[must_use]
    pub fn host_network(mut self, on_host_network: bool) -> Self {
        self.host_network = on_host_network;
        self
    }

    /// Adds an address to `status.podIPs`; the first is `status.podIP`.
    #[must_use]
    pub fn ip(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Sets `status.phase`.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> Self {
        phase.clone_into(&mut self.phase);
        self
    }

    /// Sets the token volume; [`Self::role`] adds the usual one where none is set.
    #[must_use]
    pub fn token_volume(mut self, name: &str, audience: &str, path: &str) -> Self {
        self.token_volume =
            Some(TokenVolume { name: name.to_owned(), audience: audience.to_owned(), path: path.to_owned() });
        self
    }

    /// Takes the token volume out, also after [`Self::role`].
    #[must_use]
    pub fn without_token_volume(mut self) -> Self {
        self.token_volume = None;
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Takes an annotation out.
    #[must_use]
    pub fn without_annotation(mut self, key: &str) -> Self {
        self.annotations.remove(key);
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.into());
        self
    }

    /// `metadata.namespace`.
    pub fn get_namespace(&self) -> &str {
        &self.namespace
    }

    /// `metadata.name`.
    pub fn get_name(&self) -> &str {
        &self.name
    }

    /// `metadata.uid`.
    pub fn get_uid(&self) -> &str {
        &self.uid
    }

    /// `spec.serviceAccountName`.
    pub fn get_service_account(&self) -> &str {
        &self.service_account
    }

    /// `spec.nodeName`.
    pub fn get_node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The role's annotation.
    pub fn get_role(&self) -> Option<&str> {
        self.annotations.get(annotation::ROLE_ARN)?.as_str()
    }

    /// The token volume.
    pub fn get_token_volume(&self) -> Option<&TokenVolume> {
        self.token_volume.as_ref()
    }

    /// The pod.
    pub fn build(&self) -> Value {
        let mut container = json!({ "name": "app", "image": format!("registry.example/{}:1", self.name) });
        let mut spec = json!({ "serviceAccountName": self.service_account, "restartPolicy": "Always" });
        if let Some(node) = &self.node {
            spec["nodeName"] = json!(node);
        }
        if self.host_network {
            spec["hostNetwork"] = json!(true);
        }
        if let Some(token) = &self.token_volume {
            spec["volumes"] = json!([{
                "name": token.name,
                "projected": { "sources": [{ "serviceAccountToken": {
                    "audience": token.audience,
                    "expirationSeconds": 86_400,
                    "path": token.path,
                } }] },
            }]);
            container["volumeMounts"] =
                json!([{ "name": token.name, "mountPath": volume::MOUNT_PATH, "readOnly": true }]);
            if self.is_injected {
                let uri = format!("http://{}{}", endpoint::ADDRESS_V4, endpoint::CREDENTIALS_PATH);
                let file = format!("{}/{}", volume::MOUNT_PATH, token.path);
                container["env"] = json!([
                    { "name": endpoint::FULL_URI_ENV, "value": uri },
                    { "name": endpoint::TOKEN_FILE_ENV, "value": file },
                ]);
            }
        }
        spec["containers"] = json!([container]);

        let mut status = json!({ "phase": self.phase });
        if let Some(first) = self.addresses.first() {
            status["podIP"] = json!(first);
            status["podIPs"] = self.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "uid": self.uid,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": spec,
            "status": status,
        })
    }
}
