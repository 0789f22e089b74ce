//! Whether the daemon's memory grows while pods come and go.

use std::env::{self, VarError};

use anyhow::{Context, Result, ensure};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    client,
    memory::{MIB, PROGRAM, own_memory},
    network::pod_address,
    node::{self, LIMIT, Node},
    plot::{Plot, Series},
    report::{self, Goal, Report, Subject, Verdict, table},
    smaps::{self, Part, Parts},
    spread::Spread,
};

const TITLE: &str = "lifetimes: memory while pods come and go";

/// Pods at a time, and in all.
const LANES: usize = 200;
const LIVES: usize = 100_000;

/// The tenths of all lives that are compared: by the first of them everything is full that the daemon remembers of
/// pods that have left, and what it once asked for is there to be used again.
const EARLY: usize = 3;
const LATE: usize = 10;

/// More pods than the daemon remembers anything of once they have left: each such memory ends at 4096.
const FORGOTTEN: usize = 5000;

/// In MiB, between the two.
const GOAL_GROWTH: f64 = 1.0;

/// How often memory is read.
const POINTS: usize = 100;

/// What was measured.
struct Figures {
    lives: usize,
    /// Own memory, in MiB, after so many lives.
    points: Vec<(f64, f64)>,
    /// Of what it consisted at the end of either tenth.
    early: Parts,
    late: Parts,
}

/// Lets pods come, be served and go; `ROLECALL_BENCH_LIVES` says how many.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let figures = measure(lives()?).await?;
    report.goal(goal(&figures));
    report.profile(Subject::Growth, format!("What grew over pod lifetimes is in {}.\n", report::link(TITLE)));
    report.section(TITLE, section(&figures));
    let series = vec![Series { name: "own memory", points: figures.points }];
    report.plot(
        "lifetimes.svg",
        Plot { title: "memory of the daemon", x: "pods that have come and gone", y: "MiB", series },
    );
    Ok(())
}

impl Figures {
    /// Own memory in the `tenth` of ten parts.
    fn in_tenth(&self, tenth: usize) -> Spread {
        let until = |tenth: usize| self.points.len() * tenth / 10;
        Spread::of(self.points[until(tenth - 1)..until(tenth)].iter().map(|point| point.1))
    }
}

fn lives() -> Result<usize> {
    let lives = match env::var("ROLECALL_BENCH_LIVES") {
        Ok(text) => text.parse().with_context(|| format!("ROLECALL_BENCH_LIVES={text}"))?,
        Err(VarError::NotPresent) => LIVES,
        Err(error) => return Err(error).context("ROLECALL_BENCH_LIVES"),
    };
    let before = lives * (EARLY - 1) / 10;
    ensure!(
        FORGOTTEN <= before,
        "{lives} lives are too few: {FORGOTTEN} must be over before memory is compared"
    );
    Ok(lives)
}

async fn measure(lives: usize) -> Result<Figures> {
    let node = Node::start(&["--log-level=warn"], &Vec::new()).await?;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (world, server, ended) = (node.world.clone(), node.daemon.address, ended.clone());
        lanes.spawn(async move {
            for life in (lane..lives).step_by(LANES) {
                // Nothing of a pod is used again but its address, as on a node, whose network has few of them.
                let pod = node::pod_without_address(life).ip(&node::address(lane));
                // The token is on disk before the watch shows the pod, so that no life waits for it.
                let pod = world.prepare(pod);
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
    let read = || smaps::read(node.daemon.process.id(), PROGRAM);
    let mut early = Parts::new();
    while endings.recv().await.is_some() {
        done += 1;
        if done % each == 0 {
            points.push((done as f64, own_memory(&node.daemon.process)?));
        }
        if done == lives * EARLY / 10 {
            early = read()?;
        }
    }
    let late = read()?;
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(Figures { lives, points, early, late })
}

fn goal(figures: &Figures) -> Goal {
    let growth = figures.in_tenth(LATE).median - figures.in_tenth(EARLY).median;
    Goal {
        subject: Subject::Growth,
        what: format!("growth of memory from the third tenth of {} pod lifetimes to the last", figures.lives),
        goal: format!("at most {GOAL_GROWTH:.0} MiB"),
        figure: format!("{growth:+.2} MiB"),
        spread: String::new(),
        verdict: Verdict::of(growth <= GOAL_GROWTH),
    }
}

fn split(figures: &Figures) -> String {
    let rows = Part::ALL.map(|part| {
        let of = |parts: &Parts| parts.get(&part).copied().unwrap_or_default() as f64 / MIB;
        vec![
            part.name().to_owned(),
            format!("{:.2}", of(&figures.early)),
            format!("{:.2}", of(&figures.late)),
        ]
    });
    table(&["MiB", "after three tenths", "at the end"], &rows)
}

fn section(figures: &Figures) -> String {
    let (early, late) = (figures.in_tenth(EARLY), figures.in_tenth(LATE));
    format!(
        "{LANES} pods at a time come, are served and go, {} in all, each with a name, a uid and a token of its own: more than a node sees in months.\n\
         Own memory (`RssAnon`) was {:.2} MiB in the third tenth ({}) and {:.2} MiB in the last ({}). \
         By the third everything is full that the daemon remembers of pods that have left, which are 4096 at the most. \
         The daemon runs with `--log-level=warn`.\n\n{}\n\
         ![own memory over pod lifetimes](lifetimes.svg)\n",
        figures.lives,
        early.median,
        early.all(2),
        late.median,
        late.all(2),
        split(figures)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what is said of memory that is `at` a share of all lives.
    #[track_caller]
    fn check(at: impl Fn(f64) -> f64, figure: &str, expect: Verdict) {
        let points = (1..=POINTS).map(|point| (point as f64, at(point as f64 / POINTS as f64))).collect();
        let goal = goal(&Figures { lives: POINTS, points, early: Parts::new(), late: Parts::new() });
        assert_eq!((goal.figure.as_str(), goal.verdict), (figure, expect));
    }

    #[test]
    fn what_is_full_by_the_third_tenth_is_no_growth() {
        check(|share| 8.0 + 5.0 * (share / 0.2).min(1.0), "+0.00 MiB", Verdict::Met);
        check(|share| 8.0 + 2.0 * share, "+1.40 MiB", Verdict::NotMet);
        check(|share| 8.0 + share, "+0.70 MiB", Verdict::Met);
        check(|share| 8.0 - share, "-0.70 MiB", Verdict::Met);
    }
}
