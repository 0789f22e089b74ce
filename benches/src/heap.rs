//! Who asked for the daemon's heap, counted by massif: why memory is what it is.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rolecall_sandbox::Behavior;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client,
    massif::{self, Parts},
    memory::REST,
    node::{self, LIMIT, Node, Token},
    report::{Report, table},
    valgrind::{self, Valgrind},
};

pub(crate) const TITLE: &str = "heap: who asked for it";

/// Pods that are warm.
const WARM: usize = 250;

/// Requests that wait, and of how many pods: fewer than where memory is measured, for the daemon runs twenty times as
/// slowly.
const WAITING: usize = 250;
const WAITING_PODS: usize = 10;

/// Parts of the program that are shown by name.
const SHOWN: usize = 12;

/// Says what warm pods and waiting requests keep on the heap.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let Some(valgrind) = Valgrind::new(&massif::FLAGS)? else {
        report.section(TITLE, valgrind::MISSING.to_owned());
        return Ok(());
    };
    let mut node = Node::start(&[], &valgrind.wrapper("--massif-out-file=", "massif")).await?;
    let none = snapshot(&valgrind, &node, "none").await?;
    node.add_pods(WARM).await?;
    // The connections to STS of the burst have ended then.
    sleep(REST).await;
    let warm = snapshot(&valgrind, &node, "warm").await?;

    node.world.sts.set_behavior(Behavior::slow(Duration::from_secs(15)));
    let out = node.world.sts.call_count();
    for index in WARM..WARM + WAITING_PODS {
        node.pods.push(node.world.pod(node::pod(index))?);
    }
    node.world.sts.wait_for_requests(out + WAITING_PODS).await;
    // The second attempts that there are places for are out by then.
    sleep(Duration::from_secs(4)).await;
    let before = snapshot(&valgrind, &node, "before").await?;
    let mut asked = JoinSet::new();
    for request in 0..WAITING {
        let asker = node.asker(WARM + request % WAITING_PODS, Token::Sent)?;
        let server = node.daemon.address;
        asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
    }
    sleep(Duration::from_secs(4)).await;
    let during = snapshot(&valgrind, &node, "during").await?;
    while let Some(answer) = asked.join_next().await {
        answer?.context("a request that waited")?;
    }
    node.daemon.process.end()?;

    let total = split("KiB in all", &Parts::new(), &warm, 1);
    let each_pod = split("bytes a pod", &none, &warm, WARM);
    let each_request = split("bytes a request", &before, &during, WAITING);
    report.section(
        TITLE,
        format!(
            "Bytes that were asked for; what the allocator adds, and pages that are only touched in part, are not in it.\n\n\
             With {WARM} warm pods at rest, {} s after the last exchange:\n\n{total}\nOf that, each pod's:\n\n{each_pod}\nA request that waits for STS:\n\n{each_request}",
            REST.as_secs()
        ),
    );
    Ok(())
}

async fn snapshot(valgrind: &Valgrind, node: &Node, name: &str) -> Result<Parts> {
    // Connections that have ended are let go meanwhile.
    sleep(Duration::from_secs(1)).await;
    let path = valgrind.path(name);
    valgrind.tell(&node.daemon.process, &format!("detailed_snapshot {}", path.display()))?;
    Ok(massif::parts(&fs::read_to_string(&path).context("read what massif wrote")?))
}

/// What was added between two moments, most of it first, for each of `count`; in KiB where it is all for one.
fn split(unit: &str, before: &Parts, after: &Parts, count: usize) -> String {
    let unit_bytes = if count == 1 { 1024 } else { count as i64 };
    let of = |parts: &Parts, name: &String| parts.get(name).copied().unwrap_or_default() as i64;
    let mut added: Vec<(&str, i64)> =
        after.keys().map(|name| (name.as_str(), of(after, name) - of(before, name))).collect();
    let all: i64 = added.iter().map(|(_, bytes)| bytes).sum();
    added.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let (shown, rest) = added.split_at(added.len().min(SHOWN));
    let row = |name: &str, bytes: i64| vec![name.to_owned(), (bytes / unit_bytes).to_string()];
    let mut rows: Vec<_> = shown.iter().map(|(name, bytes)| row(name, *bytes)).collect();
    rows.push(row("all others", rest.iter().map(|(_, bytes)| bytes).sum()));
    rows.push(row("together", all));
    table(&["asked for by", unit], &rows)
}
