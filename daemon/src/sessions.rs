//! Turns a pod and a role into the session to ask of STS.

use std::sync::Arc;

use rolecall_contract::{RoleArn, SessionDuration};

use crate::{
    credentials::{CredentialKey, SessionNameTemplate, SessionNameValues, SessionRequest},
    pods::Pod,
};

/// Makes session requests. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<Config>);

/// What all sessions of this daemon have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub name: SessionNameTemplate,
    /// Length of a session where the pod does not say.
    pub duration: SessionDuration,
    pub cluster: String,
    pub node: String,
}

impl Sessions {
    pub fn new(config: Config) -> Self {
        Self(Arc::new(config))
    }

    /// The session of `pod` in its own role; `None` where it has none that could be used.
    pub fn own(&self, pod: &Pod) -> Option<SessionRequest> {
        let role = pod.binding.role.as_ref()?.as_ref().ok()?;
        (!pod.finished && !pod.token_volumes.is_empty()).then(|| self.request(pod, role.clone()))
    }

    /// The session of `pod` in `role`.
    pub fn request(&self, pod: &Pod, role: RoleArn) -> SessionRequest {
        let values = SessionNameValues {
            cluster: &self.0.cluster,
            namespace: &pod.identity.namespace,
            pod: &pod.identity.name,
            service_account: &pod.identity.service_account,
            node: &self.0.node,
        };
        SessionRequest {
            key: CredentialKey {
                pod: pod.uid().clone(),
                role,
                session_name: self.0.name.render(&values),
                duration: pod.binding.session_duration.unwrap_or(self.0.duration),
            },
            pod: pod.identity.clone(),
            volumes: pod.token_volumes.clone(),
        }
    }
}
