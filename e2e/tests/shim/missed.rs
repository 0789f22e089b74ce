//! Pods that passed by uninjected are found and told so.

use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use rolecall_shim::review::SKIP_LABEL;

use super::harness::{Deployed, Shim, is_injected, pod, until};

#[tokio::test]
async fn pods_that_were_let_in_while_nobody_answered_are_told_so_once() {
    // The webhook is not asked about this namespace, which comes first in every list.
    let elsewhere = Deployed::new("elsewhere").await;
    elsewhere.create("orders").await.unwrap();
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

    let (a, b) =
        tokio::join!(Shim::start_at(&deployed, shim.address, shim.port(), &[]), Shim::start(&deployed));
    let found = async |shim: &Shim| shim.metric("rolecall_shim_pods_not_injected").await == Some(1.0);
    until("both replicas have found the pod", async || found(&a).await && found(&b).await).await;
    let errors = a.metric("rolecall_shim_missed_injection_errors_total").await;
    assert_eq!(errors, Some(0.0), "the rights that ship are enough");
    let events: Api<Event> = Api::namespaced(deployed.client.clone(), deployed.name);
    let mut told = events.list(&ListParams::default()).await.unwrap().items;
    // The API server writes Events too, of the addresses that it gives to Services.
    told.retain(|event| event.reporting_controller.as_deref() == Some("rolecall.dev/shim"));
    let names =
        |event: &Event| event.regarding.as_ref().and_then(|pod| Some((pod.name.clone()?, pod.uid.clone()?)));
    let regarding: Vec<_> = told.iter().filter_map(names).collect();
    let expected = (missed.name_any(), missed.uid().unwrap());
    assert_eq!(regarding, [expected], "{} {}", injected.name_any(), unbound.name_any());
    let [event] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(event.reason.as_deref(), Some("RolecallNotInjected"));
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.note.as_ref().unwrap().contains("Delete the pod"));

    deployed.cluster.delete_pod(deployed.name, &missed.name_any(), 0).await.unwrap();
    until("nothing is missing any more", async || {
        a.metric("rolecall_shim_pods_not_injected").await == Some(0.0)
    })
    .await;
}
