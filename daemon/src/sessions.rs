//! Turns a pod and a role into the session to ask of STS.

use std::{cmp::Reverse, sync::Arc};

use rolecall_contract::{RoleArn, SessionDuration};

use crate::{
    credentials::{CredentialKey, Need, SessionNameTemplate, SessionNameValues, SessionRequest, Urgency},
    pods::{Change, Pod, Stage},
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
            urgency: urgency(pod),
        }
    }
}

/// Puts what was learned at once, in a list, into the order in which to act on it: who has left makes room, and of
/// those that are there the most urgent comes first: the worker begins with whatever it hears of first.
pub fn most_urgent_first(changes: &mut [Change]) {
    changes.sort_by_key(|change| match change {
        Change::Left(_) => (false, Reverse(Urgency::LEAST)),
        Change::Arrived(pod) | Change::Changed { after: pod, .. } => (true, Reverse(urgency(pod))),
    });
}

fn urgency(pod: &Pod) -> Urgency {
    let need = match pod.stage {
        Stage::Starting => Need::Starts,
        Stage::Running => Need::Runs,
        Stage::Terminating => Need::Leaves,
    };
    Urgency { need, created_at: pod.created_at }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::object::PodObject;

    fn pod(name: &str, phase: &str, created_at: &str, deleted_at: Option<&str>) -> Arc<Pod> {
        let object: PodObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": name, "namespace": "shop", "name": name,
                "creationTimestamp": created_at, "deletionTimestamp": deleted_at},
            "spec": {}, "status": {"phase": phase},
        }))
        .unwrap();
        Arc::new(Pod::read(&object, "sts.amazonaws.com").unwrap())
    }

    #[test]
    fn who_has_left_goes_first_and_then_who_is_about_to_ask_for_the_first_time() {
        let (monday, tuesday) = ("2026-11-16T00:00:00Z", "2026-11-17T00:00:00Z");
        let mut changes: Vec<Change> = [
            pod("drains", "Running", tuesday, Some(tuesday)),
            pod("runs", "Running", monday, None),
            pod("starts", "Pending", monday, None),
            pod("runs-younger", "Running", tuesday, None),
            pod("starts-younger", "Pending", tuesday, None),
        ]
        .map(Change::Arrived)
        .into();
        changes.push(Change::Left(pod("gone", "Pending", monday, None)));
        most_urgent_first(&mut changes);
        let order: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Arrived(pod) | Change::Left(pod) | Change::Changed { after: pod, .. } => {
                    pod.identity.name.to_string()
                }
            })
            .collect();
        assert_eq!(order, ["gone", "starts-younger", "starts", "runs-younger", "runs", "drains"]);
    }
}
