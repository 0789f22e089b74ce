//! Proxies: the endpoint is on the node, and no proxy leads there.
//!
//! Some SDKs send the request for credentials, with the token in it, to the proxy of the environment.

use serde_json::{Value, json};

use crate::pod::ContainerView;

const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What it takes to keep an address from a container's proxy.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ProxyChange {
    /// Variables by their place, name and new value.
    pub(super) replaced: Vec<(usize, &'static str, String)>,
    pub(super) added: Vec<Value>,
    pub(super) warnings: Vec<String>,
}

/// Adds `address` to both spellings of the exceptions where a container sets a proxy.
///
/// Programs read the one or the other and not both, so a spelling that is missing gets the author's exceptions too.
pub(super) fn except(container: ContainerView<'_>, address: &str) -> ProxyChange {
    let mut change = ProxyChange::default();
    let is_set = |name: &&str| container.variable(name).is_some_and(|variable| variable.value != Some(""));
    if !PROXIES.iter().any(is_set) {
        return change;
    }
    let found = EXCEPTIONS.map(|name| container.variable(name));
    for (name, (this, other)) in EXCEPTIONS.into_iter().zip([(found[0], found[1]), (found[1], found[0])]) {
        match (this.map(|variable| (variable.index, variable.value)), other.map(|variable| variable.value)) {
            (Some((_, None)), _) => change.warnings.push(format!(
                "{name} comes from elsewhere and cannot be read here; see that it contains {address}"
            )),
            (Some((index, Some(value))), _) => {
                if let Some(value) = with(value, address) {
                    change.replaced.push((index, name, value));
                }
            }
            // What the other spelling says is not known, and its warning is enough.
            (None, Some(None)) => {}
            (None, Some(Some(value))) => {
                let value = with(value, address).unwrap_or_else(|| value.to_owned());
                change.added.push(json!({"name": name, "value": value}));
            }
            (None, None) => change.added.push(json!({"name": name, "value": address})),
        }
    }
    change
}

/// `exceptions` with `address`; `None` where it is among them.
fn with(exceptions: &str, address: &str) -> Option<String> {
    let mut entries = exceptions.split(|c: char| c == ',' || c.is_whitespace());
    if entries.any(|entry| entry == "*" || entry.eq_ignore_ascii_case(address)) {
        return None;
    }
    let kept = exceptions.trim_end().trim_end_matches(',');
    Some(if kept.is_empty() { address.to_owned() } else { format!("{kept},{address}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodView;

    const ADDRESS: &str = "169.254.170.23";

    #[track_caller]
    fn check(env: Value, replaced: &[(usize, &'static str, &str)], added: Value, warnings: usize) {
        let pod = json!({"spec": {"containers": [{"name": "main", "env": env}]}});
        let change = except(PodView::new(&pod).containers().next().unwrap(), ADDRESS);
        let expect: Vec<_> =
            replaced.iter().map(|(index, name, value)| (*index, *name, (*value).to_owned())).collect();
        assert_eq!(change.replaced, expect, "{env}");
        assert_eq!(Value::Array(change.added), added, "{env}");
        assert_eq!(change.warnings.len(), warnings, "{env}");
    }

    #[test]
    fn a_container_without_a_proxy_is_left_alone() {
        check(json!([]), &[], json!([]), 0);
        check(json!([{"name": "HTTP_PROXY", "value": ""}, {"name": "HTTPS_PROXY"}]), &[], json!([]), 0);
        check(json!([{"name": "NO_PROXY", "value": "a"}]), &[], json!([]), 0);
    }

    #[test]
    fn both_spellings_are_set_for_every_kind_of_proxy() {
        for name in PROXIES {
            let both =
                json!([{"name": "NO_PROXY", "value": ADDRESS}, {"name": "no_proxy", "value": ADDRESS}]);
            check(json!([{"name": name, "value": "http://proxy:3128"}]), &[], both.clone(), 0);
            check(json!([{"name": name, "valueFrom": {"secretKeyRef": {}}}]), &[], both, 0);
        }
    }

    #[test]
    fn a_missing_spelling_gets_the_exceptions_of_the_other() {
        let env = json!([{"name": "HTTP_PROXY", "value": "p"}, {"name": "no_proxy", "value": "a, b"}]);
        let added = json!([{"name": "NO_PROXY", "value": "a, b,169.254.170.23"}]);
        check(env, &[(1, "no_proxy", "a, b,169.254.170.23")], added, 0);
    }

    #[test]
    fn an_address_that_is_there_is_not_added_again() {
        for value in ["169.254.170.23", "a,169.254.170.23,b", "a 169.254.170.23", "*", " 169.254.170.23 "] {
            let env = json!([{"name": "HTTP_PROXY", "value": "p"},
                {"name": "NO_PROXY", "value": value}, {"name": "no_proxy", "value": value}]);
            check(env, &[], json!([]), 0);
        }
        // Not every program reads networks, so the address stands there too.
        let env = json!([{"name": "HTTP_PROXY", "value": "p"},
            {"name": "NO_PROXY", "value": "169.254.0.0/16,"}, {"name": "no_proxy", "value": "169.254.170.2"}]);
        let replaced = [
            (1, "NO_PROXY", "169.254.0.0/16,169.254.170.23"),
            (2, "no_proxy", "169.254.170.2,169.254.170.23"),
        ];
        check(env, &replaced, json!([]), 0);
    }

    #[test]
    fn exceptions_that_cannot_be_read_are_warned_of() {
        let env = json!([{"name": "HTTP_PROXY", "value": "p"}, {"name": "NO_PROXY", "valueFrom": {"configMapKeyRef": {}}}]);
        check(env, &[], json!([]), 1);
    }
}
