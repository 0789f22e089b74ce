//! Pods in and pods out: the cases of `testdata/golden`, one file each.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "golden/case.rs"]
mod case;

use std::{fs, path::Path};

use rolecall_contract::{RoleBinding, TokenRule, annotation};
use rolecall_shim::{
    binding::{Decision, Method, Role, ServiceAccountFacts, Sources, bind},
    config_map::parse_config_map,
    identities::parse_identities,
    mutate::{Mutation, Outcome, mutate},
    patch::PatchOperation,
    pod::PodView,
    policy::Policy,
};
use serde_json::{Value, json};

use self::case::Case;

/// Every file, with its name.
fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden");
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let case = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, case)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

fn decide(case: &Case, policy: &Policy, pod: &Value) -> (Decision, Mutation) {
    let facts = case
        .service_account
        .as_ref()
        .map(|account| ServiceAccountFacts { annotations: account.annotations.clone() });
    let (config_map, errors) = parse_config_map(&Value::Object(case.config_map.clone()).to_string()).unwrap();
    assert_eq!(errors, [], "the cases of malformed entries are tests of the parser");
    let identities = parse_identities(&json!({ "identities": case.identities }).to_string()).unwrap();
    let sources =
        Sources { service_account: facts.as_ref(), config_map: &config_map, identities: &identities };
    let view = PodView::new(pod);
    view.check().unwrap();
    let decision = bind(&case.namespace, view.service_account(), view, sources, policy);
    let mutation = mutate(pod, &case.namespace, &decision, policy, case.seed);
    (decision, mutation)
}

fn apply(pod: &Value, patch: &[PatchOperation]) -> Value {
    let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch).unwrap()).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

/// Where to look when a case fails: the whole of what came out.
fn keep(name: &str, actual: &Value) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, serde_json::to_string_pretty(actual).unwrap()).unwrap();
    file.display().to_string()
}

#[test]
fn every_pod_comes_out_as_written() {
    let mut failed = Vec::new();
    for (name, case) in cases() {
        let (_, mutation) = decide(&case, &case.policy.build(), &case.pod);
        let pod = apply(&case.pod, &mutation.patch);
        let expect = case.expect.pod.as_ref().unwrap_or(&case.pod);
        let is_right = mutation.outcome.as_str() == case.expect.outcome
            && mutation.warnings == case.expect.warnings
            && pod == *expect;
        if !is_right {
            let shown_pod = if pod == case.pod { Value::Null } else { pod };
            let actual = json!({
                "outcome": mutation.outcome.as_str(), "warnings": mutation.warnings, "pod": shown_pod,
            });
            failed.push(format!("{name}: {}\n  see {}", case.describe, keep(&name, &actual)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn there_are_enough_cases_and_every_outcome_is_among_them() {
    let cases = cases();
    assert!(60 <= cases.len(), "{}", cases.len());
    // The last two are decided before there is a pod to decide on.
    for outcome in Outcome::ALL.into_iter().filter(|o| !matches!(o, Outcome::NotAPod | Outcome::Denied)) {
        let has = cases.iter().any(|(_, case)| case.expect.outcome == outcome.as_str());
        assert!(has, "{}", outcome.as_str());
    }
}

#[test]
fn a_second_pass_finds_nothing_to_do() {
    for (name, case) in cases() {
        let policy = case.policy.build();
        let (_, first) = decide(&case, &policy, &case.pod);
        let pod = apply(&case.pod, &first.patch);
        let (_, second) = decide(&case, &policy, &pod);
        assert_eq!(second.patch, [], "{name}");
        if !first.patch.is_empty() && first.outcome != Outcome::RoleMalformed {
            assert_eq!(second.outcome, Outcome::AlreadyInjected, "{name}");
        }
    }
}

/// A patch of whole lists would take with it whatever the shim does not know.
#[test]
fn no_patch_touches_what_is_there_but_the_values_it_must_change() {
    let is_allowed = |path: &str, pod: &Value| {
        let is_new = pod.pointer(path).is_none_or(Value::is_null);
        let is_exception = path.contains("/env/") && path.ends_with("/value");
        let is_annotation = path.starts_with("/metadata/annotations/rolecall.dev~1");
        path.ends_with("/-") || is_new || is_exception || is_annotation
    };
    for (name, case) in cases() {
        let (_, mutation) = decide(&case, &case.policy.build(), &case.pod);
        for operation in &mutation.patch {
            match operation {
                PatchOperation::Add { path, .. } | PatchOperation::Replace { path, .. } => {
                    assert!(is_allowed(path, &case.pod), "{name}: {path}");
                }
                PatchOperation::Remove { .. } => assert!(case.policy.build().take_over_irsa, "{name}"),
                PatchOperation::Test { .. } => {}
            }
        }
    }
}

#[test]
fn the_daemon_reads_what_the_shim_wrote() {
    for (name, case) in cases() {
        let (decision, mutation) = decide(&case, &case.policy.build(), &case.pod);
        if mutation.outcome != Outcome::InjectedContainer {
            continue;
        }
        let pod = apply(&case.pod, &mutation.patch);
        let view = PodView::new(&pod);
        let read = RoleBinding::from_annotations(|key| view.annotation(key));
        let binding = decision.binding.unwrap();
        let is_at_limit = mutation.warnings.iter().any(|warning| warning.contains("at the limit"));
        if !is_at_limit && let Some(Role::Arn(role)) = &binding.role {
            assert_eq!(read.role, Some(Ok(role.clone())), "{name}");
        }
        let author_has_a_rule = PodView::new(&case.pod).annotation(annotation::TOKEN).is_some();
        if !is_at_limit && !author_has_a_rule {
            let relative = binding.method == Method::Container { relative: true };
            let rule = if relative { TokenRule::Optional } else { TokenRule::Required };
            assert_eq!(read.token, rule, "{name}");
        }
        if binding.session_duration.is_some() {
            assert_eq!(read.session_duration, binding.session_duration, "{name}");
        }
    }
}

#[test]
fn every_warning_fits_into_what_the_api_server_shows() {
    for (name, case) in cases() {
        for warning in &case.expect.warnings {
            // What stands before it: "rolecall: <namespace>/<pod>: ".
            assert!(warning.chars().count() <= 210, "{name}: {} {warning}", warning.chars().count());
        }
    }
}
