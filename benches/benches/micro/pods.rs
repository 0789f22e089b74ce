//! The pods of a node, as the daemon's own table holds them.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use rolecall_daemon::pods::{Event, Pod, PodTable};
use rolecall_sandbox::PodBuilder;

pub(crate) const NODE: &str = "n1";
pub(crate) const AUDIENCE: &str = "sts.amazonaws.com";

/// How many pods a node has: one, what a kubelet runs unless told otherwise, and more than any node has.
pub(crate) const COUNTS: [usize; 3] = [1, 110, 1000];

/// A table of so many pods, each at its address.
pub(crate) fn table(count: usize) -> Result<PodTable> {
    let (table, mut writer) = PodTable::new();
    writer.apply(Event::Init);
    for index in 0..count {
        let object = serde_json::from_value(builder(index).build())?;
        writer.apply(Event::InitApply(Pod::read(&object, AUDIENCE)?));
    }
    writer.apply(Event::InitDone);
    Ok(table)
}

/// The `index`-th pod, which may go without its token.
pub(crate) fn builder(index: usize) -> PodBuilder {
    PodBuilder::new("bench", &format!("bench-{index}"))
        .uid(&uid(index))
        .service_account("bench")
        .node(NODE)
        .role("arn:aws:iam::111122223333:role/bench")
        .ip(&address(index).to_string())
        .token_optional()
}

/// As long as a real one.
pub(crate) fn uid(index: usize) -> String {
    format!("0b6f0a8e-8f0f-4b27-a4e7-{index:012x}")
}

pub(crate) fn address(index: usize) -> IpAddr {
    let [.., high, low] = index.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}
