//! What fifty thousand ServiceAccounts cost.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use kube::{
    core::{ObjectMeta, PartialObjectMetaExt},
    runtime::watcher::Event,
};
use rolecall_shim::cache::service_accounts::{ServiceAccounts, Writer};

const COUNT: usize = 50_000;

/// Most that one may cost, in bytes of the process: its name, its place in the table and, for one of five, a role.
const EACH: usize = 300;

fn list(writer: &mut Writer) {
    writer.apply(Event::Init);
    for index in 0..COUNT {
        let role = (index % 5 == 0).then(|| {
            let role = format!("arn:aws:iam::111122223333:role/team-{}/application-{index}", index % 100);
            ("eks.amazonaws.com/role-arn".to_owned(), role)
        });
        // What kubectl leaves on an object is larger than all that is kept of it.
        let applied = ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "x".repeat(600));
        let object = ObjectMeta {
            namespace: Some(format!("namespace-of-a-team-{}", index % 500)),
            name: Some(format!("application-{index}")),
            annotations: Some(role.into_iter().chain([applied]).collect()),
            labels: Some([("app.kubernetes.io/name".to_owned(), format!("application-{index}"))].into()),
            ..ObjectMeta::default()
        };
        writer.apply(Event::InitApply(object.into_response_partial()));
    }
    writer.apply(Event::InitDone);
}

#[test]
fn fifty_thousand_service_accounts_fit_into_fifteen_megabytes_however_often_they_are_listed() {
    let before = resident();
    let (accounts, mut writer) = ServiceAccounts::new(Some("eks.amazonaws.com".to_owned()));
    list(&mut writer);
    let first = resident() - before;
    assert!(first < COUNT * EACH, "{first} bytes for {COUNT} ServiceAccounts");
    for _ in 0..3 {
        list(&mut writer);
    }
    let again = resident() - before;
    assert!(again < COUNT * EACH, "{first} bytes after the first list, {again} after four");
    assert!(
        accounts
            .get("namespace-of-a-team-0", "application-0")
            .is_some_and(|facts| facts.annotations.len() == 1)
    );
}

/// Memory of this process that is in use, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
