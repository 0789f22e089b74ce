//! The body of a review: what the API server's port lets in, up to the answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rolecall_shim::{
    binding::{ServiceAccountFacts, Sources, bind},
    config_map::ConfigMapBindings,
    identities::Identities,
    mutate::mutate,
    policy::Policy,
    review,
};

fuzz_target!(|body: &[u8]| {
    let review = match review::parse(body) {
        Ok(review) => review,
        Err(error) => {
            let _ = (error.to_string(), error.answer());
            return;
        }
    };
    let role = ("rolecall.dev/role-arn".to_owned(), "arn:aws:iam::111122223333:role/orders".to_owned());
    let facts = ServiceAccountFacts { annotations: [role].into() };
    let (config_map, identities) = (ConfigMapBindings::default(), Identities::default());
    let sources = Sources { service_account: Some(&facts), config_map: &config_map, identities: &identities };
    let policy = Policy { take_over_irsa: true, pod_role_annotation_allowed: true, ..Policy::default() };
    let decision = bind(review.namespace(), review.service_account(), review.pod(), sources, &policy);
    let mutation = mutate(review.pod_json(), review.namespace(), &decision, &policy, review.seed());
    let answer = review.answer(&mutation);
    assert!(serde_json::from_slice::<serde_json::Value>(&answer).is_ok());
});
