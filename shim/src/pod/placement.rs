//! Where a pod will run, as far as its own fields tell.

use serde_json::Value;

use super::{PodView, items};

/// Label that EKS puts on a pod of Fargate.
const FARGATE_PROFILE: &str = "eks.amazonaws.com/fargate-profile";

/// Node label of EKS that tells Fargate's nodes, and its value.
const COMPUTE_TYPE: (&str, &str) = ("eks.amazonaws.com/compute-type", "fargate");

/// Node labels that tell the operating system.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

impl PodView<'_> {
    /// Whether it can only run on Windows, by `spec.os.name`, node selector or required node affinity.
    pub fn is_windows(self) -> bool {
        self.at("/spec/os/name").and_then(Value::as_str) == Some("windows")
            || OS_LABELS.iter().any(|label| self.requires_node(label, "windows"))
    }

    /// Whether it runs on Fargate, where there are no DaemonSets.
    pub fn is_fargate(self) -> bool {
        self.label(FARGATE_PROFILE).is_some() || self.requires_node(COMPUTE_TYPE.0, COMPUTE_TYPE.1)
    }

    /// Whether every node that it may run on has this label with this value.
    pub fn requires_node(self, label: &str, value: &str) -> bool {
        let selected = self.at("/spec/nodeSelector").and_then(|selector| selector.get(label));
        if selected.and_then(Value::as_str) == Some(value) {
            return true;
        }
        let terms = self.at(
            "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
        );
        // One term is enough for a node, so each has to ask for it; and no term is met by no node.
        items(terms).next().is_some() && items(terms).all(|term| term_requires(term, label, value))
    }
}

fn term_requires(term: &Value, label: &str, value: &str) -> bool {
    items(term.get("matchExpressions")).any(|expression| {
        let text = |field| expression.get(field).and_then(Value::as_str);
        let values = || items(expression.get("values"));
        text("key") == Some(label)
            && text("operator") == Some("In")
            && values().next().is_some()
            && values().all(|allowed| allowed.as_str() == Some(value))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_windows(spec: Value, expect: bool) {
        assert_eq!(PodView::new(&json!({ "spec": spec })).is_windows(), expect, "{spec}");
    }

    fn affinity(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    fn os(operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": "kubernetes.io/os", "operator": operator, "values": values}]})
    }

    #[test]
    fn windows_is_known_by_selector_os_and_required_affinity() {
        check_windows(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), true);
        check_windows(json!({"nodeSelector": {"beta.kubernetes.io/os": "windows"}}), true);
        check_windows(json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), false);
        check_windows(json!({"os": {"name": "windows"}}), true);
        check_windows(json!({"os": {"name": "linux"}}), false);
        check_windows(affinity(json!([os("In", &["windows"])])), true);
        check_windows(affinity(json!([os("In", &["windows"]), os("In", &["windows"])])), true);
    }

    #[test]
    fn a_pod_that_may_also_run_elsewhere_is_not_a_windows_pod() {
        check_windows(affinity(json!([os("In", &["windows", "linux"])])), false);
        check_windows(affinity(json!([os("In", &["windows"]), os("In", &["linux"])])), false);
        check_windows(affinity(json!([os("NotIn", &["windows"])])), false);
        check_windows(affinity(json!([os("In", &[])])), false);
        check_windows(affinity(json!([])), false);
        let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 1, "preference": os("In", &["windows"])}]}}});
        check_windows(preferred, false);
    }

    #[test]
    fn fargate_is_known_by_its_label_and_by_its_nodes() {
        for (pod, expect) in [
            (json!({"metadata": {"labels": {"eks.amazonaws.com/fargate-profile": "default"}}}), true),
            (json!({"spec": {"nodeSelector": {"eks.amazonaws.com/compute-type": "fargate"}}}), true),
            (json!({"spec": {"nodeSelector": {"eks.amazonaws.com/compute-type": "ec2"}}}), false),
            (json!({}), false),
        ] {
            assert_eq!(PodView::new(&pod).is_fargate(), expect, "{pod}");
        }
    }
}
