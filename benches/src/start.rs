//! A daemon that starts on a node full of pods: when is it ready, and when are all of them served?

use std::time::{Duration, Instant};

use anyhow::Result;
use rolecall_sandbox::Behavior;
use tokio::task::{JoinSet, block_in_place};

use crate::{
    node::{self, Node, STS_BURST},
    process::Daemon,
    report::{Goal, Report, Subject, Verdict, table},
    spread::Spread,
    sts::DirectSts,
};

const PODS: usize = 250;
const STARTS: usize = 5;
const STS_TIME: Duration = Duration::from_millis(50);

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let flag = node::sts_burst();
    let flags = [flag.as_str()];
    let mut node = Node::start(&flags, &Vec::new()).await?;
    node.add_pods(PODS).await?;
    node.world.sts.set_behavior(Behavior::slow(STS_TIME));
    let (mut ready, mut served, mut sts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        sts.push(exchanges_alone(&node).await?.as_secs_f64());
        let world = node.world.clone();
        // The former one ends before the next binds its sockets.
        drop(node.daemon);
        let began = Instant::now();
        node.daemon = block_in_place(|| Daemon::start(&world, &flags, &Vec::new()))?;
        ready.push(node.daemon.ready_after.as_secs_f64());
        node.ask_all(0).await?;
        served.push(began.elapsed().as_secs_f64());
    }
    let beyond = Spread::of(served.iter().zip(&sts).map(|(served, sts)| served - sts));
    let [ready, served, sts] = [ready, served, sts].map(|times| Spread::of(times.into_iter()));
    report.goal(Goal {
        subject: Subject::Start,
        what: format!("start with {PODS} pods until ready"),
        goal: "under 1 s".to_owned(),
        figure: format!("{:.3} s", ready.median),
        spread: ready.all(3),
        verdict: Verdict::of(ready.median < 1.0),
    });
    report.goal(Goal {
        subject: Subject::Start,
        what: format!("start with {PODS} pods until each has its credentials"),
        goal: "STS's time + 1 s".to_owned(),
        figure: format!("{:+.3} s", beyond.median),
        spread: beyond.all(3),
        verdict: Verdict::of(beyond.median < 1.0),
    });
    let row =
        |what: &str, seconds: Spread| vec![what.to_owned(), format!("{:.3}", seconds.median), seconds.all(3)];
    let rows = [
        row("from exec to ready", ready),
        row("from exec until every pod has been answered", served),
        row("STS's own time: the same exchanges without the daemon, as many at a time", sts),
    ];
    report.section(
        "start: a daemon on a node full of pods",
        format!(
            "{}\nMedians of {STARTS} starts with {PODS} pods whose tokens are on disk; STS takes {} ms. \
             The connections to it are new on either side, each with a TLS handshake.\n",
            table(&["", "seconds", "spread"], &rows),
            STS_TIME.as_millis()
        ),
    );
    Ok(())
}

async fn exchanges_alone(node: &Node) -> Result<Duration> {
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for first in 0..STS_BURST {
        let world = node.world.clone();
        let mine = (first..PODS).step_by(STS_BURST).map(|index| {
            let pod = &node.pods[index];
            Ok((pod.role().unwrap_or_default().to_owned(), pod.token()?))
        });
        let mine = mine.collect::<Result<Vec<(String, String)>>>()?;
        clients.spawn(async move {
            let mut sts = DirectSts::connect(&world).await?;
            for (role, token) in mine {
                sts.exchange(&role, &token).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(began.elapsed())
}
