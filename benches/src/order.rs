//! Which of the daemon's functions run in its life, in the order in which they are to lie in the program.

use std::{collections::HashSet, fs, time::Duration};

use anyhow::{Context, Result};
use rolecall_sandbox::Behavior;
use tokio::{
    task::{JoinSet, block_in_place},
    time::sleep,
};

use crate::{
    callgrind, client,
    node::{self, LIMIT, Node, Token},
    process::Daemon,
    valgrind::{self, Valgrind},
};

/// Symbols as the linker has them.
const FLAGS: [&str; 2] = ["--tool=callgrind", "--demangle=no"];

/// Pods on the node.
const PODS: usize = 20;

/// Short, so that each is renewed within this program's time; the daemon takes none that ends within a minute.
const SESSION: Duration = Duration::from_secs(150);

/// Each is renewed by then, and the connections to STS have ended.
const RENEWED: Duration = Duration::from_secs(100);

/// More than the daemon waits before it begins an answer that it does not have yet, and drips.
const SLOW: Duration = Duration::from_secs(2);

/// Requests of each kind: a path that is taken once in a while is taken.
const REQUESTS: u64 = 50;

/// Prints the symbols of all that a daemon runs in its life: first what each warm request needs, which is to be near
/// together for the processor's sake, then what comes again and again, then what comes once.
pub(crate) async fn run() -> Result<()> {
    let valgrind = Valgrind::new(&FLAGS)?.context(valgrind::MISSING)?;
    let scratch = tempfile::tempdir()?;
    let handover = format!("--handover-socket={}", scratch.path().join("handover/handover.sock").display());
    let wrapper = |name: &str| valgrind.wrapper("--callgrind-out-file=", name);

    let mut node = Node::start(&[&handover], &wrapper("first")).await?;
    node.world.sts.set_session_seconds(Some(SESSION.as_secs()));
    node.add_pods(PODS).await?;
    let since_the_last = |node: &Node, name| anyhow::Ok(symbols(&valgrind.dump(&node.daemon.process, name)?));
    let start = since_the_last(&node, "first")?;
    warm_requests(&node).await?;
    let warm = since_the_last(&node, "first")?;
    live(&mut node).await?;
    let life = since_the_last(&node, "first")?;

    let world = node.world.clone();
    let next = block_in_place(|| Daemon::start(&world, &[&handover], &wrapper("next")))?;
    let first_daemon = std::mem::replace(&mut node.daemon, next);
    block_in_place(|| first_daemon.process.end())?;
    let end = symbols(&fs::read_to_string(valgrind.path("first"))?);
    warm_requests(&node).await?;
    let next = since_the_last(&node, "next")?;

    let mut seen = HashSet::new();
    for symbol in [warm, life, start, next, end].into_iter().flatten() {
        if seen.insert(symbol.clone()) {
            println!("{symbol}");
        }
    }
    Ok(())
}

/// Some of each kind that finds its answer ready.
async fn warm_requests(node: &Node) -> Result<()> {
    for token in [Token::Sent, Token::Absent] {
        for asker in node.askers(PODS, token)? {
            for reuse in [true, false] {
                client::repeat(node.daemon.address, &asker, reuse, REQUESTS).await?;
            }
        }
    }
    Ok(())
}

/// What happens to a node while its daemon runs: sessions are renewed, connections to STS end, tokens rotate, STS is
/// slow, pods go.
async fn live(node: &mut Node) -> Result<()> {
    sleep(RENEWED).await;
    for pod in &node.pods {
        pod.write_token()?;
    }
    warm_requests(node).await?;
    node.world.sts.set_behavior(Behavior::slow(SLOW));
    let mut asked = JoinSet::new();
    for index in PODS..2 * PODS {
        node.pods.push(node.world.pod(node::pod(index))?);
        let (server, asker) = (node.daemon.address, node.asker(index, Token::Sent)?);
        asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
    }
    while let Some(answer) = asked.join_next().await {
        answer??;
    }
    node.world.sts.behave();
    for pod in node.pods.drain(PODS..) {
        pod.remove()?;
    }
    warm_requests(node).await
}

fn symbols(dump: &str) -> Vec<String> {
    callgrind::functions(dump, "rolecall-daemon").into_iter().map(ToOwned::to_owned).collect()
}
