//! A daemon that takes over from another one under load: when does it serve, and does any request fail?

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::task::{JoinSet, block_in_place};

use crate::{
    client::{self, Asker},
    node::{LIMIT, Node, Token},
    process::Daemon,
    report::{Goal, Report, Subject, table},
    spread::{Spread, sorted},
};

const PODS: usize = 250;

/// Daemons that take over, one after another.
const TAKEOVERS: usize = 5;

/// Pods that ask all the time: half of them keep their connections.
const CLIENTS: usize = 16;

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);

/// Requests on either side of a hand-over that make sure that it happens under load.
const AROUND: Duration = Duration::from_millis(300);

/// What the clients saw of one hand-over.
#[derive(Default)]
struct Seen {
    answered: usize,
    failures: Vec<String>,
    /// How long each request took, in milliseconds.
    waits: Vec<f64>,
}

/// Starts daemon after daemon on a node that is asked all the time.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let flag = format!("--handover-socket={}", scratch.path().join("handover/handover.sock").display());
    let flags = [flag.as_str()];
    let mut node = Node::start(&flags, &Vec::new()).await?;
    node.add_pods(PODS).await?;
    let exchanges = node.world.sts.call_count();
    let (mut ready, mut waits, mut ordinary) = (Vec::new(), Vec::new(), Vec::new());
    let (mut answered, mut failures) = (0, Vec::new());
    for _ in 0..TAKEOVERS {
        let world = node.world.clone();
        let quiet = Clients::start(&node)?;
        tokio::time::sleep(AROUND).await;
        ordinary.extend(sorted(quiet.stop().await?.waits.into_iter()).last().copied());
        let clients = Clients::start(&node)?;
        tokio::time::sleep(AROUND).await;
        let next = block_in_place(|| Daemon::start(&world, &flags, &Vec::new()))?;
        ready.push(next.ready_after.as_secs_f64());
        tokio::time::sleep(AROUND).await;
        let seen = clients.stop().await?;
        waits.extend(sorted(seen.waits.into_iter()).last().copied());
        answered += seen.answered;
        failures.extend(seen.failures);
        // The kubelet stops the old one only once the new one is ready.
        std::mem::replace(&mut node.daemon, next).process.end()?;
    }
    let exchanged = node.world.sts.call_count() - exchanges;
    let (ready, waits) = (Spread::of(ready.into_iter()), Spread::of(waits.into_iter()));
    report.goal(Goal {
        subject: Subject::Start,
        what: format!("hand-over with {PODS} pods until the new daemon serves"),
        goal: "under 1 s".to_owned(),
        figure: format!("{:.3} s", ready.median),
        spread: ready.all(3),
        is_met: ready.median < 1.0,
    });
    report.goal(Goal {
        subject: Subject::Start,
        what: format!("requests that fail in {TAKEOVERS} hand-overs"),
        goal: "none".to_owned(),
        figure: format!("{} of {answered}", failures.len()),
        spread: String::new(),
        is_met: failures.is_empty() && answered != 0,
    });
    report.goal(Goal {
        subject: Subject::Start,
        what: format!("exchanges with STS for {TAKEOVERS} hand-overs"),
        goal: "none".to_owned(),
        figure: exchanged.to_string(),
        spread: String::new(),
        is_met: exchanged == 0,
    });
    let row = |what: &str, figure: String, spread: String| vec![what.to_owned(), figure, spread];
    let ordinary = Spread::of(ordinary.into_iter());
    let rows = [
        row("from exec until the new daemon serves, s", format!("{:.3}", ready.median), ready.all(3)),
        row("longest wait of a request across a hand-over, ms", format!("{:.1}", waits.median), waits.all(1)),
        row(
            "longest wait of a request in the 0.3 s before, ms",
            format!("{:.1}", ordinary.median),
            ordinary.all(1),
        ),
        row("requests answered, and failed", format!("{answered}, {}", failures.len()), String::new()),
        row("exchanges with STS", exchanged.to_string(), String::new()),
    ];
    report.section(
        "handover: a daemon that takes over from another",
        format!(
            "{}\nMedians of {TAKEOVERS} hand-overs with {PODS} warm pods, of which {CLIENTS} ask again and again, with pauses of {} ms; \
             one half keeps its connections, the other opens one for each request, and nobody tries twice.\n{}",
            table(&["", "", "spread"], &rows),
            PAUSE.as_millis(),
            failures.first().map(|failure| format!("The first failure: {failure}\n")).unwrap_or_default()
        ),
    );
    Ok(())
}

/// Clients under way.
struct Clients {
    tasks: JoinSet<Result<Seen>>,
    is_over: Arc<AtomicBool>,
}

impl Clients {
    fn start(node: &Node) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for client in 0..CLIENTS {
            let asker = node.asker(client, Token::Sent)?;
            let (server, is_over) = (node.daemon.address, is_over.clone());
            tasks.spawn(async move { ask_on(server, asker, client % 2 == 0, &is_over).await });
        }
        Ok(Self { tasks, is_over })
    }

    /// Ends them, and says what they saw.
    async fn stop(mut self) -> Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen.context("a client")??;
            all.answered += seen.answered;
            all.failures.extend(seen.failures);
            all.waits.extend(seen.waits);
        }
        ensure!(all.answered != 0 || !all.failures.is_empty(), "no client has asked anything");
        Ok(all)
    }
}

async fn ask_on(server: SocketAddr, asker: Asker, keeps: bool, is_over: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut kept = None;
    while !is_over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        match tokio::time::timeout(LIMIT, client::ask(server, &asker, &mut kept)).await? {
            Ok(_) => seen.answered += 1,
            Err(error) => {
                seen.failures.push(format!("{error:#}"));
                kept = None;
            }
        }
        seen.waits.push(asked.elapsed().as_secs_f64() * 1e3);
        if !keeps {
            kept = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(seen)
}
