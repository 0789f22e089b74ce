//! What the daemon's memory is and consists of, and what a pod costs.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    code::{self, Code},
    heap,
    node::Node,
    process::Process,
    report::{self, Goal, Report, Subject, Verdict, table},
    smaps::{self, Part, Parts},
    spread::Spread,
};

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

const TITLE: &str = "memory: what pods cost";

/// Pods on the node when its memory is read.
const STEPS: [usize; 4] = [0, 250, 500, 1000];

/// Of these, which the goal is about.
const WARM: usize = 250;

/// After the last exchange: connections of pods have ended by then, and those to STS have not.
const SETTLED: Duration = Duration::from_secs(1);

/// After the last exchange: those to STS have ended too. The daemon keeps them for 15 s and looks every 15 s for those
/// whose time is over, so that the last one may go after 30.
pub(crate) const REST: Duration = Duration::from_secs(32);

/// Daemons whose memory is read: where threads happen to run moves it a little.
const DAEMONS: usize = 3;

/// What the daemon's program is called.
pub(crate) const PROGRAM: &str = "rolecall-daemon";

const GOAL_WARM: f64 = 20.0;
const GOAL_POD_KIB: f64 = 16.0;

/// What was read of all daemons.
#[derive(Default)]
struct Figures {
    /// Of each step, soon after its pods were answered.
    steps: [Vec<Memory>; STEPS.len()],
    /// Of the pods that the goal is about, at rest.
    at_rest: Vec<Memory>,
    /// Of the last daemon.
    code: Option<Code>,
}

/// One reading, in bytes.
pub(crate) struct Memory {
    resident: u64,
    pub(crate) own: u64,
    parts: Parts,
}

/// Memory with more and more warm pods.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let figures = measure().await?;
    for goal in goals(&figures) {
        report.goal(goal);
    }
    if let Some(code) = figures.code {
        report.profile(Subject::WarmMemory, explanation(code));
    }
    report.section(TITLE, section(&figures));
    Ok(())
}

impl Memory {
    pub(crate) fn of(process: &Process) -> Result<Self> {
        Ok(Self {
            resident: process.resident_memory()?,
            own: process.anonymous_memory()?,
            parts: smaps::read(process.id(), PROGRAM)?,
        })
    }

    pub(crate) fn part(&self, part: Part) -> u64 {
        self.parts.get(&part).copied().unwrap_or_default()
    }
}

/// Own memory of a process, in MiB.
pub(crate) fn own_memory(process: &Process) -> Result<f64> {
    Ok(process.anonymous_memory()? as f64 / MIB)
}

async fn measure() -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..DAEMONS {
        let mut node = Node::start(&[], &Vec::new()).await?;
        for (pods, read) in STEPS.into_iter().zip(&mut figures.steps) {
            node.add_pods(pods).await?;
            sleep(SETTLED).await;
            let process = &node.daemon.process;
            read.push(Memory::of(process)?);
            if pods == WARM {
                sleep(REST - SETTLED).await;
                figures.at_rest.push(Memory::of(process)?);
                figures.code = Some(code::read(process.id(), PROGRAM)?);
            }
        }
    }
    Ok(figures)
}

impl Figures {
    fn of_warm(&self) -> &[Memory] {
        STEPS.iter().zip(&self.steps).find(|(pods, _)| **pods == WARM).map_or(&[], |(_, read)| read)
    }

    /// What one more pod adds, in KiB, between two readings that are as soon after a burst of exchanges: the
    /// connections to STS, of which there are not more for more pods, are in both.
    fn of_one_more(&self) -> Spread {
        let last = STEPS.len() - 1;
        let more = (STEPS[last] - WARM) as f64;
        let grown = self.steps[last].iter().zip(self.of_warm());
        Spread::of(grown.map(|(most, fewer)| (most.own as f64 - fewer.own as f64) / 1024.0 / more))
    }
}

fn mib(readings: &[Memory], of: impl Fn(&Memory) -> u64) -> Spread {
    Spread::of(readings.iter().map(|memory| of(memory) as f64 / MIB))
}

fn goals(figures: &Figures) -> [Goal; 2] {
    let resident = mib(&figures.at_rest, |memory| memory.resident);
    let each = figures.of_one_more();
    [
        Goal {
            subject: Subject::WarmMemory,
            what: format!("resident memory with {WARM} warm pods at rest"),
            goal: format!("{GOAL_WARM:.0} MiB"),
            figure: format!("{:.1} MiB", resident.median),
            spread: resident.all(1),
            verdict: Verdict::of(resident.median <= GOAL_WARM),
        },
        Goal {
            subject: Subject::WarmMemory,
            what: "memory of one more pod".to_owned(),
            goal: format!("{GOAL_POD_KIB:.0} KiB"),
            figure: format!("{:.1} KiB", each.median),
            spread: each.all(1),
            verdict: Verdict::of(each.median <= GOAL_POD_KIB),
        },
    ]
}

fn explanation(code: Code) -> String {
    format!(
        "{}\nThe rest of what is resident is in {}, and who asked for the heap in {}. \
         What was done and tried to make it less is in [what runs lies together](../docs/decisions/0015-what-runs-lies-together.md).\n",
        code.told(),
        report::link(TITLE),
        report::link(heap::TITLE)
    )
}

fn section(figures: &Figures) -> String {
    let row = |pods: usize, after: Duration, readings: &[Memory]| {
        let resident = mib(readings, |memory| memory.resident);
        vec![
            pods.to_string(),
            after.as_secs().to_string(),
            format!("{:.1}", resident.median),
            resident.all(1),
            format!("{:.1}", mib(readings, |memory| memory.own).median),
            format!("{:.1}", mib(readings, |memory| memory.part(Part::Heap)).median),
        ]
    };
    let mut rows = Vec::new();
    for (pods, readings) in STEPS.into_iter().zip(&figures.steps) {
        rows.push(row(pods, SETTLED, readings));
        if pods == WARM {
            rows.push(row(pods, REST, &figures.at_rest));
        }
    }
    let [none, .., most] = &figures.steps;
    let of = |readings: &[Memory], part| format!("{:.1}", mib(readings, |memory| memory.part(part)).median);
    let split: Vec<Vec<String>> = Part::ALL
        .map(|part| vec![part.name().to_owned(), of(none, part), of(&figures.at_rest, part), of(most, part)])
        .into();
    let most = format!("{} pods", STEPS[STEPS.len() - 1]);
    format!(
        "{}\nMedians of {DAEMONS} daemons. Every pod has been answered once; the time is since the last of them. \
         After {} s the daemon still keeps the connections to STS of the burst that has just ended, for up to 30 s; after {} s it has none, and this is what the goal is about: warm pods at rest. \
         What one more pod adds is read with those connections on both sides.\n\
         STS and the API server are spoken to over TLS: what it keeps for each connection is in all of this, and so are the root certificates of a whole system.\n\
         Resident memory has the pages of the program itself in it, which come and go with the page cache; own memory (`RssAnon`) has not.\n\n\
         What is resident (`/proc/<pid>/smaps`):\n\n{}",
        table(&["warm pods", "after, s", "resident, MiB", "spread", "own, MiB", "heap, MiB"], &rows),
        SETTLED.as_secs(),
        REST.as_secs(),
        table(&["MiB", "no pod", &format!("{WARM} pods at rest"), &most], &split)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(kibibytes: u64) -> Memory {
        let bytes = kibibytes * 1024;
        Memory { resident: bytes, own: bytes, parts: Parts::new() }
    }

    #[test]
    fn what_is_judged_is_memory_at_rest_and_what_is_added_is_read_as_soon_after() {
        let steps = [10_000, 21_000, 23_000, 28_500].map(|kibibytes| vec![memory(kibibytes)]);
        let figures = Figures { steps, at_rest: vec![memory(20 * 1024)], code: None };
        let goals = goals(&figures);
        assert_eq!(goals.each_ref().map(|goal| goal.figure.as_str()), ["20.0 MiB", "10.0 KiB"]);
        assert_eq!(goals.map(|goal| goal.verdict), [Verdict::Met, Verdict::Met]);
    }
}
