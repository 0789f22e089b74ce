//! Which pods the API server asks about, as the webhook's own configuration says.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::admissionregistration::v1::MutatingWebhookConfiguration,
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Expression, Selector, SelectorExt};

/// The label by which the shipped configuration leaves a whole namespace out.
const LEFT_OUT: (&str, &str) = ("rolecall.dev/webhook", "disabled");

/// Labels, and their values.
pub(super) type Labels = BTreeMap<String, String>;

/// The selectors of a webhook configuration.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    webhooks: Vec<Selectors>,
}

#[derive(Debug, Clone)]
struct Selectors {
    namespace: Selector,
    object: Selector,
}

impl Scope {
    /// What the API server goes by. Conditions in CEL are not weighed.
    pub(super) fn of(configuration: MutatingWebhookConfiguration) -> Self {
        let webhooks = configuration.webhooks.unwrap_or_default().into_iter().map(|webhook| Selectors {
            namespace: selector(webhook.namespace_selector),
            object: selector(webhook.object_selector),
        });
        Self { webhooks: webhooks.collect() }
    }

    /// What the shipped configuration says of namespaces, for where the one in force is not to be read.
    pub(super) fn shipped() -> Self {
        let (key, value) = LEFT_OUT;
        let namespace = Expression::NotIn(key.to_owned(), [value.to_owned()].into()).into();
        Self { webhooks: vec![Selectors { namespace, object: Selector::default() }] }
    }

    /// Whether any pod of a namespace with these labels is asked about.
    pub(super) fn has_namespace(&self, namespace: &Labels) -> bool {
        self.webhooks.iter().any(|webhook| webhook.namespace.matches(namespace))
    }

    /// Whether a pod with these labels is asked about.
    pub(super) fn has_pod(&self, namespace: &Labels, pod: &Labels) -> bool {
        self.webhooks
            .iter()
            .any(|webhook| webhook.namespace.matches(namespace) && webhook.object.matches(pod))
    }
}

/// The API server stores no selector that is not one; were it so, pods had better be looked at.
fn selector(selector: Option<LabelSelector>) -> Selector {
    selector.and_then(|selector| selector.try_into().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn scope(webhooks: Value) -> Scope {
        Scope::of(serde_json::from_value(json!({"metadata": {}, "webhooks": webhooks})).unwrap())
    }

    fn webhook(namespaces: Value, objects: Value) -> Value {
        json!({
            "name": "pods.rolecall.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {},
            "namespaceSelector": namespaces, "objectSelector": objects,
        })
    }

    #[test]
    fn namespaces_are_left_out_by_any_selector_of_the_operators_own() {
        let is_not = |key: &str, values: &[&str]| json!({"key": key, "operator": "NotIn", "values": values});
        let own = scope(json!([webhook(
            json!({"matchExpressions": [is_not("a", &["off"]), is_not("kubernetes.io/metadata.name", &["x", "y"])]}),
            json!(null),
        )]));
        let is_in =
            |name: &str, label| own.has_namespace(&labels(&[("kubernetes.io/metadata.name", name), label]));
        assert!(is_in("shop", ("a", "on")) && !is_in("shop", ("a", "off")));
        assert!(!is_in("x", ("a", "on")) && !is_in("y", ("a", "on")));
        let chosen = scope(json!([webhook(json!({"matchLabels": {"team": "shop"}}), json!({}))]));
        assert!(chosen.has_namespace(&labels(&[("team", "shop")])));
        assert!(!chosen.has_namespace(&labels(&[])));
    }

    #[test]
    fn a_pod_is_asked_about_if_one_webhook_selects_it_and_its_namespace() {
        let by = |namespace: &str, pod: &str| {
            webhook(json!({"matchLabels": {"n": namespace}}), json!({"matchLabels": {"p": pod}}))
        };
        let two = scope(json!([by("a", "1"), by("b", "2")]));
        for (namespace, pod, is_asked) in
            [("a", "1", true), ("b", "2", true), ("a", "2", false), ("b", "1", false), ("c", "1", false)]
        {
            let (namespace, pod) = (labels(&[("n", namespace)]), labels(&[("p", pod)]));
            assert_eq!(two.has_pod(&namespace, &pod), is_asked, "{namespace:?} {pod:?}");
        }
        assert!(two.has_namespace(&labels(&[("n", "a")])) && !two.has_namespace(&labels(&[("n", "c")])));
        assert!(!scope(json!([])).has_pod(&labels(&[]), &labels(&[])), "nothing is asked at all");
        assert!(scope(json!([webhook(json!(null), json!(null))])).has_pod(&labels(&[]), &labels(&[])));
    }

    #[test]
    fn without_the_configuration_the_shipped_label_counts() {
        let shipped = Scope::shipped();
        assert!(!shipped.has_namespace(&labels(&[("rolecall.dev/webhook", "disabled")])));
        assert!(shipped.has_namespace(&labels(&[("rolecall.dev/webhook", "on")])));
        assert!(shipped.has_pod(&labels(&[]), &labels(&[("any", "label")])));
    }
}
