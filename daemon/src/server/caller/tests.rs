//! Every cell of the caller's table, as a pure decision.

use super::*;
use crate::{identity::PodIdentity, pods::Stage};

/// Pods by what the table distinguishes.
fn pod(id: &str) -> Pod {
    Pod {
        identity: PodIdentity {
            uid: id.parse().unwrap(),
            namespace: "shop".into(),
            name: id.into(),
            service_account: "orders".into(),
        },
        on_host_network: false,
        finished: false,
        stage: Stage::Running,
        created_at: std::time::UNIX_EPOCH,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        binding: rolecall_contract::RoleBinding::from_annotations(|key| {
            (key == rolecall_contract::annotation::TOKEN).then_some("required")
        }),
        token_volumes: [crate::token::volume::TokenVolume { volume: "v".into(), path: "token".into() }]
            .into(),
    }
}

fn p() -> Arc<Pod> {
    Arc::new(pod("p"))
}

fn q() -> Arc<Pod> {
    Arc::new(pod("q"))
}

/// P before the kubelet has reported its address.
fn p_without_address() -> Arc<Pod> {
    Arc::new(Pod { addresses: Vec::new(), ..pod("p") })
}

fn p_on_host_network() -> Arc<Pod> {
    Arc::new(Pod { addresses: Vec::new(), on_host_network: true, ..pod("p") })
}

/// P whose containers were not told to send a token.
fn p_without_rule() -> Arc<Pod> {
    let binding = rolecall_contract::RoleBinding::from_annotations(|_| None);
    Arc::new(Pod { binding, ..pod("p") })
}

fn good(pod: Arc<Pod>) -> TokenSays {
    TokenSays::Good { pod, expired: false }
}

fn expired(pod: Arc<Pod>) -> TokenSays {
    TokenSays::Good { pod, expired: true }
}

fn bad() -> TokenSays {
    TokenSays::Bad(TokenFault::NotAuthentic)
}

/// `caller p`, `refuse wrong_pod`, `wait pod_unknown`, …
fn said(decision: Decision) -> String {
    match decision {
        Decision::Caller(pod) => format!("caller {}", pod.uid()),
        Decision::Wait(refusal) => format!("wait {}", refusal.code()),
        Decision::Refuse(refusal) => format!("refuse {}", refusal.code()),
    }
}

fn testimony(token: TokenSays, address: AddressSays) -> Testimony {
    Testimony { witness: Witness::TokenAndAddress, synced: true, address, token, kubelet_keeps: true }
}

#[track_caller]
fn check(token: TokenSays, address: AddressSays, expect: &str) {
    let testimony = testimony(token, address);
    assert_eq!(said(decide(testimony.clone())), expect, "{testimony:?}");
}

use AddressSays::{Finished, Nobody, Node, Pod as At, Several};

#[test]
fn row_good_token_of_p() {
    check(good(p()), At(p()), "caller p");
    check(good(p_without_address()), Nobody, "caller p");
    check(good(p_without_address()), Finished, "caller p");
    check(good(p_on_host_network()), Nobody, "refuse wrong_pod");
    check(good(p_on_host_network()), Node, "caller p");
    check(good(p()), Node, "refuse wrong_pod");
    check(good(p_without_address()), Node, "refuse wrong_pod");
    check(good(p()), At(q()), "refuse wrong_pod");
    check(good(p_without_address()), At(q()), "refuse wrong_pod");
    check(good(p_on_host_network()), At(q()), "refuse wrong_pod");
    check(good(p()), Several(vec![p(), q()]), "caller p");
    check(good(p()), Several(vec![q(), Arc::new(pod("r"))]), "refuse wrong_pod");
}

#[test]
fn a_pod_that_is_known_elsewhere_is_refused_once_the_watch_had_its_time() {
    check(good(p()), Nobody, "wait wrong_pod");
    check(good(p()), Finished, "wait wrong_pod");
}

#[test]
fn row_token_that_is_not_good() {
    for address in [At(p()), Nobody, Finished, Node, At(q()), Several(vec![p(), q()])] {
        check(bad(), address.clone(), "refuse token_invalid");
        check(TokenSays::Finished, address, "refuse pod_finished");
    }
    // Also where the address alone would do: a wrong token is never ignored.
    check(bad(), At(p_without_rule()), "refuse token_invalid");
}

#[test]
fn row_no_token() {
    check(TokenSays::Absent, At(p_without_rule()), "caller p");
    check(TokenSays::Absent, At(p()), "refuse token_required");
    check(TokenSays::Absent, Nobody, "wait pod_unknown");
    check(TokenSays::Absent, Finished, "wait pod_finished");
    check(TokenSays::Absent, Node, "refuse host_network_needs_token");
    check(TokenSays::Absent, Several(vec![p_without_rule(), q()]), "wait address_ambiguous");
}

#[test]
fn an_expired_token_is_good_only_from_its_pods_own_address() {
    check(expired(p()), At(p()), "caller p");
    check(expired(p_without_address()), Nobody, "refuse token_expired");
    check(expired(p_on_host_network()), Node, "refuse token_expired");
    check(expired(p()), Several(vec![p(), q()]), "refuse token_expired");
    check(expired(p()), At(q()), "refuse wrong_pod");
}

#[test]
fn a_token_of_a_pod_that_was_not_shown_yet_waits_for_the_watch() {
    for address in [At(p()), Nobody, Node, Several(vec![p(), q()])] {
        check(TokenSays::Stranger, address.clone(), "wait pod_unknown");
        check(TokenSays::Open, address, "wait not_ready");
    }
}

#[test]
fn an_address_alone_is_nothing_once_the_kubelet_has_taken_the_token_away() {
    let gone = Testimony { kubelet_keeps: false, ..testimony(TokenSays::Absent, At(p_without_rule())) };
    assert_eq!(said(decide(gone)), "wait pod_unknown");
    // The token in the request proves itself.
    let with_token =
        Testimony { kubelet_keeps: false, ..testimony(good(p_without_rule()), At(p_without_rule())) };
    assert_eq!(said(decide(with_token)), "caller p");
}

#[test]
fn a_pod_without_any_token_is_told_so_rather_than_kept_waiting() {
    let p = Arc::new(Pod { token_volumes: [].into(), ..(*p_without_rule()).clone() });
    let testimony = Testimony { kubelet_keeps: false, ..testimony(TokenSays::Absent, At(p)) };
    assert_eq!(said(decide(testimony)), "caller p");
}

#[test]
fn before_the_table_is_synced_nothing_is_concluded_from_what_is_missing() {
    let unsynced = |token, address| Testimony { synced: false, ..testimony(token, address) };
    for address in [Nobody, Finished, At(p_without_rule())] {
        assert_eq!(said(decide(unsynced(TokenSays::Absent, address))), "wait not_ready");
    }
    assert_eq!(said(decide(unsynced(TokenSays::Stranger, Nobody))), "wait not_ready");
    assert_eq!(said(decide(unsynced(bad(), Nobody))), "refuse token_invalid");
    assert_eq!(said(decide(unsynced(TokenSays::Absent, Node))), "refuse host_network_needs_token");
}

#[test]
fn where_the_token_is_the_only_witness_the_address_says_nothing() {
    let alone = |token, address| Testimony { witness: Witness::Token, ..testimony(token, address) };
    for address in [At(p()), Nobody, Node, At(q()), Several(vec![q()])] {
        assert_eq!(said(decide(alone(good(p()), address.clone()))), "caller p");
        assert_eq!(said(decide(alone(expired(p()), address.clone()))), "refuse token_expired");
        assert_eq!(said(decide(alone(TokenSays::Absent, address.clone()))), "refuse token_required");
        assert_eq!(said(decide(alone(bad(), address.clone()))), "refuse token_invalid");
    }
}
