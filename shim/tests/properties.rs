//! What holds for every pod, whatever is in it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::HashMap;

use proptest::{option, prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};
use rolecall_shim::{
    binding::{Decision, Method, ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
    mutate::{Mutation, Outcome, mutate},
    patch::PatchOperation,
    pod::{PodView, projected_token},
    policy::{Mode, Policy},
};
use serde_json::{Map, Value, json};

const OUR_PATH: &str = "/var/run/secrets/rolecall.dev/serviceaccount";
const EKS_PATH: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

/// Any JSON, as a field that no one has heard of might hold.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec(("[a-z/~]{1,6}", inner), 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn object(fields: Vec<(&str, Option<Value>)>) -> Value {
    let there = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(there.collect())
}

/// A list that may be absent or null as well.
fn list(item: impl Strategy<Value = Value>, most: usize) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Value::Null)),
        6 => proptest::collection::vec(item, 0..=most).prop_map(|items| Some(Value::from(items))),
    ]
}

fn variable() -> impl Strategy<Value = Value> {
    let harmless = select(vec!["LOG", "AWS_REGION", "AWS_STS_REGIONAL_ENDPOINTS", "AWS_ACCESS_KEY_ID"]);
    let proxies = select(vec!["HTTP_PROXY", "https_proxy", "NO_PROXY", "no_proxy"]);
    let credentials = select(vec![
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    ]);
    let name = prop_oneof![3 => harmless, 3 => proxies, 2 => credentials];
    let value = prop_oneof![
        2 => "[a-z,. ]{0,6}".prop_map(|value| json!({"value": value})),
        1 => Just(json!({"value": ROLE})),
        1 => Just(json!({"value": format!("{OUR_PATH}/token")})),
        1 => Just(json!({"value": format!("{EKS_PATH}/token")})),
        1 => Just(json!({"value": "http://169.254.170.23/v1/credentials"})),
        1 => Just(json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})),
        1 => Just(json!({})),
    ];
    (name, value).prop_map(|(name, mut value)| {
        value["name"] = json!(name);
        value
    })
}

fn mount() -> impl Strategy<Value = Value> {
    let volume = select(vec!["data", "rolecall-token", "aws-iam-token", "my-token"]);
    let elsewhere = select(vec!["/data", "/var/run", "/var/run/secrets/rolecall.dev"]);
    let ours = select(vec![OUR_PATH, EKS_PATH, "/var/run/secrets/rolecall.dev/serviceaccount/x"]);
    let path = prop_oneof![2 => elsewhere, 1 => ours];
    (volume, path, option::weighted(0.2, Just("sub"))).prop_map(|(volume, path, sub_path)| {
        object(vec![
            ("name", Some(volume.into())),
            ("mountPath", Some(path.into())),
            ("subPath", sub_path.map(Value::from)),
        ])
    })
}

fn volume() -> impl Strategy<Value = Value> {
    let name = select(vec!["data", "rolecall-token", "aws-iam-token", "my-token"]);
    let source = prop_oneof![
        1 => Just(json!({"emptyDir": {}})),
        5 => (select(vec!["sts.amazonaws.com", "sts.amazonaws.com", "vault"]), select(vec!["token", "token", "tok"])).prop_map(
            |(audience, path)| json!({"projected": {"sources": [
                {"serviceAccountToken": {"audience": audience, "path": path}}]}}),
        ),
    ];
    (name, source).prop_map(|(name, mut volume)| {
        volume["name"] = json!(name);
        volume
    })
}

fn container() -> impl Strategy<Value = Value> {
    let name = select(vec!["main", "mesh", "logs"]);
    let env_from = option::weighted(0.2, Just(json!([{"configMapRef": {"name": "c"}}])));
    (name, list(variable(), 4), list(mount(), 2), env_from, anything()).prop_map(
        |(name, env, mounts, env_from, unknown)| {
            object(vec![
                ("name", Some(name.into())),
                ("env", env),
                ("volumeMounts", mounts),
                ("envFrom", env_from),
                ("unknownField", Some(unknown)),
            ])
        },
    )
}

fn annotations() -> impl Strategy<Value = Option<Value>> {
    let entry = (
        select(vec![
            "team",
            "rolecall.dev/role-arn",
            "rolecall.dev/token",
            "rolecall.dev/relative-uri",
            "rolecall.dev/skip-containers",
            "eks.amazonaws.com/skip-containers",
            "eks.amazonaws.com/token-expiration",
        ]),
        select(vec!["true", "optional", "logs", "mesh, logs", "900", ROLE]),
    );
    let some = proptest::collection::vec(entry, 0..3).prop_map(|entries| {
        Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect())
    });
    prop_oneof![1 => Just(None), 1 => Just(Some(Value::Null)), 4 => some.prop_map(Some)]
}

prop_compose! {
    fn pod()(
        annotations in annotations(),
        is_named in any::<bool>(),
        containers in list(container(), 3),
        init_containers in list(container(), 2),
        volumes in list(volume(), 3),
        os in option::weighted(0.1, Just(json!({"name": "windows"}))),
        unknown in anything(),
        unknown_metadata in anything(),
    ) -> Value {
        let name = if is_named { ("name", Some("orders-0".into())) } else { ("generateName", Some("orders-".into())) };
        let metadata = object(vec![name, ("annotations", annotations), ("managedFields", Some(unknown_metadata))]);
        let spec = object(vec![
            ("containers", containers),
            ("initContainers", init_containers),
            ("volumes", volumes),
            ("os", os),
            ("unknownField", Some(unknown)),
        ]);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }
}

prop_compose! {
    fn service_account()(
        role in prop_oneof![6 => Just(ROLE), 1 => select(vec!["orders", "arn:aws:iam::111122223333:role/50%/x", ""])],
        prefix in select(vec!["rolecall.dev", "eks.amazonaws.com"]),
        role_of_main in option::weighted(0.2, Just("arn:aws:iam::111122223333:role/main")),
        relative in option::weighted(0.2, Just("true")),
        mode in option::weighted(0.1, Just("irsa")),
    ) -> ServiceAccountFacts {
        let written = [
            Some((format!("{prefix}/role-arn"), role.to_owned())),
            role_of_main.map(|role| ("rolecall.dev/role-arn.main".to_owned(), role.to_owned())),
            relative.map(|value| ("rolecall.dev/relative-uri".to_owned(), value.to_owned())),
            mode.map(|value| ("rolecall.dev/mode".to_owned(), value.to_owned())),
        ];
        ServiceAccountFacts { annotations: written.into_iter().flatten().collect() }
    }
}

prop_compose! {
    fn policy(takes_over: bool)(
        region in option::of(Just("eu-central-1".to_owned())),
        sts_regional_endpoints in any::<bool>(),
        is_irsa in proptest::bool::weighted(0.25),
        take_over in any::<bool>(),
        pod_role_annotation_allowed in any::<bool>(),
        session_name in option::weighted(0.3, Just("{namespace}.{pod}")),
    ) -> Policy {
        Policy {
            default_mode: if is_irsa { Mode::Irsa } else { Mode::Container },
            region,
            sts_regional_endpoints,
            take_over_irsa: takes_over && take_over,
            pod_role_annotation_allowed,
            session_name: session_name.map(|template| template.parse().unwrap()),
            ..Policy::default()
        }
    }
}

fn pass(pod: &Value, facts: &ServiceAccountFacts, policy: &Policy, seed: u64) -> (Decision, Mutation) {
    let (config_map, identities) = (ConfigMapBindings::default(), Identities::default());
    let sources = Sources { service_account: Some(facts), config_map: &config_map, identities: &identities };
    PodView::new(pod).check().unwrap();
    let decision = bind("shop", "orders", PodView::new(pod), sources, policy);
    let mutation = mutate(pod, "shop", &decision, policy, seed);
    (decision, mutation)
}

fn apply(pod: &Value, patch: &[PatchOperation]) -> Value {
    let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch).unwrap()).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

/// Takes away from `patched` what the shim may add; what is left has to be the pod as it was.
fn without_what_was_added(patched: &Value, original: &Value) -> Value {
    match (patched, original) {
        (Value::Object(new), Value::Object(old)) => {
            let is_exception = |name: &Value| name == "NO_PROXY" || name == "no_proxy";
            let kept: Map<String, Value> = new
                .iter()
                .filter_map(|(key, value)| {
                    // An empty variable may have no value at all.
                    let before = old.get(key)?;
                    let is_changed_exception = key == "value"
                        && old.get("name").is_some_and(is_exception)
                        && value.as_str()?.starts_with(before.as_str()?.trim_end().trim_end_matches(','));
                    let is_our_note = key.starts_with("rolecall.dev/role-arn");
                    let value = if is_changed_exception || is_our_note {
                        before.clone()
                    } else {
                        without_what_was_added(value, before)
                    };
                    Some((key.clone(), value))
                })
                .collect();
            Value::Object(kept)
        }
        (Value::Array(new), Value::Array(old)) => {
            new.iter().zip(old).map(|(new, old)| without_what_was_added(new, old)).collect()
        }
        (Value::Array(_) | Value::Object(_), Value::Null) => Value::Null,
        (new, _) => new.clone(),
    }
}

/// What makes a container's injection whole: both variables, and the token where they say.
fn check_whole(before: &Value, after: &Value) {
    let (before, after) = (PodView::new(before), PodView::new(after));
    for container in after.containers() {
        let former = before.containers().find(|former| former.path() == container.path()).unwrap();
        let uri = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
        let added =
            uri.iter().filter(|name| former.variable(name).is_none() && container.variable(name).is_some());
        if added.count() == 0 {
            continue;
        }
        let there = uri.iter().filter(|name| container.variable(name).is_some());
        assert_eq!(there.count(), 1, "one URI and no other");
        assert!(container.variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_none(), "nothing that SDKs prefer");
        let token_file = container.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap().value.unwrap();
        let (path, file) = token_file.rsplit_once('/').unwrap();
        let mounts: Vec<_> = container.mounts().filter(|mount| mount.path == path).collect();
        assert!(!mounts.is_empty() && mounts.iter().all(|mount| !mount.has_sub_path));
        for mount in mounts {
            let (_, volume) = after.volume(mount.volume).unwrap();
            assert_eq!(projected_token(volume, file).unwrap().audience, Some("sts.amazonaws.com"));
        }
    }
}

/// A property that holds because nothing ever happens says nothing.
#[test]
fn the_pods_are_such_that_every_outcome_comes_about() {
    let mut runner = TestRunner::deterministic();
    let strategy = (pod(), service_account(), policy(true));
    let mut outcomes: HashMap<Outcome, usize> = HashMap::new();
    for _ in 0..1000 {
        let (pod, facts, policy) = strategy.new_tree(&mut runner).unwrap().current();
        *outcomes.entry(pass(&pod, &facts, &policy, 0).1.outcome).or_default() += 1;
    }
    let count = |outcome| outcomes.get(&outcome).copied().unwrap_or_default();
    assert!(200 <= count(Outcome::InjectedContainer), "{outcomes:?}");
    assert!(100 <= count(Outcome::InjectedIrsa), "{outcomes:?}");
    assert!(20 <= count(Outcome::Conflict) && 1 <= count(Outcome::RoleMalformed), "{outcomes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_shim_does_not_know_survives(
        pod in pod(), facts in service_account(), policy in policy(false), seed: u64,
    ) {
        let (_, mutation) = pass(&pod, &facts, &policy, seed);
        let patched = apply(&pod, &mutation.patch);
        prop_assert_eq!(without_what_was_added(&patched, &pod), pod);
    }

    #[test]
    fn a_second_pass_changes_nothing(
        pod in pod(), facts in service_account(), policy in policy(true), seeds: (u64, u64),
    ) {
        let (_, first) = pass(&pod, &facts, &policy, seeds.0);
        let patched = apply(&pod, &first.patch);
        let (_, second) = pass(&patched, &facts, &policy, seeds.1);
        prop_assert_eq!(second.patch, Vec::new());
    }

    #[test]
    fn a_patch_that_changes_nothing_is_none(
        pod in pod(), facts in service_account(), policy in policy(true), seed: u64,
    ) {
        let (_, mutation) = pass(&pod, &facts, &policy, seed);
        prop_assert_eq!(mutation.patch.is_empty(), apply(&pod, &mutation.patch) == pod);
    }

    #[test]
    fn no_container_is_half_injected(
        pod in pod(), facts in service_account(), policy in policy(true), seed: u64,
    ) {
        let (_, mutation) = pass(&pod, &facts, &policy, seed);
        check_whole(&pod, &apply(&pod, &mutation.patch));
    }

}

proptest! {
    // Most pods are of no use here, and thrown away.
    #![proptest_config(ProptestConfig {
        cases: 300,
        max_global_rejects: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_sidecar_that_comes_later_is_injected_and_nothing_else_is_touched(
        pod in pod(), facts in service_account(), policy in policy(false), seed: u64,
    ) {
        let (decision, first) = pass(&pod, &facts, &policy, seed);
        prop_assume!(first.outcome == Outcome::InjectedContainer);
        let binding = decision.binding.unwrap();
        let mut patched = apply(&pod, &first.patch);
        prop_assume!(binding.role.is_some_and(|role| role.error().is_none()) && patched["spec"]["containers"].is_array());
        patched["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar", "image": "x"}));
        let (_, second) = pass(&patched, &facts, &policy, seed);
        let again = apply(&patched, &second.patch);
        let sidecar = PodView::new(&again).containers().last().unwrap();
        let name = match binding.method {
            Method::Container { relative: true } => "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            _ => "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        };
        prop_assert!(sidecar.variable(name).is_some());
        let place = format!("{}/", sidecar.path());
        for operation in &second.patch {
            match operation {
                PatchOperation::Add { path, .. } => prop_assert!(path.starts_with(&place) || path == "/spec/volumes/-", "{}", path),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
