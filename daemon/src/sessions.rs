//! Turns a pod and a role into the session to ask of STS.

use std::{
    cmp::Reverse,
    sync::{Arc, PoisonError, RwLock},
};

use foldhash::HashMap;
use rolecall_contract::{RoleArn, SessionDuration};

use crate::{
    credentials::{CredentialKey, Need, SessionNameTemplate, SessionNameValues, SessionRequest, Urgency},
    identity::PodUid,
    pods::{Change, Pod, Stage},
};

/// Makes session requests, and keeps those that are asked for again and again. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    /// The own sessions of the pods that the watch has shown; whoever follows it is the only writer.
    own: RwLock<HashMap<PodUid, Own>>,
}

#[derive(Debug)]
struct Own {
    pod: Arc<Pod>,
    request: Arc<SessionRequest>,
}

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
        Self(Arc::new(Shared { config, own: RwLock::default() }))
    }

    /// The session of `pod` in its own role; `None` where it has none that could be used.
    pub fn own(&self, pod: &Pod) -> Option<SessionRequest> {
        let role = pod.binding.role.as_ref()?.as_ref().ok()?;
        (!pod.finished && !pod.token_volumes.is_empty()).then(|| self.request(pod, role.clone()))
    }

    /// Has the own session of `pod` ready until the pod changes or is forgotten.
    pub fn prepare(&self, pod: &Arc<Pod>) {
        let request = self.own(pod).map(|request| Own { pod: pod.clone(), request: Arc::new(request) });
        let mut own = self.0.own.write().unwrap_or_else(PoisonError::into_inner);
        match request {
            Some(request) => own.insert(pod.uid().clone(), request),
            None => own.remove(pod.uid()),
        };
    }

    /// Forgets a pod that is finished or gone.
    pub fn forget(&self, pod: &PodUid) {
        self.0.own.write().unwrap_or_else(PoisonError::into_inner).remove(pod);
    }

    /// The session of `pod` in `role`: the one that is ready, or a new one.
    pub fn find(&self, pod: &Arc<Pod>, role: &RoleArn) -> Arc<SessionRequest> {
        let own = self.0.own.read().unwrap_or_else(PoisonError::into_inner);
        match own.get(pod.uid()) {
            Some(own) if Arc::ptr_eq(&own.pod, pod) && own.request.key.role == *role => own.request.clone(),
            Some(_) | None => {
                drop(own);
                Arc::new(self.request(pod, role.clone()))
            }
        }
    }

    /// The session of `pod` in `role`.
    fn request(&self, pod: &Pod, role: RoleArn) -> SessionRequest {
        let config = &self.0.config;
        let values = SessionNameValues {
            cluster: &config.cluster,
            namespace: &pod.identity.namespace,
            pod: &pod.identity.name,
            service_account: &pod.identity.service_account,
            node: &config.node,
        };
        SessionRequest {
            key: CredentialKey {
                pod: pod.uid().clone(),
                role,
                session_name: config.name.render(&values),
                duration: pod.binding.session_duration.unwrap_or(config.duration),
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
    use serde_json::{Value, json};

    use super::*;
    use crate::pods::object::PodObject;

    const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

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

    fn sessions() -> Sessions {
        Sessions::new(Config {
            name: SessionNameTemplate::default(),
            duration: SessionDuration::MIN,
            cluster: String::new(),
            node: "node".to_owned(),
        })
    }

    fn orders(annotations: Value) -> Arc<Pod> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": "u-1", "namespace": "shop", "name": "orders-0", "annotations": annotations},
            "spec": {"volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "sts.amazonaws.com", "path": "token"}},
            ]}}]},
        });
        Arc::new(Pod::read(&serde_json::from_value(object).unwrap(), "sts.amazonaws.com").unwrap())
    }

    #[test]
    fn the_own_session_is_made_once_and_is_what_would_be_made_anew() {
        let sessions = sessions();
        let pod = orders(json!({"rolecall.dev/role-arn": ROLE}));
        let role = ROLE.parse().unwrap();
        let anew = sessions.find(&pod, &role);
        sessions.prepare(&pod);
        let ready = sessions.find(&pod, &role);
        assert!(Arc::ptr_eq(&ready, &sessions.find(&pod, &role)));
        assert_eq!(ready.key, anew.key);
        sessions.forget(pod.uid());
        assert!(!Arc::ptr_eq(&ready, &sessions.find(&pod, &role)));
    }

    #[test]
    fn neither_a_changed_pod_nor_another_role_gets_what_was_ready() {
        let sessions = sessions();
        let before = orders(json!({"rolecall.dev/role-arn": ROLE}));
        sessions.prepare(&before);
        let other = "arn:aws:iam::111122223333:role/other".parse().unwrap();
        assert_eq!(sessions.find(&before, &other).key.role, other);
        let after = orders(json!({"rolecall.dev/role-arn": ROLE, "rolecall.dev/session-duration": "7200"}));
        let role = ROLE.parse().unwrap();
        assert_eq!(sessions.find(&after, &role).key.duration.as_seconds(), 7200);
        sessions.prepare(&after);
        assert_eq!(sessions.find(&after, &role).key.duration.as_seconds(), 7200);
    }
}
