use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{mutate::Outcome, patch::PatchOperation};

fn question(extra: Value) -> Value {
    let mut question = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r-1", "operation": "CREATE", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {"metadata": {"generateName": "orders-"}, "spec": {"serviceAccountName": "orders"}},
            "oldObject": null, "dryRun": false, "userInfo": {"username": "x"},
        },
    });
    for (path, value) in extra.as_object().unwrap() {
        let (parent, key) = path.rsplit_once('/').unwrap();
        question.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    question
}

fn read(extra: Value) -> Result<Review, ReviewError> {
    parse(&serde_json::to_vec(&question(extra)).unwrap())
}

fn answer(review: &Review, mutation: &Mutation) -> Value {
    serde_json::from_slice(&review.answer(mutation)).unwrap()
}

fn mutation(patch: Vec<PatchOperation>, warnings: &[&str]) -> Mutation {
    let warnings = warnings.iter().map(|text| (*text).to_owned()).collect();
    Mutation { patch, warnings, outcome: Outcome::InjectedContainer }
}

#[test]
fn the_answer_has_the_version_and_the_uid_of_the_question() {
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let review = read(json!({"/apiVersion": version})).unwrap();
        let expect = json!({"apiVersion": version, "kind": "AdmissionReview",
            "response": {"uid": "r-1", "allowed": true}});
        assert_eq!(answer(&review, &mutation(Vec::new(), &[])), expect);
    }
}

#[test]
fn a_patch_and_warnings_are_part_of_the_answer() {
    let review = read(json!({})).unwrap();
    let patch = vec![PatchOperation::Add { path: "/spec/volumes".to_owned(), value: json!([]) }];
    let response = &answer(&review, &mutation(patch, &["mind the gap"]))["response"];
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    assert_eq!(patch, br#"[{"op":"add","path":"/spec/volumes","value":[]}]"#);
    assert_eq!(response["warnings"], json!(["rolecall: shop/orders-…: mind the gap"]));
}

#[test]
fn warnings_beyond_what_the_api_server_keeps_are_counted() {
    let review = read(json!({})).unwrap();
    let of = |count: usize| {
        let long = "w".repeat(200);
        let answer = answer(&review, &mutation(Vec::new(), &vec![long.as_str(); count]));
        let warnings = answer["response"]["warnings"].as_array().unwrap().clone();
        let texts: Vec<String> = warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect();
        assert!(texts.iter().map(|text| text.chars().count()).sum::<usize>() <= MAX_WARNINGS);
        texts
    };
    assert_eq!(of(18).len(), 18);
    for count in [19, 40, 10_000] {
        let texts = of(count);
        let left_out = count + 1 - texts.len();
        let (last, kept) = texts.split_last().unwrap();
        assert!(kept.iter().all(|text| text.ends_with("www")));
        assert!(last.contains(&format!(": {left_out} more warnings")), "{last}");
    }
}

#[test]
fn a_warning_keeps_its_remedy_however_long_the_names_are() {
    let name = "a".repeat(253);
    let review =
        read(json!({"/request/namespace": "n".repeat(63), "/request/object/metadata/name": name})).unwrap();
    let warning = format!("{}; do this", "w".repeat(180));
    let answer = answer(&review, &mutation(Vec::new(), &[&warning]));
    let text = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(
        text.chars().count() <= MAX_WARNING
            && text.ends_with("; do this")
            && text.starts_with("rolecall: nnn")
    );
}

#[test]
fn what_a_review_calls_a_pod_is_cut() {
    let endless = "x\n".repeat(100_000);
    let review = read(json!({"/request/object/metadata/name": endless})).unwrap();
    assert!(review.pod().shown_name().len() < 300 && !review.pod().shown_name().contains('\n'));
    let mistake = read(json!({
        "/request/object/metadata/name": endless, "/request/namespace": endless, "/request/object/spec": 1
    }));
    assert!(mistake.unwrap_err().to_string().len() < 1000);
}

#[test]
fn the_namespace_is_the_requests_and_then_the_pods() {
    assert_eq!(read(json!({})).unwrap().namespace(), "shop");
    let of_pod = json!({"/request/namespace": null, "/request/object/metadata/namespace": "other"});
    assert_eq!(read(of_pod).unwrap().namespace(), "other");
    assert_eq!(read(json!({})).unwrap().service_account(), "orders");
    assert_eq!(
        read(json!({"/request/object/spec/serviceAccountName": ""})).unwrap().service_account(),
        "default"
    );
}

#[test]
fn only_the_creation_of_a_pod_is_ours() {
    for (extra, expect) in [
        (json!({}), true),
        (json!({"/request/subResource": ""}), true),
        (json!({"/request/operation": "UPDATE"}), false),
        (json!({"/request/subResource": "ephemeralcontainers"}), false),
        (json!({"/request/resource/resource": "deployments"}), false),
        (json!({"/request/resource/group": "metrics.k8s.io"}), false),
        (json!({"/request/operation": "DELETE", "/request/object": null}), false),
    ] {
        assert_eq!(read(extra.clone()).unwrap().is_pod_creation(), expect, "{extra}");
    }
}

#[test]
fn a_pod_that_is_none_is_refused_by_name() {
    let error = read(json!({"/request/object/spec/containers": {"name": "main"}})).unwrap_err();
    let answer: Value = serde_json::from_slice(&error.answer().unwrap()).unwrap();
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["uid"], "r-1");
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("pod orders-… in namespace shop") && message.contains("/spec/containers"),
        "{message}"
    );
    assert!(read(json!({"/request/object": null})).unwrap_err().answer().is_some());
}

#[test]
fn what_is_no_review_has_nobody_to_answer_and_is_not_repeated() {
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#,
        br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":""}}"#,
        br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v2","request":{"uid":"x"}}"#,
        br#"{"kind":"Pod","apiVersion":"v1"}"#,
    ] {
        assert_eq!(parse(body).unwrap_err().answer(), None, "{}", String::from_utf8_lossy(body));
    }
    let secret = parse(br#"{"kind":"AdmissionReview","request":{"uid":{"k":"s3cret"}}}"#).unwrap_err();
    assert!(!secret.to_string().contains("s3cret"), "{secret}");
}

#[test]
fn the_seed_is_the_pods_own_where_it_has_a_uid() {
    let seed = |extra: Value| read(extra).unwrap().seed();
    assert_eq!(seed(json!({})), seed(json!({})));
    assert_ne!(seed(json!({})), seed(json!({"/request/uid": "r-2"})));
    let with_uid = |uid: &str| seed(json!({"/request/uid": uid, "/request/object/metadata/uid": "p-1"}));
    assert_eq!(with_uid("r-1"), with_uid("r-2"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
    }

    /// Most random bytes end at the first one, so some are put into a question that is otherwise good.
    #[test]
    fn no_damage_to_a_good_question_panics(at in 0_usize..500, bytes in proptest::collection::vec(any::<u8>(), 0..4)) {
        let mut body = serde_json::to_vec(&question(json!({}))).unwrap();
        let at = at % body.len();
        body.splice(at..(at + bytes.len()).min(body.len()), bytes);
        if let Err(error) = parse(&body) {
            let _ = (error.to_string(), error.answer());
        }
    }
}
