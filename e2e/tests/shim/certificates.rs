//! Certificates that are exchanged while the API server calls.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use rolecall_e2e::{free_port, own_address};
use rolecall_shim::certificate::Lifetimes;
use rolecall_shim::certificate::mint::{self, Facts, Names, Pair};
use rolecall_shim::config::{CertificateConfig, Config};
use serde_json::json;

use super::harness::{Deployed, Replica, Volume, fail, now, under_load, until};

const DAY: Duration = Duration::from_secs(86_400);

/// Two replicas that both have to answer for each pod, so that whoever fails keeps the pod out.
async fn two_replicas(deployed: &Deployed) -> Vec<Replica> {
    let places = [own_address(), own_address()].map(|address| (address, free_port(address).unwrap()));
    let urls: Vec<String> = places.iter().map(|(ip, port)| format!("https://{ip}:{port}/mutate")).collect();
    deployed.configure(&urls, fail).await;
    let replicas = join_all(places.map(|place| Replica::start(deployed, place, &[], settle_soon))).await;
    join_all(replicas.iter().map(|replica| replica.ready())).await;
    deployed.in_effect().await;
    replicas
}

/// A rotation need not wait as long as a cluster with several API servers makes it.
fn settle_soon(config: &mut Config) {
    let CertificateConfig::SelfManaged { lifetimes, .. } = &mut config.certificate else {
        panic!("no files")
    };
    lifetimes.settle = Duration::from_secs(3);
}

#[tokio::test]
async fn an_authority_is_rotated_under_load_and_no_call_fails() {
    let deployed = Deployed::new("rotated-authority").await;
    let replicas = two_replicas(&deployed).await;
    under_load(&deployed, async {
        // First the whole Secret is exchanged, for one whose authority is about to end; then that one is rotated.
        let lifetimes = Lifetimes::default();
        let old = mint::authority(now() - lifetimes.authority * 9 / 10, lifetimes.authority).unwrap();
        let facts = facts(&old);
        let serving = serving(&old, &names_in(&deployed.secret().await), now() + lifetimes.serving);
        let authority = [("ca.crt", &old.certificate), ("ca.key", &old.key)];
        plant(&deployed, authority.into_iter().chain(parts(&serving))).await;
        until("the next authority signs", async || {
            let data = deployed.secret().await.data.unwrap();
            data["ca.crt"].0 != old.certificate.as_bytes() && data.contains_key("previous-ca.crt")
        })
        .await;
        for replica in &replicas {
            replica.serves("the new authority's certificate", |served| served.issuer != facts.subject).await;
        }
    })
    .await;
    join_all(replicas.into_iter().map(Replica::drain)).await;
}

#[tokio::test]
async fn a_serving_certificate_is_renewed_under_load_and_no_call_fails() {
    let deployed = Deployed::new("renewed").await;
    let replicas = two_replicas(&deployed).await;
    let first = replicas[0].certificate().unwrap();
    let authority = text(&deployed.secret().await, "ca.crt");
    under_load(&deployed, async {
        // A certificate of the same authority of which two thirds are over: each replica may find it.
        let secret = deployed.secret().await;
        let signer = Pair { certificate: text(&secret, "ca.crt"), key: text(&secret, "ca.key") };
        let left = Lifetimes::default().serving / 3 - DAY;
        let old = serving(&signer, &names_in(&secret), now() + left);
        plant(&deployed, parts(&old)).await;
        let old = facts(&old);
        for replica in &replicas {
            let is_new = |served: &Facts| served.der != first.der && old.expires < served.expires;
            replica.serves("a new certificate of the same authority", is_new).await;
        }
        // The API server makes new connections for another text of the same trust, and so meets the new one.
        let mut bundle = deployed.bundle().await;
        bundle.push(b'\n');
        deployed.trust(&bundle).await;
    })
    .await;
    assert_eq!(replicas[0].certificate().unwrap().der, replicas[1].certificate().unwrap().der);
    assert_eq!(text(&deployed.secret().await, "ca.crt"), authority);
    join_all(replicas.into_iter().map(Replica::drain)).await;
}

#[tokio::test]
async fn files_that_are_exchanged_under_load_are_served_and_no_call_fails() {
    let deployed = Deployed::new("filed").await;
    let address = own_address();
    let port = free_port(address).unwrap();
    let names = Names::of_service("filed", "filed", &[address.to_string()]);
    let authorities = [(); 2].map(|()| mint::authority(now(), 30 * DAY).unwrap());
    let mut volume = Volume::with(&[]);
    let flags = [
        "--certificate=files".to_owned(),
        format!("--tls-cert={}", volume.path("tls.crt").display()),
        format!("--tls-key={}", volume.path("tls.key").display()),
    ];
    let serve = |volume: &mut Volume, pair: &Pair| {
        volume.fill(&[("tls.crt", &pair.certificate), ("tls.key", &pair.key)]);
        facts(pair).der
    };
    let first = serve(&mut volume, &serving(&authorities[0], &names, now() + DAY));
    let replica = Replica::start(&deployed, (address, port), &flags, |_| {}).await;
    deployed.configure(&[format!("https://{address}:{port}/mutate")], fail).await;
    deployed.set_bundle(authorities[0].certificate.as_bytes()).await;
    replica.ready().await;
    deployed.in_effect().await;
    assert_eq!(replica.certificate().unwrap().der, first);

    under_load(&deployed, async {
        // A renewal, after which the API server connects anew.
        let second = serve(&mut volume, &serving(&authorities[0], &names, now() + DAY));
        replica.serves("the renewed certificate", |served| served.der == second).await;
        deployed.trust(format!("{}\n", authorities[0].certificate).as_bytes()).await;
        // Another authority, which is trusted before it is served, and the former one until it is not served.
        deployed
            .trust(authorities.each_ref().map(|pair| pair.certificate.as_str()).concat().as_bytes())
            .await;
        let third = serve(&mut volume, &serving(&authorities[1], &names, now() + DAY));
        replica.serves("the other authority's certificate", |served| served.der == third).await;
        deployed.trust(authorities[1].certificate.as_bytes()).await;
    })
    .await;
    replica.drain().await;
}

/// A serving certificate that expires then.
fn serving(by: &Pair, names: &Names, expires: SystemTime) -> Pair {
    mint::serving(by, &facts(by), names, expires).unwrap()
}

/// What a serving certificate is in the Secret.
fn parts(serving: &Pair) -> [(&'static str, &String); 2] {
    [("tls.crt", &serving.certificate), ("tls.key", &serving.key)]
}

/// Puts these into the Secret.
async fn plant(deployed: &Deployed, parts: impl IntoIterator<Item = (&'static str, &String)>) {
    let bytes = |(key, text): (&'static str, &String)| (key, ByteString(text.clone().into_bytes()));
    let data: BTreeMap<&str, ByteString> = parts.into_iter().map(bytes).collect();
    let patch = Patch::Merge(json!({"data": data}));
    deployed.secrets().patch(&deployed.secret_name(), &PatchParams::default(), &patch).await.unwrap();
}

fn text(secret: &Secret, key: &str) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
}

fn facts(pair: &Pair) -> Facts {
    Facts::read(pair.certificate.as_bytes()).unwrap()
}

/// The names that both replicas have put into the shared certificate.
fn names_in(secret: &Secret) -> Names {
    let names = Facts::read(text(secret, "tls.crt").as_bytes()).unwrap().names;
    let names: Vec<String> = names.into_iter().collect();
    Names::of_service("unused", "unused", &names)
}
