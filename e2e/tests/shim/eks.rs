//! In the place of the EKS pod identity webhook, and beside EKS's own.

use std::os::unix::fs::symlink;
use std::path::Path;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rolecall_contract::annotation;
use rolecall_e2e::{ControlPlane, binary, free_port, own_address};
use serde_json::{Value, json};

use super::harness::{Deployed, ROLE, Shim, Stored, Volume, fail, pod, until, webhook};

/// What the users of the EKS webhook have in their clusters.
const MANIFESTS: &str = include_str!("eks-webhook.yaml");

/// Where EKS's webhook mounts the token.
const MOUNT: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";

const FILE: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";

#[tokio::test]
async fn the_manifests_of_the_eks_webhook_inject_with_our_image_in_them() {
    let cluster = ControlPlane::shared().await.unwrap();
    let (address, folder) = (own_address(), tempfile::tempdir().unwrap());
    let port = free_port(address).unwrap();
    cluster.create_namespace("eks-users").await.unwrap();
    let (certificate, key) = cert_manager();
    let mut command = Vec::new();
    for mut object in serde_saphyr::from_multiple::<Value>(MANIFESTS).unwrap() {
        match object["kind"].as_str().unwrap() {
            // There is no kube-proxy: the Service leads to the process under test by its address.
            "Service" => object["spec"] = json!({"type": "ExternalName", "externalName": address}),
            "Deployment" => {
                let container = &object["spec"]["template"]["spec"]["containers"][0];
                command = serde_json::from_value::<Vec<String>>(container["command"].clone()).unwrap();
            }
            "MutatingWebhookConfiguration" => {
                let webhook = &mut object["webhooks"][0];
                // No test has the right to port 443.
                webhook["clientConfig"]["service"]["port"] = json!(port);
                webhook["clientConfig"]["caBundle"] =
                    serde_json::to_value(k8s_openapi::ByteString(certificate.clone().into_bytes())).unwrap();
                // The cluster is shared with other tests.
                webhook["namespaceSelector"] =
                    json!({"matchLabels": {"kubernetes.io/metadata.name": "eks-users"}});
            }
            _ => {}
        }
        cluster.apply(&object.to_string(), "default").await.unwrap();
    }

    // The image has a link where the manifest looks for the program.
    let program = folder.path().join(command[0].trim_start_matches('/'));
    symlink(binary("rolecall-shim").unwrap(), &program).unwrap();
    let mut line = command[1..].to_vec();
    line.push("--default-mode=irsa".to_owned());
    // What the kubelet and the rights of a container give to the program, variables give to it here.
    let files = Volume::with(&[("tls.crt", &certificate), ("tls.key", &key)]);
    let kubeconfig = cluster.kubeconfig_for_service_account("default", "pod-identity-webhook").await.unwrap();
    let shown = |path: &Path| path.display().to_string();
    let variables = [
        ("ROLECALL_SHIM_LISTEN", format!("{address}:{port}")),
        ("ROLECALL_SHIM_KUBECONFIG", shown(&kubeconfig)),
        ("ROLECALL_SHIM_TLS_CERT", shown(&files.path("tls.crt"))),
        ("ROLECALL_SHIM_TLS_KEY", shown(&files.path("tls.key"))),
    ];
    let shim = Shim::run(&program, (address, port), &line, &variables).await;
    shim.ready().await;

    let client = cluster.client().await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "eks-users");
    let account =
        json!({"metadata": {"name": "orders", "annotations": {"eks.amazonaws.com/role-arn": ROLE}}});
    accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, "eks-users");
    let expected = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", FILE)];
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    until("the API server calls the shim by its Service", async || {
        let pod = pods.create(&dry_run, &pod("orders")).await.unwrap();
        Stored::new(&pod).env("app") == expected
    })
    .await;
    let stored = Stored::new(&pods.create(&PostParams::default(), &pod("orders")).await.unwrap());
    assert_eq!(stored.env("app"), expected, "{}", shim.process.logs());
    assert_eq!(stored.env("migrate"), expected);
    assert_eq!(stored.mount("app", "aws-iam-token"), Some(MOUNT));
    assert_eq!(stored.token("aws-iam-token"), Some(("sts.amazonaws.com", 86_400)));
    // What has no meaning here is said, and so is the right that these manifests do not give.
    for said in ["logtostderr", "cannot watch pods"] {
        until(said, async || shim.has_logged(said)).await;
    }
    shim.end().await;
}

#[tokio::test]
async fn what_ekss_own_webhook_injects_again_and_again_is_taken_over() {
    // Webhooks are called in the order of their configurations' names, and this one comes after EKS's.
    let deployed = Deployed::new("taken-over").await;
    deployed.account_with("ours", json!({annotation::ROLE_ARN: ROLE})).await;
    let shim = Shim::start_with(&deployed, &["--take-over-irsa"]).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    let (url, authority) = webhook::serve(own_address(), eks);
    let mut theirs = serde_json::to_value(deployed.configuration().await).unwrap();
    theirs["metadata"] = json!({"name": "eks-hosted"});
    theirs["webhooks"][0]["name"] = json!("iam-for-pods.amazonaws.com");
    theirs["webhooks"][0]["clientConfig"] =
        json!({"url": url, "caBundle": k8s_openapi::ByteString(authority)});
    assert_eq!(theirs["webhooks"][0]["reinvocationPolicy"], "IfNeeded");
    let theirs = serde_json::from_value(theirs).unwrap();
    deployed.configurations().create(&PostParams::default(), &theirs).await.unwrap();

    let manifest = |account: &str| serde_json::to_value(pod(account)).unwrap();
    // EKS gives a region too, and that stays: so it shows that its webhook was there.
    let region = ("AWS_REGION", "eu-central-1");
    until("EKS's webhook takes effect", async || {
        let pod = deployed.try_out("orders").await.unwrap();
        Stored::new(&pod).env("app").contains(&region)
    })
    .await;
    let pod = deployed.stored(manifest("orders")).await;
    for container in ["app", "migrate"] {
        let names: Vec<_> = pod.env(container).into_iter().map(|(name, _)| name).collect();
        let ours = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
        assert_eq!(names, ["AWS_REGION", ours[0], ours[1]], "{}", pod.0);
        assert_eq!(pod.mount(container, "aws-iam-token"), None);
    }
    assert_eq!(pod.token("aws-iam-token"), None);
    assert_eq!(pod.annotation(annotation::ROLE_ARN), Some(ROLE));

    // What the author wrote as EKS would have is the author's: another role than the ServiceAccount's.
    let mut own = manifest("orders");
    own["spec"]["containers"][0]["env"] = json!([
        {"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::111122223333:role/own"},
        {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": FILE},
    ]);
    let pod = deployed.stored(own).await;
    assert_eq!(pod.env("app")[0], ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/own"));
    assert_eq!(pod.mount("app", "aws-iam-token"), Some(MOUNT));
    assert!(pod.env("migrate").iter().any(|(name, _)| *name == "AWS_CONTAINER_CREDENTIALS_FULL_URI"));
}

/// What EKS's webhook makes of a pod whose ServiceAccount has the role: whole lists of containers, and its volume
/// before all others.
fn eks(pod: &Value) -> Vec<Value> {
    let mut patch = Vec::new();
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    if !volumes.iter().any(|volume| volume["name"] == "aws-iam-token") {
        let token = json!({"audience": "sts.amazonaws.com", "expirationSeconds": 86400, "path": "token"});
        let volume =
            json!({"name": "aws-iam-token", "projected": {"sources": [{"serviceAccountToken": token}]}});
        patch.push(json!({"op": "add", "path": "/spec/volumes/0", "value": volume}));
    }
    for list in ["containers", "initContainers"] {
        let containers: Vec<Value> =
            pod["spec"][list].as_array().unwrap().iter().map(eks_container).collect();
        patch.push(json!({"op": "add", "path": format!("/spec/{list}"), "value": containers}));
    }
    patch
}

fn eks_container(container: &Value) -> Value {
    let mut container = container.clone();
    let groups = [
        vec![("AWS_REGION", "eu-central-1")],
        vec![("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", FILE)],
    ];
    for group in groups {
        let mut env = container["env"].as_array().cloned().unwrap_or_default();
        if !env.iter().any(|variable| group.iter().any(|(name, _)| variable["name"] == *name)) {
            env.extend(group.iter().map(|(name, value)| json!({"name": name, "value": value})));
        }
        container["env"] = json!(env);
    }
    let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    if !mounts.iter().any(|mount| mount["name"] == "aws-iam-token") {
        mounts.push(json!({"name": "aws-iam-token", "mountPath": MOUNT, "readOnly": true}));
    }
    container["volumeMounts"] = json!(mounts);
    container
}

/// Certificate and key as cert-manager makes them of the EKS webhook's Certificate: signed by itself, and an
/// authority too.
fn cert_manager() -> (String, String) {
    let name = "pod-identity-webhook";
    let names = [name.to_owned(), format!("{name}.default"), format!("{name}.default.svc")];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("{name}.default.svc"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}
