use rolecall_contract::{RoleBinding, TokenRule};

use super::*;
use crate::{
    binding::{ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
};

const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

fn pass(pod: &Value, role: &str, seed: u64) -> Mutation {
    let annotations = [("rolecall.dev/role-arn".to_owned(), role.to_owned())].into();
    let facts = ServiceAccountFacts { annotations };
    let (config_map, identities) = (ConfigMapBindings::default(), Identities::default());
    let sources = Sources { service_account: Some(&facts), config_map: &config_map, identities: &identities };
    let policy = Policy::default();
    let decision = bind("shop", "orders", PodView::new(pod), sources, &policy);
    mutate(pod, "shop", &decision, &policy, seed)
}

fn apply(pod: &Value, mutation: &Mutation) -> Value {
    let patch: json_patch::Patch =
        serde_json::from_value(serde_json::to_value(&mutation.patch).unwrap()).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

/// A pod with so many bytes of annotations.
fn pod_with_annotations(length: usize) -> Value {
    json!({"metadata": {"annotations": {"k": "v".repeat(length - 1)}}, "spec": {"containers": [{"name": "main"}]}})
}

const MAX: usize = 262_144;
const TOKEN_LENGTH: usize = "rolecall.dev/token".len() + "required".len();
const ROLE_LENGTH: usize = "rolecall.dev/role-arn".len() + ROLE.len();

#[track_caller]
fn check_limit(length: usize, own_path: bool, rule: TokenRule, warnings: usize) {
    let pod = pod_with_annotations(length);
    let first = pass(&pod, ROLE, 0);
    let patched = apply(&pod, &first);
    let view = PodView::new(&patched);
    assert!(view.annotations_length() <= MAX, "{length}");
    assert_eq!(first.outcome, Outcome::InjectedContainer);
    assert_eq!(first.warnings.len(), warnings, "{:?}", first.warnings);
    let container = view.containers().next().unwrap();
    let uri = container.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap().value.unwrap();
    let expect = if own_path { "/v1/credentials".to_owned() } else { format!("/v1/credentials/{ROLE}") };
    assert_eq!(uri.strip_prefix("http://169.254.170.23"), Some(expect.as_str()), "{length}");
    let read = RoleBinding::from_annotations(|key| view.annotation(key));
    assert_eq!(read.role.is_some(), own_path, "{length}");
    assert_eq!(read.token, rule, "{length}");
    let second = pass(&patched, ROLE, 1);
    assert_eq!((second.patch, second.outcome), (Vec::new(), Outcome::AlreadyInjected));
}

#[test]
fn a_pod_at_the_limit_of_annotations_has_its_role_in_the_uri() {
    check_limit(MAX - TOKEN_LENGTH - ROLE_LENGTH, true, TokenRule::Required, 0);
    check_limit(MAX - TOKEN_LENGTH - ROLE_LENGTH + 1, false, TokenRule::Required, 1);
    check_limit(MAX - TOKEN_LENGTH, false, TokenRule::Required, 1);
    check_limit(MAX, false, TokenRule::Optional, 2);
}

#[test]
fn a_role_that_neither_annotation_nor_uri_can_carry_is_told() {
    let mutation = pass(&pod_with_annotations(MAX), "arn:aws:iam::111122223333:role/50%/orders", 0);
    assert_eq!((mutation.patch.len(), mutation.outcome), (0, Outcome::Conflict));
    let mutation = pass(&pod_with_annotations(1), &"x".repeat(3000), 0);
    assert_eq!((mutation.patch.len(), mutation.outcome), (0, Outcome::Conflict));
    assert_eq!(mutation.warnings.len(), 2);
}

#[test]
fn the_same_seed_gives_the_same_patch_and_another_one_another_lifetime() {
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "main"}]}});
    assert_eq!(pass(&pod, ROLE, 7), pass(&pod, ROLE, 7));
    assert_ne!(pass(&pod, ROLE, 7), pass(&pod, ROLE, 8));
}

#[test]
fn removals_and_changes_by_place_are_guarded() {
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "main", "env": [
        {"name": "HTTP_PROXY", "value": "p"}, {"name": "NO_PROXY"}, {"name": "no_proxy", "value": "x"},
    ]}]}});
    let patch = pass(&pod, ROLE, 0).patch;
    for (index, operation) in patch.iter().enumerate() {
        if let PatchOperation::Add { path, .. } = operation
            && path.ends_with("/value")
        {
            let guard = path.replace("/value", "/name");
            let is_guard =
                |o: &PatchOperation| matches!(o, PatchOperation::Test { path, .. } if *path == guard);
            assert!(is_guard(&patch[index - 1]), "{path}");
        }
    }
    assert_eq!(patch.iter().filter(|o| matches!(o, PatchOperation::Test { .. })).count(), 2);
}
