//! The table against every order of events that a watch can deliver.

use super::*;
use crate::{identity::PodIdentity, pods::Stage};

fn uid(text: &str) -> PodUid {
    text.parse().unwrap()
}

fn pod(id: &str, addresses: &[&str]) -> Pod {
    Pod {
        identity: PodIdentity {
            uid: uid(id),
            namespace: "shop".into(),
            name: "orders-0".into(),
            service_account: "orders".into(),
        },
        on_host_network: false,
        finished: false,
        stage: Stage::Running,
        created_at: std::time::UNIX_EPOCH,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        binding: rolecall_contract::RoleBinding::from_annotations(|_| None),
        token_volumes: [].into(),
    }
}

fn finished(id: &str, addresses: &[&str]) -> Pod {
    Pod { finished: true, ..pod(id, addresses) }
}

fn synced(pods: Vec<Pod>) -> (PodTable, Writer) {
    let (table, mut writer) = PodTable::new();
    writer.apply(Event::Init);
    for pod in pods {
        writer.apply(Event::InitApply(pod));
    }
    writer.apply(Event::InitDone);
    (table, writer)
}

#[track_caller]
fn owner(table: &PodTable, address: &str) -> Vec<String> {
    match table.by_address(address.parse().unwrap()) {
        AddressOwner::One(pod) => vec![pod.uid().to_string()],
        AddressOwner::Several(pods) => pods.iter().map(|pod| pod.uid().to_string()).collect(),
        AddressOwner::Finished => vec!["finished".into()],
        AddressOwner::Nobody => vec![],
    }
}

#[test]
fn nothing_is_known_before_the_first_list_is_complete() {
    let (table, mut writer) = PodTable::new();
    writer.apply(Event::Init);
    writer.apply(Event::InitApply(pod("a", &["10.0.0.1"])));
    assert!(!table.synced());
    assert_eq!(table.by_uid(&uid("a")), UidLookup::Unknown);
    writer.apply(Event::InitDone);
    assert!(table.synced());
    assert_eq!(owner(&table, "10.0.0.1"), ["a"]);
}

#[test]
fn a_late_delete_does_not_evict_the_new_owner_of_an_address() {
    let (table, mut writer) = synced(vec![pod("a", &["10.0.0.1"])]);
    writer.apply(Event::Apply(pod("b", &["10.0.0.1"])));
    assert_eq!(owner(&table, "10.0.0.1"), ["a", "b"]);
    writer.apply(Event::Delete(uid("a")));
    assert_eq!(owner(&table, "10.0.0.1"), ["b"]);
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    // A StatefulSet's pod comes back under its name; the delete of the former one arrives after it.
    let (table, mut writer) = synced(vec![pod("old", &["10.0.0.1"])]);
    writer.apply(Event::Apply(pod("new", &["10.0.0.2"])));
    writer.apply(Event::Delete(uid("old")));
    assert_eq!(owner(&table, "10.0.0.2"), ["new"]);
    assert_eq!(owner(&table, "10.0.0.1"), [""; 0]);
}

#[test]
fn a_finished_pod_holds_no_address() {
    let (table, mut writer) = synced(vec![pod("a", &["10.0.0.1"])]);
    writer.apply(Event::Apply(finished("a", &["10.0.0.1"])));
    assert_eq!(owner(&table, "10.0.0.1"), ["finished"]);
    assert_eq!(table.by_uid(&uid("a")), UidLookup::Finished);
    writer.apply(Event::Apply(pod("b", &["10.0.0.1"])));
    assert_eq!(owner(&table, "10.0.0.1"), ["b"]);
}

#[test]
fn an_address_that_a_pod_gives_up_is_nobodys() {
    let (table, mut writer) = synced(vec![pod("a", &["10.0.0.1", "fd00::1"])]);
    writer.apply(Event::Apply(pod("a", &["10.0.0.2", "fd00::1"])));
    assert_eq!(owner(&table, "10.0.0.1"), [""; 0]);
    assert_eq!(owner(&table, "10.0.0.2"), ["a"]);
    assert_eq!(owner(&table, "fd00::1"), ["a"]);
}

#[test]
fn a_relist_takes_away_who_is_not_in_it_and_tells() {
    let (table, mut writer) = synced(vec![pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"])]);
    writer.apply(Event::Init);
    writer.apply(Event::InitApply(pod("c", &["10.0.0.1"])));
    writer.apply(Event::InitApply(pod("b", &["10.0.0.2"])));
    assert_eq!(owner(&table, "10.0.0.1"), ["a"], "an unfinished list changes nothing");
    let changes = writer.apply(Event::InitDone);
    let told: Vec<_> = changes
        .iter()
        .map(|change| match change {
            Change::Arrived(pod) => format!("arrived {}", pod.uid()),
            Change::Changed { after, .. } => format!("changed {}", after.uid()),
            Change::Left(pod) => format!("left {}", pod.uid()),
        })
        .collect();
    assert_eq!(told, ["left a", "arrived c"], "b did not change, and departures come first");
    assert_eq!(owner(&table, "10.0.0.1"), ["c"]);
    assert_eq!(table.by_uid(&uid("a")), UidLookup::Departed);
}

#[test]
fn a_list_that_breaks_off_is_begun_anew() {
    let (table, mut writer) = synced(vec![pod("a", &[])]);
    writer.apply(Event::Init);
    writer.apply(Event::InitApply(pod("ghost", &[])));
    writer.apply(Event::Init);
    writer.apply(Event::InitApply(pod("a", &[])));
    assert_eq!(writer.apply(Event::InitDone), []);
    assert_eq!(table.by_uid(&uid("ghost")), UidLookup::Unknown);
}

#[test]
fn a_uid_that_was_taken_away_is_told_from_one_never_shown() {
    let (table, mut writer) = synced(vec![pod("a", &[])]);
    assert_eq!(table.by_uid(&uid("b")), UidLookup::Unknown);
    writer.apply(Event::Delete(uid("a")));
    assert_eq!(table.by_uid(&uid("a")), UidLookup::Departed);
    // A list from an API server that lagged behind had lost it; the watch brings it back.
    writer.apply(Event::Apply(pod("a", &["10.0.0.1"])));
    assert_eq!(owner(&table, "10.0.0.1"), ["a"]);
}

#[test]
fn an_event_that_changes_nothing_tells_nothing() {
    let (_, mut writer) = synced(vec![pod("a", &["10.0.0.1"])]);
    assert_eq!(writer.apply(Event::Apply(pod("a", &["10.0.0.1"]))), []);
    assert_eq!(writer.apply(Event::Delete(uid("stranger"))), []);
}

#[tokio::test]
async fn who_subscribed_before_looking_misses_no_change() {
    let (table, mut writer) = synced(vec![]);
    let mut changes = table.changes();
    assert_eq!(owner(&table, "10.0.0.1"), [""; 0]);
    writer.apply(Event::Apply(pod("a", &["10.0.0.1"])));
    changes.changed().await.unwrap();
    assert_eq!(owner(&table, "10.0.0.1"), ["a"]);
}
