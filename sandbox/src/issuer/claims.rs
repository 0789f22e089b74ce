//! What a ServiceAccount token says.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::{clock, ids};

/// The claims of a token that is bound to a pod, as Kubernetes 1.36 writes them.
///
/// All fields are open, so that a test can ask for a token that no cluster would sign.
#[derive(Debug, Clone)]
pub struct TokenClaims {
    /// Namespace of pod and ServiceAccount.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
    /// uid of the ServiceAccount.
    pub service_account_uid: String,
    /// Name of the pod the token is bound to.
    pub pod: String,
    /// uid of that pod.
    pub pod_uid: String,
    /// Name of the pod's node; clusters before 1.30 leave the claim out.
    pub node: Option<String>,
    /// uid of that node.
    pub node_uid: String,
    /// Who may accept the token.
    pub audiences: Vec<String>,
    /// `iat` and `nbf`.
    pub issued_at: SystemTime,
    /// Time from `iat` to `exp`.
    pub lifetime: Duration,
    /// Instead of the issuer's own URL.
    pub issuer: Option<String>,
    /// Instead of `system:serviceaccount:<namespace>:<service account>`.
    pub subject: Option<String>,
}

impl TokenClaims {
    /// A token for STS that is valid for a day from now, bound to a pod with a random uid.
    pub fn new(namespace: &str, service_account: &str, pod: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            service_account_uid: ids::uuid(),
            pod: pod.to_owned(),
            pod_uid: ids::uuid(),
            node: None,
            node_uid: ids::uuid(),
            audiences: vec![rolecall_contract::AUDIENCE.to_owned()],
            issued_at: clock::now(),
            lifetime: Duration::from_hours(24),
            issuer: None,
            subject: None,
        }
    }

    /// Binds the token to the pod with this uid.
    #[must_use]
    pub fn pod_uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.pod_uid);
        self
    }

    /// Names the pod's node.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Replaces the audiences.
    #[must_use]
    pub fn audiences(mut self, audiences: &[&str]) -> Self {
        self.audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
        self
    }

    /// Sets `iat` and `nbf`.
    #[must_use]
    pub fn issued_at(mut self, at: SystemTime) -> Self {
        self.issued_at = at;
        self
    }

    /// Sets the time from `iat` to `exp`.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// A token that expired a minute ago.
    #[must_use]
    pub fn expired(self) -> Self {
        let at = clock::now() - Duration::from_mins(11);
        self.issued_at(at).lifetime(Duration::from_mins(10))
    }

    /// Claims to come from another issuer than the one that signs.
    #[must_use]
    pub fn issuer(mut self, url: &str) -> Self {
        self.issuer = Some(url.to_owned());
        self
    }

    /// Claims another subject than the ServiceAccount.
    #[must_use]
    pub fn subject(mut self, subject: &str) -> Self {
        self.subject = Some(subject.to_owned());
        self
    }

    /// The token's payload.
    pub(super) fn payload(&self, issuer_url: &str) -> Value {
        let issued_at = clock::unix_seconds(self.issued_at);
        let subject = match &self.subject {
            Some(subject) => subject.clone(),
            None => format!("system:serviceaccount:{}:{}", self.namespace, self.service_account),
        };
        let mut kubernetes = json!({
            "namespace": self.namespace,
            "pod": { "name": self.pod, "uid": self.pod_uid },
            "serviceaccount": { "name": self.service_account, "uid": self.service_account_uid },
        });
        if let Some(node) = &self.node {
            kubernetes["node"] = json!({ "name": node, "uid": self.node_uid });
        }
        json!({
            "aud": self.audiences,
            "exp": issued_at + self.lifetime.as_secs(),
            "iat": issued_at,
            "iss": self.issuer.as_deref().unwrap_or(issuer_url),
            "jti": ids::uuid(),
            "kubernetes.io": kubernetes,
            "nbf": issued_at,
            "sub": subject,
        })
    }
}
