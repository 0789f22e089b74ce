//! What a MutatingWebhookConfiguration publishes of our authorities, and the patch that puts it right.

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
};
use serde_json::{Value, json};

use super::{
    super::{
        bundle::{self, Bundle, Standing},
        stored::Authority,
    },
    SelfManagedConfig,
};

/// The webhooks of the configuration that lead to the shim, each with what it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    resource_version: Option<String>,
    webhooks: Vec<(String, Vec<u8>)>,
}

impl Published {
    pub(super) fn of(configuration: &MutatingWebhookConfiguration, config: &SelfManagedConfig) -> Self {
        let webhooks = configuration.webhooks.iter().flatten();
        let webhooks = webhooks.filter(|webhook| is_ours(webhook, config)).map(|webhook| {
            let bundle = webhook.client_config.ca_bundle.clone().unwrap_or_default();
            (webhook.name.clone(), bundle.0)
        });
        Self {
            resource_version: configuration.metadata.resource_version.clone(),
            webhooks: webhooks.collect(),
        }
    }

    /// Whether the configuration has no webhook that leads to the shim.
    pub(super) fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    /// That of the webhook which stands worst. A configuration without a webhook of ours has nothing to mend.
    pub(super) fn standing(&self, required: &[Authority]) -> Standing {
        let standings = self.webhooks.iter().map(|(_, pem)| Bundle::read(pem).standing(required));
        standings.fold(Standing::Exact, |worst, one| match (worst, one) {
            (Standing::Less, _) | (_, Standing::Less) => Standing::Less,
            (Standing::More, _) | (_, Standing::More) => Standing::More,
            (Standing::Exact, Standing::Exact) => Standing::Exact,
        })
    }

    /// Whether every webhook of ours trusts `authority`, and there is one.
    pub(super) fn trusts(&self, authority: &Authority) -> bool {
        let trusts = |(_, pem): &(String, Vec<u8>)| Bundle::read(pem).contains(&authority.facts.der);
        !self.webhooks.is_empty() && self.webhooks.iter().all(trusts)
    }

    /// A strategic merge patch against the version that was read. With `keep_more`, what is there and can be read
    /// stays beside what is required.
    pub(super) fn patch(&self, required: &[Authority], keep_more: bool) -> Value {
        let required_pem = bundle::to_pem(required);
        let webhooks: Vec<Value> = self
            .webhooks
            .iter()
            .map(|(name, pem)| {
                let mut all = required_pem.clone();
                if keep_more && Bundle::read(pem).standing(&[]) == Standing::More {
                    // A certificate that is there twice does no harm, and goes once things have settled.
                    all.extend_from_slice(pem);
                }
                json!({"name": name, "clientConfig": {"caBundle": ByteString(all)}})
            })
            .collect();
        json!({"metadata": {"resourceVersion": self.resource_version}, "webhooks": webhooks})
    }
}

/// A configuration may hold webhooks of others. One that is called by URL is ours: the operator named this
/// configuration to us.
fn is_ours(webhook: &MutatingWebhook, config: &SelfManagedConfig) -> bool {
    webhook
        .client_config
        .service
        .as_ref()
        .is_none_or(|service| service.name == config.service && service.namespace == config.namespace)
}
