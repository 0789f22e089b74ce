//! What is done to each input, by the fuzzers and by the replay of what they have found.

use rolecall_contract::{RoleArn, endpoint};
use rolecall_shim::{
    binding::{ServiceAccountFacts, Sources, bind},
    config_map::{ConfigMapBindings, parse_config_map},
    identities::Identities,
    mutate::mutate,
    pod::PodView,
    policy::Policy,
    review,
    server::bodies,
};
use serde_json::Value;

/// The body of a review: what the API server's port lets in, up to the answer.
pub(crate) fn review(body: &[u8]) {
    let _ = bodies::weight(body);
    let review = match review::parse(body) {
        Ok(review) => review,
        Err(error) => {
            assert!(error.to_string().len() < 1024, "what was sent is not repeated at length");
            let _ = error.answer();
            return;
        }
    };
    // By both, so that what EKS's webhook injects is known as its own.
    let role =
        |prefix: &str| (format!("{prefix}/role-arn"), "arn:aws:iam::111122223333:role/orders".to_owned());
    let facts = ServiceAccountFacts { annotations: ["rolecall.dev", "eks.amazonaws.com"].map(role).into() };
    let (config_map, identities) = (ConfigMapBindings::default(), Identities::default());
    let sources = Sources { service_account: Some(&facts), config_map: &config_map, identities: &identities };
    let policy = Policy { take_over_irsa: true, pod_role_annotation_allowed: true, ..Policy::default() };
    let pass = |pod: &Value| {
        let view = PodView::new(pod);
        let decision = bind(review.namespace(), view.service_account(), view, sources, &policy);
        mutate(pod, review.namespace(), &decision, &policy, review.seed())
    };
    let mutation = pass(review.pod_json());
    let answer = review.answer(&mutation);
    assert!(serde_json::from_slice::<Value>(&answer).is_ok());
    if !review.is_pod_creation() {
        return;
    }
    let patch = serde_json::to_value(&mutation.patch).expect("a patch is JSON");
    let patch: json_patch::Patch = serde_json::from_value(patch).expect("a patch is one of RFC 6902");
    let mut patched = review.pod_json().clone();
    json_patch::patch(&mut patched, &patch).expect("the API server can apply it");
    assert_eq!(pass(&patched).patch, [], "a second pass has nothing to do");
}

/// The text of the ConfigMap after a line with a namespace and one with a ServiceAccount, which are looked up in it.
pub(crate) fn config_map(input: &[u8]) {
    let Ok(input) = std::str::from_utf8(input) else { return };
    let mut parts = input.splitn(3, '\n');
    let mut part = || parts.next().unwrap_or_default();
    let (namespace, service_account, text) = (part(), part(), part());
    if let Ok((bindings, errors)) = parse_config_map(text) {
        let _ = bindings.find(namespace, service_account);
        for error in errors {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A role as somebody wrote it.
pub(crate) fn role_arn(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(role) = text.parse::<RoleArn>() else { return };
    assert_eq!(role.as_str(), text);
    assert!(!role.name().is_empty() && role.account().len() == 12);
    if let Some(path) = endpoint::uri_path_of(text) {
        let named = endpoint::parse_path(&path);
        assert_eq!(named, Some(endpoint::PathRole::Named(text)));
    }
}
