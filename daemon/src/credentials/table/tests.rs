//! What must hold of the table whatever happens to it, in any order.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use rolecall_contract::SessionDuration;
use zeroize::Zeroizing;

use super::*;
use crate::{
    credentials::{Issued, SessionNameTemplate, SessionNameValues, Urgency},
    identity::PodIdentity,
};

#[derive(Debug, Clone)]
enum Op {
    Warm(u8, u8),
    Request(u8, u8),
    HangUp,
    Forget(u8),
    Begin,
    Finish(Result<u64, u8>),
    TokenCame,
    GiveUp,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..3_u8, 0..3_u8).prop_map(|(pod, role)| Op::Warm(pod, role)),
        (0..3_u8, 0..3_u8).prop_map(|(pod, role)| Op::Request(pod, role)),
        Just(Op::HangUp),
        (0..3_u8).prop_map(Op::Forget),
        Just(Op::Begin),
        (66..4000_u64).prop_map(|lifetime| Op::Finish(Ok(lifetime))),
        (0..3_u8).prop_map(|failure| Op::Finish(Err(failure))),
        Just(Op::TokenCame),
        Just(Op::GiveUp),
        (0..2000_u64).prop_map(Op::Pass),
        (0..20_u64).prop_map(Op::Pass),
    ]
}

pub(super) fn request(pod: u8, role: u8) -> SessionRequest {
    let name = format!("pod-{pod}");
    let values =
        SessionNameValues { cluster: "", namespace: "shop", pod: &name, service_account: "", node: "" };
    let pod = PodIdentity {
        uid: name.parse().unwrap(),
        namespace: "shop".into(),
        name: name.as_str().into(),
        service_account: "orders".into(),
    };
    let key = CredentialKey {
        pod: pod.uid.clone(),
        role: format!("arn:aws:iam::111122223333:role/role-{role}").parse().unwrap(),
        session_name: SessionNameTemplate::default().render(&values),
        duration: SessionDuration::from_seconds(3600).unwrap(),
    };
    SessionRequest { key, pod, volumes: [].into(), urgency: Urgency::LEAST }
}

pub(super) fn credentials(request: &SessionRequest, lifetime: u64, now: Now) -> Fetched {
    let issued = Issued {
        access_key_id: "ASIA".to_owned(),
        secret_access_key: Zeroizing::new("secret".to_owned()),
        session_token: Zeroizing::new("token".to_owned()),
        expires_at: now.wall + Duration::from_secs(lifetime),
        assumed_role_arn: None,
        request_id: None,
    };
    Fetched::Issued(Arc::new(Credentials::new(issued, &request.key.role, now.wall).unwrap()))
}

pub(super) fn failure(kind: u8) -> Fetched {
    let text = || Arc::from("text");
    match kind {
        0 => Fetched::TokenMissing,
        1 => Fetched::Failed(FetchError::unreachable("text")),
        _ => Fetched::Failed(FetchError::Denied { code: text(), message: text(), request_id: None }),
    }
}

#[track_caller]
fn check_invariants(table: &Table, now: Now) {
    for (key, entry) in &table.entries {
        let held_back = table.held_back.get(&key.pod).into_iter().flatten();
        let is_held_back = held_back.filter(|(it, _)| it == key).count() != 0;
        assert!(!is_held_back || 0 < table.exchanges_of(&key.pod), "{key:?} is held back by nothing");
        let is_queued = table.queue.contains(key) || is_held_back;
        match entry.phase {
            Phase::Idle => assert!(is_queued, "{key:?} would never be fetched again"),
            Phase::Fetching => assert!(!is_queued, "{key:?} would be fetched twice at a time"),
            Phase::AwaitingToken { .. } => {}
        }
        assert!(table.by_pod[&key.pod].contains(key));
        let status = entry.status.borrow();
        assert!(!status.gone);
        if let Some(credentials) = status.hand_out(now.wall) {
            assert!(now.wall < credentials.handed_out_until());
        }
    }
    assert_eq!(table.by_pod.values().map(Vec::len).sum::<usize>(), table.entries.len());
    let counts = table.counts(now);
    assert_eq!(counts.valid + counts.pending + counts.failed, table.entries.len());
}

proptest! {
    #[test]
    fn nothing_is_lost_fetched_twice_or_handed_out_expired(ops in prop::collection::vec(op(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let mut now = Now { wall: UNIX_EPOCH + Duration::from_secs(1_000_000), at: Instant::now() };
        let mut table = Table::new(Limits { roles: 2, exchanges: 1 });
        let mut waiters = Vec::new();
        let mut fetches: Vec<Work> = Vec::new();
        let mut waits: Vec<Work> = Vec::new();
        for op in ops {
            match op {
                Op::Warm(pod, role) => table.warm(request(pod, role), now),
                Op::Request(pod, role) => {
                    let request = request(pod, role);
                    if let Some(status) = table.request(request.clone(), now) {
                        table.ask(&request.key, now);
                        waiters.push((request.key.clone(), table.generation(&request.key), status));
                    }
                }
                Op::HangUp => drop(waiters.pop()),
                Op::Forget(pod) => {
                    let pod = request(pod, 0).key.pod;
                    table.forget(&pod);
                    prop_assert!(table.entries.keys().all(|key| key.pod != pod));
                    for (key, _, status) in &waiters {
                        if key.pod == pod {
                            prop_assert!(matches!(status.borrow().outcome(now, true), Some(Err(FetchError::PodGone))));
                        }
                    }
                }
                Op::Begin => fetches.extend(table.begin(now)),
                Op::Finish(result) if !fetches.is_empty() => {
                    let work = fetches.remove(0);
                    let fetched = match result {
                        Ok(lifetime) => credentials(&work.request, lifetime, now),
                        Err(kind) => failure(kind),
                    };
                    let was_there = table.generation(&work.ticket.key) == Some(work.ticket.generation);
                    let consequence = table.finish(&work.ticket, fetched, now);
                    prop_assert_eq!(was_there, !matches!(consequence, Consequence::Dropped));
                    prop_assert_eq!(was_there, !work.alive.is_cancelled());
                    if let Consequence::AwaitToken(work) = consequence {
                        waits.push(*work);
                    }
                }
                Op::TokenCame if !waits.is_empty() => drop(table.token_came(&waits.remove(0).ticket, now)),
                Op::GiveUp => {
                    if let Some((key, Some(generation), _)) = waiters.pop() {
                        drop(table.give_up(&key, generation, now));
                    }
                }
                Op::Pass(seconds) => {
                    now.wall += Duration::from_secs(seconds);
                    now.at += Duration::from_secs(seconds);
                    table.follow_clock(now);
                }
                Op::Finish(_) | Op::TokenCame => {}
            }
            check_invariants(&table, now);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_requests_wanted_is_kept_for_a_minute_after_the_last_of_them() {
    let start = Now { wall: UNIX_EPOCH + Duration::from_secs(1_000_000), at: Instant::now() };
    let after = |seconds| Now {
        wall: start.wall + Duration::from_secs(seconds),
        at: start.at + Duration::from_secs(seconds),
    };
    let mut table = Table::new(Limits { roles: 2, exchanges: 1 });
    let request = request(0, 0);
    for asked_at in [0, 50] {
        let now = after(asked_at);
        drop(table.request(request.clone(), now));
        table.ask(&request.key, now);
        let work = table.begin(after(asked_at + 1)).expect("it is asked for");
        table.finish(&work.ticket, failure(1), after(asked_at + 1));
    }
    let work = table.begin(after(109)).expect("it is still tried");
    table.finish(&work.ticket, failure(1), after(109));
    assert!(table.begin(after(111)).is_none());
    assert!(table.entries.is_empty());
}
