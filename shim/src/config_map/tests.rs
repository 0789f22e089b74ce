use proptest::prelude::*;

use super::*;

#[track_caller]
fn check_key(keys: &[&str], of: (&str, &str), expect: Option<&str>) {
    let entries: Map<String, Value> =
        keys.iter().map(|key| ((*key).to_owned(), serde_json::json!({"RoleARN": "r"}))).collect();
    let (bindings, errors) = parse_config_map(&Value::Object(entries).to_string()).unwrap();
    assert_eq!(errors, []);
    assert_eq!(bindings.find(of.0, of.1).map(|entry| entry.key.as_str()), expect, "{keys:?}");
}

#[test]
fn the_most_specific_key_wins_in_whatever_order_they_stand() {
    let ranked = [
        "test-a/orders",
        "test-a/ord*",
        "test-a/*",
        "test-?/orders",
        "test-*/orders",
        "test-*/ord*",
        "test-*/o*",
        "test-*/*",
        "te*/orders",
        "*/orders",
        "*/*",
    ];
    for best in 0..ranked.len() {
        let mut keys = ranked[best..].to_vec();
        check_key(&keys, ("test-a", "orders"), Some(ranked[best]));
        keys.reverse();
        check_key(&keys, ("test-a", "orders"), Some(ranked[best]));
    }
    check_key(&ranked[..10], ("prod", "carts"), None);
}

#[test]
fn equal_patterns_are_decided_by_fewer_stars_and_then_by_the_alphabet() {
    check_key(&["*a*/sa", "a*/sa"], ("ab-a", "sa"), Some("a*/sa"));
    check_key(&["a*/sa", "*b/sa"], ("ab", "sa"), Some("*b/sa"));
}

#[test]
fn a_pattern_does_not_cross_the_slash() {
    check_key(&["shop*/sa"], ("shop", "x/sa"), None);
    check_key(&["*/sa"], ("shop", "sa"), Some("*/sa"));
}

#[test]
fn an_entry_has_the_keys_of_the_eks_webhook() {
    let text = r#"{"shop/orders":{"RoleARN":" arn:aws:iam::111122223333:role/orders ","Audience":"aud",
        "UseRegionalSTS":true,"TokenExpiration":3600},
        "shop/carts":{"rolearn":"carts","audience":"","TokenExpiration":0,"UseRegionalSTS":null,"Comment":"x"}}"#;
    let (bindings, errors) = parse_config_map(text).unwrap();
    assert_eq!(errors, []);
    let orders = bindings.find("shop", "orders").unwrap();
    assert_eq!(orders.role_arn, "arn:aws:iam::111122223333:role/orders");
    assert_eq!(
        (orders.audience.as_deref(), orders.use_regional_sts, orders.token_expiration),
        (Some("aud"), Some(true), Some(3600))
    );
    let carts = bindings.find("shop", "carts").unwrap();
    assert_eq!(carts.role_arn, "carts");
    assert_eq!((&carts.audience, carts.use_regional_sts, carts.token_expiration), (&None, None, None));
}

#[test]
fn a_malformed_entry_is_told_by_name_and_leaves_the_others_alone() {
    let text = r#"{
        "good/sa": {"RoleARN": "r"},
        "noslash": {"RoleARN": "r"},
        "/sa": {"RoleARN": "r"},
        "ns/": {"RoleARN": "r"},
        "a/b/c": {"RoleARN": "r"},
        "[ab]/sa": {"RoleARN": "r"},
        "ns/null": null,
        "ns/text": "arn",
        "ns/norole": {},
        "ns/number": {"RoleARN": 7},
        "ns/bool": {"RoleARN": "r", "UseRegionalSTS": "true"},
        "ns/float": {"RoleARN": "r", "TokenExpiration": 1.5}
    }"#;
    let (bindings, mut errors) = parse_config_map(text).unwrap();
    assert_eq!(bindings.len(), 1);
    assert!(bindings.find("good", "sa").is_some());
    errors.sort_by(|a, b| a.key.cmp(&b.key));
    let told: Vec<_> = errors.iter().map(|e| (e.key.as_str(), e.mistake.clone())).collect();
    assert_eq!(
        told,
        [
            ("/sa", Mistake::Key),
            ("[ab]/sa", Mistake::Pattern),
            ("a/b/c", Mistake::Pattern),
            ("noslash", Mistake::Key),
            ("ns/", Mistake::Key),
            ("ns/bool", Mistake::WrongKind("UseRegionalSTS")),
            ("ns/float", Mistake::WrongKind("TokenExpiration")),
            ("ns/norole", Mistake::NoRole),
            ("ns/null", Mistake::NotAnObject),
            ("ns/number", Mistake::WrongKind("RoleARN")),
            ("ns/text", Mistake::NotAnObject),
        ]
    );
}

#[test]
fn a_text_that_is_no_object_is_refused_as_a_whole_and_an_empty_one_binds_nothing() {
    for text in ["[]", "{", "null", "shop/orders: r"] {
        assert!(parse_config_map(text).is_err(), "{text}");
    }
    assert!(parse_config_map(" \n").unwrap().0.is_empty());
}

#[test]
fn an_entry_that_became_malformed_keeps_what_it_said_last() {
    let former = parse_config_map(
        r#"{"a/sa":{"RoleARN":"old-a"},"b*/sa":{"RoleARN":"old-b"},"c/sa":{"RoleARN":"old-c"}}"#,
    );
    let now = parse_config_map(r#"{"a/sa":{"RoleARN":1},"b*/sa":null,"*/sa":{"RoleARN":"new"},"d/sa":null}"#);
    let (former, (bindings, errors)) = (former.unwrap().0, now.unwrap());
    let bindings = bindings.keeping_last_good(&former, &errors);
    let role = |namespace| bindings.find(namespace, "sa").map(|entry| entry.role_arn.as_str());
    assert_eq!(role("a"), Some("old-a"));
    assert_eq!(role("bb"), Some("old-b"), "it is more specific than the star");
    assert_eq!(role("c"), Some("new"), "an entry that was taken away is gone");
    assert_eq!(role("d"), Some("new"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse_config_map(&text);
    }

    #[test]
    fn no_entry_panics(key in "\\PC{0,20}", role in "\\PC{0,20}", expiration in any::<i64>()) {
        let text = serde_json::json!({key: {"RoleARN": role, "TokenExpiration": expiration}}).to_string();
        let (bindings, errors) = parse_config_map(&text).unwrap();
        prop_assert_eq!(bindings.len() + errors.len(), 1);
    }
}
