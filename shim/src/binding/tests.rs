use serde_json::{Map, Value, json};

use super::*;
use crate::{config_map::parse_config_map, identities::parse_identities};

/// Where somebody may have written a role, the first before the second.
const PLACES: [&str; 7] = [
    "ours on the pod",
    "compatible on the pod",
    "ours on the ServiceAccount",
    "identity",
    "compatible on the ServiceAccount",
    "ConfigMap key",
    "ConfigMap pattern",
];

/// The place that wins where exactly these are written.
fn winner(places: &[&str], policy: &Policy) -> Option<String> {
    let role = |place: &str| format!("arn:aws:iam::111122223333:role/{}", place.replace(' ', "-"));
    let annotations = |prefixes: [(&str, &str); 2]| -> Map<String, Value> {
        let written = prefixes.into_iter().filter(|(_, place)| places.contains(place));
        written.map(|(prefix, place)| (format!("{prefix}/role-arn"), json!(role(place)))).collect()
    };
    let pod = json!({"metadata": {"annotations": annotations([
        ("rolecall.dev", "ours on the pod"), ("eks.amazonaws.com", "compatible on the pod"),
    ])}});
    let facts = ServiceAccountFacts {
        annotations: annotations([
            ("rolecall.dev", "ours on the ServiceAccount"),
            ("eks.amazonaws.com", "compatible on the ServiceAccount"),
        ])
        .into_iter()
        .map(|(key, value)| (key, value.as_str().unwrap().to_owned()))
        .collect(),
    };
    let entries: Map<String, Value> = [("shop/orders", "ConfigMap key"), ("sh*/*", "ConfigMap pattern")]
        .into_iter()
        .filter(|(_, place)| places.contains(place))
        .map(|(key, place)| (key.to_owned(), json!({"RoleARN": role(place)})))
        .collect();
    let (config_map, _) = parse_config_map(&Value::Object(entries).to_string()).unwrap();
    let listed = if places.contains(&"identity") {
        json!([{"namespace": "shop", "serviceAccount": "orders"}])
    } else {
        json!([])
    };
    let identities = parse_identities(&json!({ "identities": listed }).to_string()).unwrap();
    let sources = Sources { service_account: Some(&facts), config_map: &config_map, identities: &identities };
    let binding = bind("shop", "orders", PodView::new(&pod), sources, policy).binding?;
    Some(match binding.role {
        None => "identity".to_owned(),
        Some(role) => role.as_str().rsplit('/').next().unwrap().replace('-', " "),
    })
}

/// Every set of places, 128 in all.
fn sets() -> impl Iterator<Item = Vec<&'static str>> {
    (0..1_usize << PLACES.len()).map(|set| {
        PLACES
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| set >> bit & 1 == 1)
            .map(|(_, place)| place)
            .collect()
    })
}

#[test]
fn the_first_place_in_the_order_of_precedence_wins() {
    let policy = Policy { pod_role_annotation_allowed: true, ..Policy::default() };
    for places in sets() {
        let expect = places.first().copied();
        assert_eq!(winner(&places, &policy).as_deref(), expect, "{places:?}");
    }
}

#[test]
fn what_a_pod_writes_does_not_count_unless_the_operator_allows_it() {
    for places in sets() {
        let expect = places.iter().copied().find(|place| !place.ends_with("on the pod"));
        assert_eq!(winner(&places, &Policy::default()).as_deref(), expect, "{places:?}");
    }
}

#[test]
fn without_a_compatibility_prefix_its_annotations_do_not_count() {
    let policy = Policy { compatibility_prefix: None, ..Policy::default() };
    for places in sets() {
        let counts = |place: &&&str| !place.ends_with("on the pod") && !place.starts_with("compatible");
        let expect = places.iter().find(counts).copied();
        assert_eq!(winner(&places, &policy).as_deref(), expect, "{places:?}");
    }
}
