//! What is in a pod is in no line of the log.

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use rolecall_contract::annotation;
use serde_json::{Value, json};

use super::harness::{Deployed, ROLE, Shim, fail, until};

/// In everything of a pod that may be secret.
const MARK: &str = "hunter2-in-the-pod";

/// Every line that any crate has to offer.
const EVERYTHING: &str =
    "--log-level=trace,aws=trace,h2=trace,hyper=trace,kube=trace,rustls=trace,tower=trace,want=trace";

/// A pod full of marks, with `env` for its container.
fn full_of_marks(account: &str, env: Value) -> Pod {
    let pod = json!({
        "metadata": {
            "generateName": "marked-",
            "annotations": {"example.test/note": MARK},
            "labels": {"example.test/label": MARK},
        },
        "spec": {
            "serviceAccountName": account,
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": [MARK]}],
            "volumes": [{"name": "store", "csi": {
                "driver": "store.example.test", "volumeAttributes": {"password": MARK},
            }}],
            "containers": [{
                "name": "app",
                "image": format!("example.test/{MARK}"),
                "command": ["serve", MARK],
                "args": [format!("--password={MARK}")],
                "workingDir": format!("/{MARK}"),
                "lifecycle": {"postStart": {"exec": {"command": ["login", MARK]}}},
                "env": env,
            }],
        },
    });
    serde_json::from_value(pod).unwrap()
}

#[tokio::test]
async fn a_shim_that_logs_everything_says_nothing_of_what_is_in_a_pod() {
    let deployed = Deployed::new("secret").await;
    deployed.account_with("mapped", json!({})).await;
    deployed
        .account_with("malformed", json!({annotation::ROLE_ARN: "arn:aws:iam::111122223333:user/orders"}))
        .await;
    deployed.bind(&json!({"secret/mapped": {"RoleARN": ROLE}}).to_string()).await;
    let plain = json!([{"name": "PASSWORD", "value": MARK}]);
    let create = async |account: &str, env: Value| {
        deployed.pods().create(&PostParams::default(), &full_of_marks(account, env)).await.unwrap()
    };
    // Nobody is asked yet: this one is found afterwards.
    create("mapped", plain.clone()).await;

    let shim = Shim::start_with(&deployed, &[EVERYTHING]).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    let variable = |name: &str| json!([{"name": name, "value": MARK}]);
    let outcomes = [
        ("injected_container", "orders", plain.clone()),
        ("unbound", "default", plain.clone()),
        ("role_malformed", "malformed", plain),
        // These are looked at, and warned of.
        ("injected_container", "orders", variable("AWS_ACCESS_KEY_ID")),
        (
            "injected_container",
            "orders",
            json!([{"name": "HTTPS_PROXY", "value": format!("http://u:{MARK}@p")}]),
        ),
        (
            "injected_container",
            "orders",
            json!([
                {"name": "http_proxy", "value": "http://p"}, {"name": "NO_PROXY", "value": MARK},
            ]),
        ),
        ("conflict", "orders", variable("AWS_CONTAINER_AUTHORIZATION_TOKEN")),
        ("conflict", "orders", variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")),
        ("conflict", "orders", variable("AWS_WEB_IDENTITY_TOKEN_FILE")),
    ];
    for (outcome, account, env) in outcomes {
        let metric = format!("rolecall_shim_reviews_total{{outcome=\"{outcome}\"}}");
        let before = shim.metric(&metric).await.unwrap();
        create(account, env).await;
        assert!(before < shim.metric(&metric).await.unwrap(), "{outcome}");
    }
    until("the missed pod is told", async || shim.has_logged("a pod was not injected")).await;
    shim.end().await;

    let log = shim.process.logs();
    for said in ["TRACE", "injected a pod", "left a pod as it is", "reviewed a pod with warnings", "marked-"]
    {
        assert!(log.contains(said), "the log lacks {said:?}, so it proves nothing");
    }
    let secret = deployed.secret().await.data.unwrap();
    let key = String::from_utf8(secret["tls.key"].0.clone()).unwrap();
    let kubeconfig: Value = serde_json::from_slice(&std::fs::read(&deployed.kubeconfig).unwrap()).unwrap();
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    for kept in [MARK, token, key.lines().nth(1).unwrap()] {
        let told = log.lines().find(|line| line.contains(kept));
        assert!(told.is_none(), "{told:?}");
    }
}
