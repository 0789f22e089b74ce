//! What the daemon's memory is and consists of, and what a pod and a waiting request cost.

use std::time::Duration;

use anyhow::{Context, Result};
use rolecall_sandbox::Behavior;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client,
    node::{self, LIMIT, Node, Token},
    process::Process,
    report::{Goal, Report, Subject, table},
    smaps::{self, Part, Parts},
    spread::Spread,
};

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// Pods on the node when its memory is read.
const STEPS: [usize; 4] = [0, 250, 500, 1000];

/// Of these, which the goal is about.
const WARM: usize = 250;

/// Daemons whose memory is read: where threads happen to run moves it a little.
const DAEMONS: usize = 3;

const GOAL_WARM: f64 = 20.0;
const GOAL_POD_KIB: f64 = 16.0;

/// Requests that wait together, and of how many pods: as many as get their exchanges within four seconds.
const WAITING: usize = 1000;
const WAITING_PODS: usize = 50;
const GOAL_WAITING: f64 = 10.0;

/// How long the processor time of waiting requests is measured.
const WATCHED: Duration = Duration::from_secs(3);

/// Memory with more and more warm pods, and of requests that wait.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let mut steps = STEPS.map(|_| Vec::new());
    for _ in 0..DAEMONS {
        let mut node = Node::start(&[], &Vec::new()).await?;
        for (pods, read) in STEPS.into_iter().zip(&mut steps) {
            node.add_pods(pods).await?;
            settle().await;
            read.push(Memory::of(&node.daemon.process)?);
        }
    }
    warm(report, &steps);
    waiting(report).await
}

/// One reading, in bytes.
struct Memory {
    resident: u64,
    own: u64,
    parts: Parts,
}

impl Memory {
    fn of(process: &Process) -> Result<Self> {
        Ok(Self {
            resident: process.resident_memory()?,
            own: process.anonymous_memory()?,
            parts: smaps::read(process.id(), "rolecall-daemon")?,
        })
    }

    fn part(&self, part: Part) -> u64 {
        self.parts.get(&part).copied().unwrap_or_default()
    }
}

/// Own memory of a process, in MiB.
pub(crate) fn own_memory(process: &Process) -> Result<f64> {
    Ok(process.anonymous_memory()? as f64 / MIB)
}

fn warm(report: &mut Report, steps: &[Vec<Memory>; STEPS.len()]) {
    let of = |step: usize, what: &dyn Fn(&Memory) -> u64| {
        Spread::of(steps[step].iter().map(|memory| what(memory) as f64 / MIB))
    };
    let at_goal = STEPS.iter().position(|pods| *pods == WARM).unwrap_or_default();
    let last = STEPS.len() - 1;
    let resident = of(at_goal, &|memory| memory.resident);
    report.goal(Goal {
        subject: Subject::WarmMemory,
        what: format!("resident memory with {WARM} warm pods"),
        goal: format!("{GOAL_WARM:.0} MiB"),
        figure: format!("{:.1} MiB", resident.median),
        spread: resident.all(1),
        is_met: resident.median <= GOAL_WARM,
    });
    let grown = steps[last]
        .iter()
        .zip(&steps[at_goal])
        .map(|(most, fewer)| (most.own as f64 - fewer.own as f64) / 1024.0 / (STEPS[last] - WARM) as f64);
    let each = Spread::of(grown);
    report.goal(Goal {
        subject: Subject::WarmMemory,
        what: "memory of one more pod".to_owned(),
        goal: format!("{GOAL_POD_KIB:.0} KiB"),
        figure: format!("{:.1} KiB", each.median),
        spread: each.all(1),
        is_met: each.median <= GOAL_POD_KIB,
    });
    let rows = (0..STEPS.len()).map(|step| {
        let resident = of(step, &|memory| memory.resident);
        let own = of(step, &|memory| memory.own);
        let heap = of(step, &|memory| memory.part(Part::Heap));
        vec![
            STEPS[step].to_string(),
            format!("{:.1}", resident.median),
            resident.all(1),
            format!("{:.1}", own.median),
            format!("{:.1}", heap.median),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let shown = |step: usize, part| format!("{:.1}", of(step, &|memory| memory.part(part)).median);
    let split: Vec<Vec<String>> = Part::ALL
        .map(|part| vec![part.name().to_owned(), shown(0, part), shown(at_goal, part), shown(last, part)])
        .into();
    let split = table(&["MiB", "no pod", &format!("{WARM} pods"), &format!("{} pods", STEPS[last])], &split);
    report.profile(Subject::WarmMemory, format!("What is resident (`/proc/<pid>/smaps`):\n\n{split}"));
    report.section(
        "memory: what pods cost",
        format!(
            "{}\nMedians of {DAEMONS} daemons. Every pod has been answered once. \
             Resident memory has the pages of the program itself in it, which come and go with the page cache; own memory (`RssAnon`) has not.\n\n{split}",
            table(&["warm pods", "resident, MiB", "spread", "own, MiB", "heap, MiB"], &rows)
        ),
    );
}

/// What so many waiting requests add in memory, and which share of a core they take.
async fn waiting(report: &mut Report) -> Result<()> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(Duration::from_secs(15)));
    for index in 0..WAITING_PODS {
        node.pods.push(node.world.pod(node::pod(index))?);
    }
    // Every exchange is out, and the second attempts that there are places for: what they cost is not the requests'
    // cost.
    node.world.sts.wait_for_requests(WAITING_PODS).await;
    sleep(Duration::from_secs(4)).await;
    let process = &node.daemon.process;
    let before = Memory::of(process)?;
    let mut asked = JoinSet::new();
    for request in 0..WAITING {
        let (server, asker) = (node.daemon.address, node.asker(request % WAITING_PODS, Token::Sent)?);
        asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
    }
    sleep(Duration::from_secs(2)).await;
    let spent = process.cpu_time()?;
    sleep(WATCHED).await;
    let spent = (process.cpu_time()? - spent).total();
    let during = Memory::of(process)?;
    while let Some(answer) = asked.join_next().await {
        answer?.context("a request that waited")?;
    }
    let grown = (during.own as f64 - before.own as f64) / MIB;
    let share = spent.as_secs_f64() / WATCHED.as_secs_f64();
    report.goal(Goal {
        subject: Subject::WaitingRequests,
        what: format!("memory of {WAITING} requests that wait"),
        goal: format!("{GOAL_WAITING:.0} MiB"),
        figure: format!("{grown:.1} MiB"),
        spread: String::new(),
        is_met: grown <= GOAL_WAITING,
    });
    report.goal(Goal {
        subject: Subject::WaitingRequests,
        what: format!("processor time of {WAITING} requests that wait"),
        goal: "5 % of one core".to_owned(),
        figure: format!("{:.1} %", share * 100.0),
        spread: String::new(),
        is_met: share <= 0.05,
    });
    let rows: Vec<Vec<String>> = Part::ALL
        .map(|part| {
            let (before, during) = (before.part(part) as f64 / MIB, during.part(part) as f64 / MIB);
            let each = (during - before) * 1024.0 / WAITING as f64;
            vec![part.name().to_owned(), format!("{before:.1}"), format!("{during:.1}"), format!("{each:.1}")]
        })
        .into();
    let split = table(&["MiB", "before", "while they wait", "KiB each"], &rows);
    report
        .profile(Subject::WaitingRequests, format!("Where the memory is (`/proc/<pid>/smaps`):\n\n{split}"));
    report.section(
        "waiting: what requests cost that wait for a slow STS",
        format!(
            "{WAITING} requests of {WAITING_PODS} pods, each on a connection of its own, wait for an STS that takes 15 s; \
             all were answered in the end. Each gets a byte every 0.4 s, and {share:.3} of a core was spent on that.\n\n{split}"
        ),
    );
    Ok(())
}

/// Lets connections end and idle memory be given back.
async fn settle() {
    sleep(Duration::from_secs(1)).await;
}
