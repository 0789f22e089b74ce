//! Every kind of pod, as the API server stores it.

use rolecall_contract::annotation;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::harness::{Deployed, ROLE, Shim, Stored, fail};

const REPORT: &str = "arn:aws:iam::111122223333:role/team/report";
const URI: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
const TOKEN_FILE: (&str, &str) =
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/var/run/secrets/rolecall.dev/serviceaccount/token");
const EKS_MOUNT: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
const EKS_FILE: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";

/// Most bytes of a pod's annotations: <https://kubernetes.io/docs/reference/labels-annotations-taints/>.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// One namespace and one replica for all tests that do no more than create pods.
pub(super) async fn deployed() -> Deployed {
    static STANDING: OnceCell<(Shim, std::path::PathBuf)> = OnceCell::const_new();
    let (_, kubeconfig) = STANDING
        .get_or_init(|| async {
            let deployed = Deployed::new("kinds").await;
            let flags = ["--no-daemon-node-selector=type=virtual-kubelet"];
            let shim = Shim::start_with(&deployed, &flags).await;
            deployed.configure(&[shim.url()], fail).await;
            shim.ready().await;
            deployed.in_effect().await;
            (shim, deployed.kubeconfig)
        })
        .await;
    Deployed::standing("kinds", kubeconfig.clone()).await
}

/// A pod with two containers and an init container, with `metadata` and `spec` merged in.
pub(super) fn manifest(account: &str, metadata: Value, spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"generateName": format!("{account}-")},
        "spec": {
            "serviceAccountName": account,
            "initContainers": [{"name": "migrate", "image": "example.test/app"}],
            "containers": [
                {"name": "app", "image": "example.test/app"},
                {"name": "report", "image": "example.test/report"},
            ],
        },
    });
    for (key, more) in [("metadata", metadata), ("spec", spec)] {
        pod[key].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    pod
}

#[track_caller]
fn check_irsa(pod: &Stored, token_file: &str, lifetime: i64) {
    for container in ["app", "report", "migrate"] {
        let env = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file)];
        assert_eq!(pod.env(container), env, "{container}");
        assert_eq!(pod.mount(container, "aws-iam-token"), Some(EKS_MOUNT));
    }
    assert_eq!(pod.token("aws-iam-token"), Some(("sts.amazonaws.com", lifetime)));
    assert_eq!(pod.0["metadata"]["annotations"], Value::Null);
}

#[tokio::test]
async fn an_irsa_pod_is_stored_with_the_defaults_and_the_bounds_of_the_eks_webhook() {
    let deployed = deployed().await;
    for (account, expiration, lifetime) in [
        ("irsa", None, 86_400),
        ("irsa-short", Some("60"), 600),
        ("irsa-asked", Some("7200"), 7200),
        ("irsa-no-number", Some("an hour"), 86_400),
        // The API server takes no more.
        ("irsa-long", Some("99999999999"), 4_294_967_295),
    ] {
        let mut annotations = json!({"eks.amazonaws.com/role-arn": ROLE, annotation::MODE: "irsa"});
        if let Some(seconds) = expiration {
            annotations["eks.amazonaws.com/token-expiration"] = json!(seconds);
        }
        deployed.account_with(account, annotations).await;
        check_irsa(&deployed.stored(manifest(account, json!({}), json!({}))).await, EKS_FILE, lifetime);
    }
}

#[tokio::test]
async fn what_an_author_has_set_keeps_its_group_of_irsa_variables_away() {
    let deployed = deployed().await;
    deployed
        .account_with(
            "irsa-author",
            json!({
                "eks.amazonaws.com/role-arn": ROLE,
                "eks.amazonaws.com/sts-regional-endpoints": "true",
                annotation::MODE: "irsa",
            }),
        )
        .await;
    let containers = json!([
        {"name": "app", "image": "x", "env": [{"name": "AWS_ROLE_ARN", "value": "mine"}]},
        {"name": "report", "image": "x", "env": [{"name": "AWS_STS_REGIONAL_ENDPOINTS", "value": "legacy"}]},
    ]);
    let pod = deployed.stored(manifest("irsa-author", json!({}), json!({"containers": containers}))).await;
    let regional = ("AWS_STS_REGIONAL_ENDPOINTS", "regional");
    let role = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", EKS_FILE)];
    assert_eq!(pod.env("app"), [("AWS_ROLE_ARN", "mine"), regional]);
    assert_eq!(pod.env("report"), [("AWS_STS_REGIONAL_ENDPOINTS", "legacy"), role[0], role[1]]);
    assert_eq!(pod.env("migrate"), [regional, role[0], role[1]]);
}

#[tokio::test]
async fn a_session_is_named_by_a_pod_that_has_no_name_yet() {
    let deployed = deployed().await;
    let names = |template: &str| {
        json!({
            "eks.amazonaws.com/role-arn": ROLE,
            annotation::MODE: "irsa",
            annotation::SESSION_NAME: template,
        })
    };
    deployed.account_with("named", names("{namespace}.{serviceAccount}.{pod}")).await;
    let pod = deployed.stored(manifest("named", json!({}), json!({}))).await;
    let expected = [
        ("AWS_ROLE_ARN", ROLE),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", EKS_FILE),
        ("ROLECALL_POD_NAME", "metadata.name"),
        ("AWS_ROLE_SESSION_NAME", "kinds.named.$(ROLECALL_POD_NAME)"),
    ];
    assert_eq!(pod.env("app"), expected);

    deployed.account_with("named-by-pod", names("{pod}")).await;
    let pod = deployed.stored(manifest("named-by-pod", json!({}), json!({}))).await;
    assert_eq!(pod.env("app")[2..], [("AWS_ROLE_SESSION_NAME", "metadata.name")]);
}

#[tokio::test]
async fn an_old_sdk_gets_the_relative_uri_and_no_other() {
    let deployed = deployed().await;
    let annotations = json!({
        annotation::ROLE_ARN: ROLE,
        annotation::RELATIVE_URI: "true",
        "rolecall.dev/role-arn.report": REPORT,
    });
    deployed.account_with("relative", annotations).await;
    let pod = deployed.stored(manifest("relative", json!({}), json!({}))).await;
    let relative = |path| [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", path), TOKEN_FILE];
    assert_eq!(pod.env("app"), relative("/v1/credentials"));
    assert_eq!(pod.env("migrate"), relative("/v1/credentials"));
    assert_eq!(pod.env("report"), relative(&format!("/v1/credentials/{REPORT}")));
    assert_eq!(pod.annotation(annotation::TOKEN), Some(annotation::TOKEN_OPTIONAL));
    assert_eq!(pod.annotation(annotation::ROLE_ARN), Some(ROLE));
}

#[tokio::test]
async fn a_container_with_a_role_of_its_own_has_it_in_its_uri() {
    let deployed = deployed().await;
    let annotations = json!({"eks.amazonaws.com/role-arn": ROLE, "rolecall.dev/role-arn.report": REPORT});
    deployed.account_with("roles", annotations).await;
    let pod = deployed.stored(manifest("roles", json!({}), json!({}))).await;
    assert_eq!(pod.env("app"), [URI, TOKEN_FILE]);
    assert_eq!(pod.env("migrate"), [URI, TOKEN_FILE]);
    assert_eq!(pod.env("report"), [(URI.0, format!("{}/{REPORT}", URI.1).as_str()), TOKEN_FILE]);

    // In irsa mode, which has no path, the variable of the role is the container's own.
    let annotations = json!({
        "eks.amazonaws.com/role-arn": ROLE,
        "rolecall.dev/role-arn.report": REPORT,
        annotation::MODE: "irsa",
    });
    deployed.account_with("roles-irsa", annotations).await;
    let pod = deployed.stored(manifest("roles-irsa", json!({}), json!({}))).await;
    assert_eq!(pod.env("app")[0], ("AWS_ROLE_ARN", ROLE));
    assert_eq!(pod.env("report")[0], ("AWS_ROLE_ARN", REPORT));
}

#[tokio::test]
async fn a_windows_pod_is_known_by_selector_os_and_affinity() {
    let deployed = deployed().await;
    deployed.account("windows").await;
    let requires = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["windows"]});
    let terms = json!([{"matchExpressions": [requires]}]);
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
    for spec in [
        json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
        json!({"os": {"name": "windows"}}),
        json!({"affinity": {"nodeAffinity": required}}),
    ] {
        let pod = deployed.stored(manifest("windows", json!({}), spec)).await;
        check_irsa(&pod, r"C:\var\run\secrets\eks.amazonaws.com\serviceaccount\token", 86_400);
    }
}

#[tokio::test]
async fn a_pod_that_no_daemon_can_serve_gets_irsa() {
    let deployed = deployed().await;
    deployed.account("nodeless").await;
    for (metadata, spec) in [
        (json!({"labels": {"eks.amazonaws.com/fargate-profile": "shop"}}), json!({})),
        (json!({}), json!({"nodeSelector": {"eks.amazonaws.com/compute-type": "fargate"}})),
        (json!({}), json!({"nodeSelector": {"type": "virtual-kubelet"}})),
    ] {
        check_irsa(&deployed.stored(manifest("nodeless", metadata, spec)).await, EKS_FILE, 86_400);
    }
}

#[tokio::test]
async fn a_pod_at_the_limit_of_annotations_is_created_with_its_role_in_the_uri() {
    let deployed = deployed().await;
    deployed.account("full").await;
    let rule = annotation::TOKEN.len() + annotation::TOKEN_REQUIRED.len();
    let whole = rule + annotation::ROLE_ARN.len() + ROLE.len();
    for (room, has_rule, has_role) in
        [(whole, true, true), (whole - 1, true, false), (rule, true, false), (0, false, false)]
    {
        let filler = "x".repeat(MAX_ANNOTATIONS - "filler".len() - room);
        let metadata = json!({"annotations": {"filler": filler}});
        let pod = deployed.stored(manifest("full", metadata, json!({}))).await;
        assert_eq!(pod.annotation(annotation::TOKEN).is_some(), has_rule, "{room}");
        assert_eq!(pod.annotation(annotation::ROLE_ARN).is_some(), has_role, "{room}");
        let uri = if has_role { URI.1.to_owned() } else { format!("{}/{ROLE}", URI.1) };
        assert_eq!(pod.env("app"), [(URI.0, uri.as_str()), TOKEN_FILE], "{room}");
    }
}
