//! What a decision of the shim costs: from the bytes of a review to the bytes of its answer.

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use anyhow::{Result, anyhow};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use rolecall_shim::{
    binding::{ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
    mutate::mutate,
    policy::Policy,
    review,
};
use serde_json::json;

use crate::report::Report;

const ROUNDS: u32 = 2_000;

/// Prints the CPU time of one review of a pod with 20 containers, on one thread that does nothing else. What others take
/// of the machine meanwhile does not count.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let containers: Vec<_> = (0..20)
        .map(|n| {
            let env: Vec<_> =
                (0..10).map(|v| json!({"name": format!("V{v}"), "value": "x".repeat(40)})).collect();
            json!({"name": format!("c{n}"), "image": "registry.example/app:1", "env": env})
        })
        .collect();
    let body = serde_json::to_vec(&json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11", "namespace": "shop", "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "orders-", "namespace": "shop"},
                "spec": {"serviceAccountName": "orders", "containers": containers},
            },
        },
    }))?;
    let role = ("rolecall.dev/role-arn".to_owned(), "arn:aws:iam::111122223333:role/orders".to_owned());
    let facts = ServiceAccountFacts { annotations: BTreeMap::from([role]) };
    let (config_map, identities, policy) =
        (ConfigMapBindings::default(), Identities::default(), Policy::default());
    let began = cpu_time()?;
    let mut answer = Vec::new();
    for _ in 0..ROUNDS {
        let review = review::parse(black_box(&body)).map_err(|error| anyhow!("{error}"))?;
        let sources =
            Sources { service_account: Some(&facts), config_map: &config_map, identities: &identities };
        let decision = bind(review.namespace(), review.service_account(), review.pod(), sources, &policy);
        let mutation = mutate(review.pod_json(), review.namespace(), &decision, &policy, review.seed());
        answer = black_box(review.answer(&mutation));
    }
    let each = cpu_time()?.saturating_sub(began) / ROUNDS;
    report.goal(
        "the shim's decision on a pod with 20 containers",
        "under 1 ms of CPU".to_owned(),
        format!("{} µs", each.as_micros()),
        each.as_millis() < 1,
    );
    let size = format!("{} bytes of review in, {} bytes of answer out.\n", body.len(), answer.len());
    report.section("mutate: a decision of the shim", size);
    Ok(())
}

/// CPU time that this thread has used.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let used = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(used.num_microseconds())?))
}
