//! Whether the daemon's memory grows while pods come and go.

use std::env;

use anyhow::{Context, Result};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    client,
    memory::{MIB, own_memory},
    network::pod_address,
    node::{self, LIMIT, Node},
    plot::{Plot, Series},
    report::{Goal, Report, Subject, table},
    smaps::{self, Part, Parts},
    spread::Spread,
};

/// Pods at a time, and in all.
const LANES: usize = 200;
const LIVES: usize = 100_000;

const GOAL_GROWTH: f64 = 1.0;

/// How often memory is read.
const POINTS: usize = 100;

/// Lets pods come, be served and go; `ROLECALL_BENCH_LIVES` says how many.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let lives = env::var("ROLECALL_BENCH_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(LIVES);
    let node = Node::start(&["--log-level=warn"], &Vec::new()).await?;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (world, server, ended) = (node.world.clone(), node.daemon.address, ended.clone());
        lanes.spawn(async move {
            for _ in (lane..lives).step_by(LANES) {
                // The token is on disk before the watch shows the pod, so that no life waits for it.
                let pod = world.prepare(node::pod(lane));
                pod.trust();
                pod.write_token()?;
                pod.register();
                let asker = client::Asker::new(pod_address(lane), Some(&pod.token()?));
                client::answer(server, &asker, LIMIT).await.context("a pod's request")?;
                pod.remove()?;
                ended.send(()).context("the count goes on")?;
            }
            anyhow::Ok(())
        });
    }
    drop(ended);
    let (mut done, mut points) = (0, Vec::new());
    let each = (lives / POINTS).max(1);
    let read = || smaps::read(node.daemon.process.id(), "rolecall-daemon");
    let mut early_parts = Parts::new();
    while endings.recv().await.is_some() {
        done += 1;
        if done % each == 0 {
            points.push((done as f64, own_memory(&node.daemon.process)?));
        }
        if done == lives * 3 / 10 {
            early_parts = read()?;
        }
    }
    let late_parts = read()?;
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    // What is asked for in the first tenth stays for reuse.
    let of_tenth = |tenth: usize| {
        let part = &points[points.len() * tenth / 10..points.len() * (tenth + 1) / 10];
        Spread::of(part.iter().map(|point| point.1))
    };
    let (early, late) = (of_tenth(2), of_tenth(9));
    let growth = late.median - early.median;
    report.goal(Goal {
        subject: Subject::Growth,
        what: format!("growth of memory over {done} pod lifetimes"),
        goal: format!("at most {GOAL_GROWTH:.0} MiB"),
        figure: format!("{growth:+.2} MiB"),
        spread: String::new(),
        is_met: done == lives && growth <= GOAL_GROWTH,
    });
    let rows = Part::ALL.map(|part| {
        let of = |parts: &Parts| parts.get(&part).copied().unwrap_or_default() as f64 / MIB;
        vec![part.name().to_owned(), format!("{:.2}", of(&early_parts)), format!("{:.2}", of(&late_parts))]
    });
    let split = table(&["MiB", "after three tenths", "at the end"], &rows);
    report
        .profile(Subject::Growth, format!("What grew over pod lifetimes (`/proc/<pid>/smaps`):\n\n{split}"));
    report.section(
        "lifetimes: memory while pods come and go",
        format!(
            "{LANES} pods at a time come, are served and go, {done} in all: more than a node sees in months.\n\
             Own memory (`RssAnon`) was {:.2} MiB in the third tenth ({}) and {:.2} MiB in the last ({}).\n\n\
             ![own memory over pod lifetimes](lifetimes.svg)\n",
            early.median,
            early.all(2),
            late.median,
            late.all(2)
        ),
    );
    let series = vec![Series { name: "own memory", points }];
    report.plot(
        "lifetimes.svg",
        Plot { title: "memory of the daemon", x: "pods that have come and gone", y: "MiB", series },
    );
    Ok(())
}
