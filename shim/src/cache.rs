//! What is known of the cluster: ServiceAccounts, the ConfigMap's bindings, the file's identities.

mod answers;
pub mod bindings;
pub mod identities;
pub mod latest;
pub mod lookup;
pub mod pace;
pub mod service_accounts;

use std::time::Duration;

use self::{latest::Latest, lookup::Lookup};
use crate::{
    binding::{Decision, ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
    pod::PodView,
    policy::Policy,
};

/// Everything that bindings are decided from. Cloning is cheap.
#[derive(Clone)]
pub struct Known {
    pub service_accounts: Lookup,
    pub config_map: Latest<ConfigMapBindings>,
    pub identities: Latest<Identities>,
}

impl Known {
    /// Decides for a pod that is being created. Its ServiceAccount may be so new that it is waited for, up to
    /// `patience`.
    pub async fn decide(
        &self,
        namespace: &str,
        pod: PodView<'_>,
        policy: &Policy,
        patience: Duration,
    ) -> Decision {
        let name = pod.service_account();
        let found = self.service_accounts.find(namespace, name, patience).await;
        let mut decision = self.weigh(namespace, pod, found.as_ref(), policy);
        if found.is_none() {
            decision.warnings.push(format!(
                "ServiceAccount {name} is not known here, so its annotations did not count; if it is there by now, \
                 delete the pod so that it is made anew"
            ));
        }
        decision
    }

    /// Decides by what is known now, without waiting.
    #[must_use]
    pub fn decide_now(&self, namespace: &str, pod: PodView<'_>, policy: &Policy) -> Decision {
        let found = self.service_accounts.known(namespace, pod.service_account());
        self.weigh(namespace, pod, found.as_ref(), policy)
    }

    fn weigh(
        &self,
        namespace: &str,
        pod: PodView<'_>,
        service_account: Option<&ServiceAccountFacts>,
        policy: &Policy,
    ) -> Decision {
        let (config_map, identities) = (self.config_map.get(), self.identities.get());
        let sources = Sources { service_account, config_map: &config_map, identities: &identities };
        bind(namespace, pod.service_account(), pod, sources, policy)
    }
}
