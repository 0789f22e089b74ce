//! The shim and a real kube-apiserver, which calls it over TLS.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "shim/harness.rs"]
mod harness;
#[path = "shim/sidecar.rs"]
mod sidecar;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{ResourceExt, core::ObjectMeta};
use rolecall_contract::annotation;
use rolecall_e2e::{free_port, own_address};
use rolecall_process::telemetry;
use rolecall_shim::app::App;
use rolecall_shim::certificate::mint::{self, Facts, Names};
use rolecall_shim::config::{CertificateConfig, Config};
use rolecall_shim::review::SKIP_LABEL;
use rolecall_shim::{args, certificate::Lifetimes};
use serde_json::{Value, json};

use harness::{Deployed, ROLE, Shim, is_injected, pod, until};

#[tokio::test]
async fn the_api_server_calls_the_shim_and_pods_of_controllers_are_injected() {
    let deployed = Deployed::new("called").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let pod = deployed.create("orders").await.unwrap();
    assert!(is_injected(&pod) && pod.name_any().starts_with("orders-"), "{pod:?}");
    assert_eq!(pod.annotations()[annotation::ROLE_ARN], ROLE);
    assert_eq!(pod.annotations()[annotation::TOKEN], annotation::TOKEN_REQUIRED);

    let pod = deployed.create("default").await.unwrap();
    assert!(!is_injected(&pod) && pod.annotations().is_empty(), "{pod:?}");
}

#[tokio::test]
async fn a_service_account_that_is_made_a_moment_before_its_pod_is_known_to_the_shim() {
    let deployed = Deployed::new("raced").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let names: Vec<String> = (0..30).map(|index| format!("new-{index}")).collect();
    let created = join_all(names.iter().map(|name| {
        let deployed = &deployed;
        async move {
            deployed.account(name).await;
            deployed.create(name).await.unwrap()
        }
    }));
    for pod in created.await {
        assert!(is_injected(&pod), "{}\n{}", pod.name_any(), shim.process.logs());
    }
    assert_eq!(shim.metric("rolecall_shim_service_accounts_missing_total").await, Some(0.0));
}

#[tokio::test]
async fn a_configuration_that_knows_v1beta1_alone_gets_its_pods_injected() {
    let deployed = Deployed::new("beta").await;
    let shim = Shim::start(&deployed).await;
    let beta = |webhook: &mut Value| {
        webhook["admissionReviewVersions"] = json!(["v1beta1"]);
        webhook["failurePolicy"] = json!("Fail");
    };
    deployed.configure(&[shim.url()], beta).await;
    shim.ready().await;
    deployed.in_effect().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
}

#[tokio::test]
async fn replicas_share_one_certificate_and_put_the_bundle_right_again() {
    let deployed = Deployed::new("shared").await;
    let (a, b) = tokio::join!(Shim::start(&deployed), Shim::start(&deployed));
    deployed.configure(&[a.url()], |_| {}).await;
    tokio::join!(a.ready(), b.ready());
    deployed.in_effect().await;

    // Each wants its own address in the certificate, and neither takes the other's out of it.
    let secrets: Api<Secret> = Api::namespaced(deployed.client.clone(), deployed.name);
    let name = format!("{}-tls", deployed.name);
    until("the certificate has both addresses", async || {
        let data = secrets.get(&name).await.unwrap().data.unwrap_or_default();
        let Some(certificate) = data.get("tls.crt") else { return false };
        let names = Facts::read(&certificate.0).unwrap().names;
        [&a, &b].iter().all(|shim| names.contains(&shim.address.to_string()))
    })
    .await;
    let version = secrets.get(&name).await.unwrap().resource_version();

    let right = deployed.configuration().await.webhooks.unwrap()[0].client_config.ca_bundle.clone().unwrap();
    assert_eq!(String::from_utf8_lossy(&right.0).matches("BEGIN CERTIFICATE").count(), 1);
    for wrong in [Vec::new(), foreign_authority()] {
        deployed.set_bundle(&wrong).await;
        until("the bundle trusts the shim again", async || {
            let webhook = deployed.configuration().await.webhooks.unwrap().remove(0);
            let bundle = webhook.client_config.ca_bundle.unwrap_or_default().0;
            bundle.windows(right.0.len()).any(|part| part == right.0)
        })
        .await;
    }

    // The other replica answers with the same certificate's authority.
    deployed.configure(&[b.url()], |webhook| webhook["failurePolicy"] = json!("Fail")).await;
    a.end().await;
    deployed.in_effect().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
    assert_eq!(secrets.get(&name).await.unwrap().resource_version(), version);

    // Who loses the Secret gets it back from a replica, the same as before.
    let data = secrets.get(&name).await.unwrap().data;
    let none = Patch::Merge(json!({"data": Value::Null}));
    secrets.patch(&name, &PatchParams::default(), &none).await.unwrap();
    until("the Secret is restored", async || secrets.get(&name).await.unwrap().data == data).await;
    secrets.delete(&name, &DeleteParams::default()).await.unwrap();
    until("the Secret is created anew", async || {
        secrets.get_opt(&name).await.unwrap().is_some_and(|secret| secret.data == data)
    })
    .await;
}

#[tokio::test]
async fn an_authority_is_rotated_under_load_and_no_call_fails() {
    let deployed = Deployed::new("rotated-authority").await;
    let addresses = [own_address(), own_address()];
    let ports = addresses.map(|address| free_port(address).unwrap());
    let urls: Vec<String> =
        addresses.iter().zip(ports).map(|(ip, port)| format!("https://{ip}:{port}/mutate")).collect();
    // Both replicas have to answer for each pod, and whoever fails keeps the pod out.
    deployed.configure(&urls, |webhook| webhook["failurePolicy"] = json!("Fail")).await;
    let apps = join_all(addresses.iter().zip(ports).map(|(ip, port)| start(&deployed, *ip, port))).await;
    join_all(apps.iter().map(|(app, _)| app.ready())).await;
    deployed.in_effect().await;

    let made = AtomicUsize::new(0);
    let enough = AtomicUsize::new(usize::MAX);
    let load = join_all((0..4).map(|_| async {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        while made.load(Ordering::Relaxed) < enough.load(Ordering::Relaxed) {
            let pod = deployed.pods().create(&dry_run, &pod("orders")).await.unwrap();
            assert!(is_injected(&pod));
            made.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let rotation = async {
        // First the whole Secret is exchanged, for one whose authority is about to end; then that one is rotated.
        let planted = plant_old_authority(&deployed, &addresses.map(|address| address.to_string())).await;
        let secrets: Api<Secret> = Api::namespaced(deployed.client.clone(), deployed.name);
        until("the next authority signs", async || {
            let data = secrets.get(&format!("{}-tls", deployed.name)).await.unwrap().data.unwrap();
            data["ca.crt"].0 != planted.as_bytes() && data.contains_key("previous-ca.crt")
        })
        .await;
        for (app, _) in &apps {
            until("the replica serves the new certificate", async || {
                let served = app.certificate().map(|facts| facts.issuer);
                served.is_some_and(|issuer| issuer != Facts::read(planted.as_bytes()).unwrap().subject)
            })
            .await;
        }
        enough.store(made.load(Ordering::Relaxed) + 100, Ordering::Relaxed);
    };
    tokio::join!(load, rotation);
    for (app, _) in apps {
        app.drain().await;
    }
}

#[tokio::test]
async fn pods_that_were_let_in_while_nobody_answered_are_told_so_once() {
    let deployed = Deployed::new("missed").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;
    let injected = deployed.create("orders").await.unwrap();
    shim.end().await;

    let missed = deployed.create("orders").await.unwrap();
    assert!(!is_injected(&missed));
    let unbound = deployed.create("default").await.unwrap();
    let mut skipped = pod("orders");
    skipped.metadata.labels = Some([(SKIP_LABEL.to_owned(), String::new())].into());
    deployed.pods().create(&PostParams::default(), &skipped).await.unwrap();

    let (a, b) = tokio::join!(Shim::start_at(&deployed, shim.address, shim.port()), Shim::start(&deployed));
    let found = async |shim: &Shim| shim.metric("rolecall_shim_pods_not_injected").await == Some(1.0);
    until("both replicas have found the pod", async || found(&a).await && found(&b).await).await;
    let events: Api<Event> = Api::namespaced(deployed.client.clone(), deployed.name);
    let told = events.list(&ListParams::default()).await.unwrap();
    let regarding: Vec<_> = told.iter().filter_map(|event| event.regarding.as_ref()?.name.clone()).collect();
    assert_eq!(regarding, [missed.name_any()], "{} {}", injected.name_any(), unbound.name_any());
    assert!(told.items[0].note.as_ref().unwrap().contains("Delete the pod"));

    deployed.cluster.delete_pod(deployed.name, &missed.name_any(), 0).await.unwrap();
    until("nothing is missing any more", async || {
        a.metric("rolecall_shim_pods_not_injected").await == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn with_failure_policy_fail_no_pod_is_let_in_while_nobody_answers() {
    let deployed = Deployed::new("failing").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |webhook| webhook["failurePolicy"] = json!("Fail")).await;
    shim.ready().await;
    deployed.in_effect().await;
    shim.process.kill().unwrap();
    let Err(kube::Error::Api(status)) = deployed.create("orders").await else { panic!("the pod was let in") };
    assert!(status.code == 500 && status.message.contains("pods-0.rolecall.dev"), "{status:?}");

    // The shim's own pods are never asked about, so it can come back.
    let mut own = pod("orders");
    own.metadata.labels = Some([(SKIP_LABEL.to_owned(), "true".to_owned())].into());
    deployed.pods().create(&PostParams::default(), &own).await.unwrap();

    let again = Shim::start_at(&deployed, shim.address, shim.port()).await;
    again.ready().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
}

#[tokio::test]
async fn a_sidecar_that_a_later_webhook_adds_is_injected_too() {
    let deployed = Deployed::new("reinvoked").await;
    let shim = Shim::start(&deployed).await;
    deployed.configure(&[shim.url()], |_| {}).await;
    shim.ready().await;
    deployed.in_effect().await;

    let (url, authority) = sidecar::serve(own_address());
    let mut other = deployed.configuration().await;
    // Webhooks are called in the order of these names.
    other.metadata = ObjectMeta { name: Some("zz-sidecar".to_owned()), ..ObjectMeta::default() };
    let mut webhook = other.webhooks.take().unwrap().remove(0);
    webhook.name = "sidecar.example.test".to_owned();
    webhook.client_config.url = Some(url);
    webhook.client_config.ca_bundle = Some(ByteString(authority));
    webhook.failure_policy = Some("Fail".to_owned());
    webhook.reinvocation_policy = Some("Never".to_owned());
    other.webhooks = Some(vec![webhook]);
    deployed.configurations().create(&PostParams::default(), &other).await.unwrap();

    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let has_sidecar = async || {
        let pod = deployed.pods().create(&dry_run, &pod("orders")).await.unwrap();
        pod.spec.unwrap().containers.len() == 2
    };
    until("the other webhook takes effect", has_sidecar).await;
    let pod = deployed.create("orders").await.unwrap();
    let names: Vec<_> =
        pod.spec.as_ref().unwrap().containers.iter().map(|container| container.name.clone()).collect();
    assert_eq!(names, ["app", "sidecar"]);
    assert!(is_injected(&pod), "{:?}", pod.spec);
}

/// A replica in this process, whose rotation does not wait as long as a cluster needs it to.
async fn start(deployed: &Deployed, address: std::net::Ipv4Addr, port: u16) -> (App, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut line = vec!["rolecall-shim".to_owned()];
    line.extend(deployed.flags(address, port));
    line.extend(["--admin-listen=off".to_owned(), "--metrics-listen=off".to_owned()]);
    line.push(format!("--admin-socket={}", folder.path().join("admin.sock").display()));
    let mut config = Config::try_from(args::parse_from(line).unwrap().run).unwrap();
    let CertificateConfig::SelfManaged { lifetimes, .. } = &mut config.certificate else {
        panic!("no files")
    };
    lifetimes.settle = Duration::from_secs(3);
    let (_, log_level) = telemetry::with_writer(&config.log, std::io::sink);
    (App::start(config, log_level).await.unwrap(), folder)
}

/// Fills the Secret with an authority that is about to end and a good certificate of it. Returns the authority's.
async fn plant_old_authority(deployed: &Deployed, addresses: &[String]) -> String {
    let lifetimes = Lifetimes::default();
    let now = now();
    let authority = mint::authority(now - lifetimes.authority * 9 / 10, lifetimes.authority).unwrap();
    let facts = Facts::read(authority.certificate.as_bytes()).unwrap();
    let names = Names::of_service(deployed.name, deployed.name, addresses);
    let serving = mint::serving(&authority, &facts, &names, now, lifetimes.serving).unwrap();
    let planted = authority.certificate.clone();
    let data: BTreeMap<&str, ByteString> = [
        ("ca.crt", authority.certificate),
        ("ca.key", authority.key),
        ("tls.crt", serving.certificate),
        ("tls.key", serving.key),
    ]
    .map(|(key, text)| (key, ByteString(text.into_bytes())))
    .into();
    let secrets: Api<Secret> = Api::namespaced(deployed.client.clone(), deployed.name);
    let patch = Patch::Merge(json!({"data": data}));
    secrets.patch(&format!("{}-tls", deployed.name), &PatchParams::default(), &patch).await.unwrap();
    planted
}

fn foreign_authority() -> Vec<u8> {
    mint::authority(now(), Duration::from_secs(3600)).unwrap().certificate.into_bytes()
}

/// Whole seconds, as certificates have them.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}
