//! `mutate`: a whole decision of the shim, from the bytes of a review to the bytes of its answer.

use std::{collections::BTreeMap, hint::black_box};

use anyhow::{Result, anyhow, ensure};
use criterion::{BenchmarkId, Criterion};
use rolecall_shim::{
    binding::{ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
    mutate::mutate,
    policy::Policy,
    review,
};
use serde_json::{Value, json};

use crate::cpu_time::CpuTime;

/// Containers of the pod: of most, and of very large ones.
const CONTAINERS: [usize; 2] = [2, 20];

pub(crate) fn run(criterion: &mut Criterion<CpuTime>) -> Result<()> {
    let mut group = criterion.benchmark_group("mutate");
    for containers in CONTAINERS {
        let body = body(containers)?;
        let shim = Shim::default();
        let answer: Value = serde_json::from_slice(&shim.decide(&body)?)?;
        ensure!(answer["response"]["patch"].is_string(), "the shim leaves the pod as it is: {answer}");
        group.bench_function(BenchmarkId::new("a review of a pod with containers", containers), |bencher| {
            bencher.iter(|| shim.decide(black_box(&body)));
        });
    }
    group.finish();
    Ok(())
}

struct Shim {
    service_account: ServiceAccountFacts,
    config_map: ConfigMapBindings,
    identities: Identities,
    policy: Policy,
}

impl Default for Shim {
    fn default() -> Self {
        let role = ("rolecall.dev/role-arn".to_owned(), "arn:aws:iam::111122223333:role/orders".to_owned());
        Self {
            service_account: ServiceAccountFacts { annotations: BTreeMap::from([role]) },
            config_map: ConfigMapBindings::default(),
            identities: Identities::default(),
            policy: Policy::default(),
        }
    }
}

impl Shim {
    fn decide(&self, body: &[u8]) -> Result<Vec<u8>> {
        let review = review::parse(body).map_err(|error| anyhow!("{error}"))?;
        let sources = Sources {
            service_account: Some(&self.service_account),
            config_map: &self.config_map,
            identities: &self.identities,
        };
        let decision =
            bind(review.namespace(), review.service_account(), review.pod(), sources, &self.policy);
        let mutation = mutate(review.pod_json(), review.namespace(), &decision, &self.policy, review.seed());
        Ok(review.answer(&mutation))
    }
}

/// A review of a pod whose containers have ten variables each.
fn body(containers: usize) -> Result<Vec<u8>> {
    let containers: Vec<_> = (0..containers)
        .map(|n| {
            let env: Vec<_> =
                (0..10).map(|v| json!({"name": format!("V{v}"), "value": "x".repeat(40)})).collect();
            json!({"name": format!("c{n}"), "image": "registry.example/app:1", "env": env})
        })
        .collect();
    Ok(serde_json::to_vec(&json!({
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
    }))?)
}
