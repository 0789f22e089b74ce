//! Which pods a request is about: namespace and field selector.

use serde_json::Value;

/// A conjunction of conditions on fields.
#[derive(Debug, Default, Clone)]
pub(super) struct Selector(Vec<Condition>);

#[derive(Debug, Clone)]
struct Condition {
    field: Field,
    value: String,
    is_equal: bool,
}

/// The fields that pods can be selected by.
#[derive(Debug, Clone, Copy)]
enum Field {
    Name,
    Namespace,
    NodeName,
    Phase,
    PodIp,
}

impl Selector {
    /// Reads `spec.nodeName=a,status.phase!=Failed`; an error names the field that cannot be selected by.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .filter(|term| !term.is_empty())
            .map(Condition::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Narrows to one namespace.
    pub(super) fn in_namespace(mut self, namespace: &str) -> Self {
        self.0.push(Condition { field: Field::Namespace, value: namespace.to_owned(), is_equal: true });
        self
    }

    pub(super) fn matches(&self, pod: &Value) -> bool {
        self.0.iter().all(|condition| (condition.field.of(pod) == condition.value) == condition.is_equal)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Condition {
    fn parse(term: &str) -> Result<Self, String> {
        let (field, value, is_equal) = match (term.split_once("!="), term.split_once("==")) {
            (Some((field, value)), _) => (field, value, false),
            (None, Some((field, value))) => (field, value, true),
            (None, None) => {
                let (field, value) =
                    term.split_once('=').ok_or_else(|| format!("invalid field selector: {term}"))?;
                (field, value, true)
            }
        };
        let field = match field {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            "spec.nodeName" => Field::NodeName,
            "status.phase" => Field::Phase,
            "status.podIP" => Field::PodIp,
            _ => return Err(format!("field label not supported: {field}")),
        };
        Ok(Self { field, value: value.to_owned(), is_equal })
    }
}

impl Field {
    /// The field's value, empty where it is not set.
    fn of(self, pod: &Value) -> &str {
        let value = match self {
            Self::Name => &pod["metadata"]["name"],
            Self::Namespace => &pod["metadata"]["namespace"],
            Self::NodeName => &pod["spec"]["nodeName"],
            Self::Phase => &pod["status"]["phase"],
            Self::PodIp => &pod["status"]["podIP"],
        };
        value.as_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(selector: &str, expect: bool) {
        let pod = json!({
            "metadata": { "name": "orders", "namespace": "demo" },
            "spec": { "nodeName": "node-a" },
            "status": { "phase": "Running" },
        });
        assert_eq!(Selector::parse(selector).unwrap().matches(&pod), expect, "{selector}");
    }

    #[test]
    fn every_condition_must_hold() {
        check("", true);
        check("spec.nodeName=node-a", true);
        check("spec.nodeName==node-a", true);
        check("spec.nodeName!=node-a", false);
        check("spec.nodeName=node-b", false);
        check("spec.nodeName=node-a,status.phase!=Failed", true);
        check("spec.nodeName=node-a,status.phase=Failed", false);
        check("status.podIP=", true);
    }

    #[test]
    fn other_fields_cannot_be_selected_by() {
        assert!(Selector::parse("spec.image=x").unwrap_err().contains("spec.image"));
        assert!(Selector::parse("spec.nodeName").is_err());
    }
}
