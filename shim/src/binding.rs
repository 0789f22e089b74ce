//! Which role a pod gets and how: the annotations, the ConfigMap, the identities and the policy, weighed.

mod binder;
mod lifetime;
mod role;

use std::collections::BTreeMap;

use rolecall_contract::SessionDuration;

use self::binder::Binder;
pub use self::{
    lifetime::{Lifetime, MAX_LIFETIME, MIN_LIFETIME},
    role::Role,
};
use crate::{
    config_map::ConfigMapBindings, identities::Identities, pod::PodView, policy::Policy,
    session_name::SessionName,
};

/// What is kept of a ServiceAccount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAccountFacts {
    /// Those that [`crate::annotations::is_relevant`] tells.
    pub annotations: BTreeMap<String, String>,
}

/// Where bindings come from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// `None` where it is not known (yet).
    pub service_account: Option<&'a ServiceAccountFacts>,
    pub config_map: &'a ConfigMapBindings,
    pub identities: &'a Identities,
}

/// What was decided for a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// `None` where nothing gives it a role.
    pub binding: Option<Binding>,
    /// What its author should know, each with its remedy.
    pub warnings: Vec<String>,
}

/// The role of a pod and how it gets credentials of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub method: Method,
    /// Of every container that has none of its own; `None` with [`Method::ContainerCredentials`], and where only
    /// single containers have roles.
    pub role: Option<Role>,
    /// Roles of single containers, by their names.
    pub container_roles: BTreeMap<String, Role>,
    /// Audience of the token.
    pub audience: String,
    pub lifetime: Lifetime,
    pub regional_sts: bool,
    /// Length of the daemon's sessions in seconds.
    pub session_duration: Option<SessionDuration>,
    /// The role that EKS's own webhook gives this ServiceAccount, as it is written there: how its injection is
    /// told from an author's own.
    pub eks_role: Option<String>,
    /// Whether an annotation of ours gives the role, which EKS's own webhook does not react to.
    pub is_ours: bool,
}

/// How a pod gets credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// From the daemon.
    Container {
        /// By the relative URI, for SDKs that know no other.
        relative: bool,
    },
    /// From STS.
    Irsa {
        /// Template of the session's name.
        session_name: Option<SessionName>,
    },
    /// From EKS Pod Identity or what stands in for it.
    ContainerCredentials,
}

/// Weighs what binds the pods of `service_account` in `namespace`, and what this `pod` adds to it.
pub fn bind(
    namespace: &str,
    service_account: &str,
    pod: PodView<'_>,
    sources: Sources<'_>,
    policy: &Policy,
) -> Decision {
    Binder::new(namespace, service_account, pod, sources, policy).decide()
}

#[cfg(test)]
mod tests;
