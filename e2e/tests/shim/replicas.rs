//! Replicas beside one another, without a leader.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use rolecall_e2e::own_address;
use rolecall_shim::certificate::mint::{self, Facts};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::harness::{Deployed, Relay, Shim, fail, is_injected, now, under_load, until};

/// Whether the shared certificate is good for each of these replicas.
fn names_all(secret: &Secret, shims: &[&Shim]) -> bool {
    let certificate = secret.data.as_ref().and_then(|data| data.get("tls.crt"));
    let Some(names) = certificate.map(|certificate| Facts::read(&certificate.0).unwrap().names) else {
        return false;
    };
    shims.iter().all(|shim| names.contains(&shim.address.to_string()))
}

#[tokio::test]
async fn replicas_share_one_certificate_and_put_the_bundle_right_again() {
    let deployed = Deployed::new("shared").await;
    let (a, b) = tokio::join!(Shim::start(&deployed), Shim::start(&deployed));
    deployed.configure(&[a.url()], |_| {}).await;
    tokio::join!(a.ready(), b.ready());
    deployed.in_effect().await;

    // Each wants its own address in the certificate, and neither takes the other's out of it.
    until("the certificate has both addresses", async || names_all(&deployed.secret().await, &[&a, &b]))
        .await;
    let version = deployed.secret().await.resource_version();

    let right = deployed.bundle().await;
    assert_eq!(String::from_utf8_lossy(&right).matches("BEGIN CERTIFICATE").count(), 1);
    let foreign = mint::authority(now(), std::time::Duration::from_secs(3600)).unwrap().certificate;
    for wrong in [Vec::new(), foreign.into_bytes()] {
        deployed.set_bundle(&wrong).await;
        until("the bundle trusts the shim again", async || {
            deployed.bundle().await.windows(right.len()).any(|part| part == right)
        })
        .await;
    }

    // The other replica answers with the same certificate's authority.
    deployed.configure(&[b.url()], fail).await;
    a.end().await;
    deployed.in_effect().await;
    assert!(is_injected(&deployed.create("orders").await.unwrap()));
    assert_eq!(deployed.secret().await.resource_version(), version);

    // Who loses the Secret gets it back from a replica, the same as before.
    let (secrets, name) = (deployed.secrets(), deployed.secret_name());
    let data = deployed.secret().await.data;
    let none = Patch::Merge(json!({"data": Value::Null}));
    secrets.patch(&name, &PatchParams::default(), &none).await.unwrap();
    until("the Secret is restored", async || deployed.secret().await.data == data).await;
    secrets.delete(&name, &DeleteParams::default()).await.unwrap();
    until("the Secret is created anew", async || {
        secrets.get_opt(&name).await.unwrap().is_some_and(|secret| secret.data == data)
    })
    .await;
}

#[tokio::test]
async fn replicas_that_begin_at_once_are_replaced_under_load_and_no_call_fails() {
    let deployed = Deployed::new("replaced").await;
    // In the place of the Service and its endpoints, which the certificate has to be good for.
    let service = Relay::at(own_address());
    let address = service.address();
    let name = format!("--certificate-name={}", address.ip());
    // As shipped: long enough for a cluster to learn that a replica goes.
    let flags = [name.as_str(), "--drain-delay=5s"];
    deployed.configure(&[format!("https://{address}/mutate")], fail).await;
    let (a, b) = tokio::join!(Shim::start_with(&deployed, &flags), Shim::start_with(&deployed, &flags));
    tokio::join!(a.ready(), b.ready());
    until("both are in the certificate", async || names_all(&deployed.secret().await, &[&a, &b])).await;
    service.lead_to(&[a.socket(), b.socket()]);
    deployed.in_effect().await;

    // A rolling update. Who is to end says that it is not ready, then it gets no more connections.
    let leave = async |shim: &Shim, others: &[&Shim]| {
        shim.process.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        until("the replica is not ready any more", async || {
            shim.missing().await.is_some_and(|missing| !missing.is_empty())
        })
        .await;
        // Until the cluster has learned that, it is still called, by new connections too.
        drop(TcpStream::connect(shim.socket()).await.unwrap());
        service.lead_to(&others.iter().map(|other| other.socket()).collect::<Vec<_>>());
        shim.ended().await;
    };
    let authority = deployed.secret().await.data.unwrap()["ca.crt"].clone();
    let c = under_load(&deployed, async {
        leave(&a, &[&b]).await;
        let c = Shim::start_with(&deployed, &flags).await;
        c.ready().await;
        service.lead_to(&[b.socket(), c.socket()]);
        leave(&b, &[&c]).await;
        c
    })
    .await;
    assert_eq!(deployed.secret().await.data.unwrap()["ca.crt"], authority);
    let reviews = async |shim: &Shim| {
        shim.metric("rolecall_shim_reviews_total{outcome=\"injected_container\"}").await.unwrap()
    };
    assert!(0.0 < reviews(&c).await);
}
