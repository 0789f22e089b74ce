//! Warm requests: the daemon and the floor take turns under the same load.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{
    client::{self, Asker, Load},
    node::{Node, Token},
    process::{self, CpuTime, Process},
    report::{Goal, Report, Subject, Verdict, counted, table},
    spread::{Spread, geometric_mean},
    warm::{Both, Kind, Times},
};

/// Turns of each server that count: as many as leave little doubt where there is a goal, and few where there is none.
const TURNS_FOR_GOAL: usize = 25;
const TURNS: usize = 3;

/// How long one is, and how long the one is before them that does not count: every pod asks twice in it, for of a first
/// request the daemon remembers nothing.
const TURN: Duration = Duration::from_millis(125);
const WARM_UP: Duration = Duration::from_millis(250);

const PODS: [usize; 3] = [1, 110, 1000];
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// The shares of the floor's rate that are the goals.
const GOAL_REUSED: f64 = 0.85;
const GOAL_ANEW: f64 = 0.95;

/// How is asked, and by whom.
#[derive(Clone, Copy)]
struct Case {
    pods: usize,
    token: Token,
    load: Load,
}

/// What was measured of one case.
struct Measured {
    case: Case,
    floor: Side,
    daemon: Side,
    /// The daemon's rate to the floor's.
    ratio: Spread,
    /// The floor's processor time for a request to the daemon's.
    of_processor_time: f64,
}

/// One of the two servers.
struct Side {
    /// Requests a second.
    rate: f64,
    /// Processor time of the server for one request.
    each: CpuTime,
}

/// Runs every case, with few and many pods on the node.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let figures = measure().await?;
    for goal in goals(&figures) {
        report.goal(goal);
    }
    if let Some(worst) = farthest(&figures) {
        report.profile(Subject::WarmRequests, worst.told_as_farthest());
    }
    report.warm.times = Kind::ALL.into_iter().filter_map(|kind| times(&figures, kind)).collect();
    report.section("serve: warm requests against the floor", section(&figures));
    Ok(())
}

impl Case {
    /// The share of the floor's rate that is the goal. There is none for requests without a token.
    fn goal(&self) -> Option<f64> {
        match (self.token, self.load.reuse) {
            (Token::Absent, _) => None,
            (Token::Sent, true) => Some(GOAL_REUSED),
            (Token::Sent, false) => Some(GOAL_ANEW),
        }
    }

    fn kind(&self) -> Kind {
        Kind::of(self.load.reuse)
    }

    fn turns(&self) -> usize {
        if self.goal().is_some() { TURNS_FOR_GOAL } else { TURNS }
    }
}

impl Measured {
    /// What the goal is about.
    fn what(&self) -> String {
        let Case { pods, load: Load { connections, .. }, .. } = self.case;
        let (connections, pods) = (counted(connections, "connection"), counted(pods, "pod"));
        format!("warm requests with a token, {connections}, {}, {pods} on the node", self.case.kind().name())
    }

    fn told_as_farthest(&self) -> String {
        format!(
            "Farthest from its goal: {}. There the floor spends {} µs of processor time on a request, in user space + in the kernel, the daemon {}.\n",
            self.what(),
            in_microseconds(self.floor.each),
            in_microseconds(self.daemon.each)
        )
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.case.pods.to_string(),
            self.case.load.connections.to_string(),
            self.case.kind().name().to_owned(),
            if self.case.token == Token::Sent { "yes" } else { "no" }.to_owned(),
            format!("{:.0}", self.floor.rate),
            format!("{:.0}", self.daemon.rate),
            format!("{:.3}", self.ratio.median),
            self.ratio.sure(3),
            if self.case.goal().is_some() { self.ratio.middle(3) } else { String::new() },
            in_microseconds(self.floor.each),
            in_microseconds(self.daemon.each),
            format!("{:.3}", self.of_processor_time),
        ]
    }
}

async fn measure() -> Result<Vec<Measured>> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    node.add_pods(1).await?;
    let body = node.first_answer().await?;
    let (floor, floor_address) = process::start_floor(client::body(&body)?, &Vec::new())?;
    let mut figures = Vec::new();
    for pods in PODS {
        node.add_pods(pods).await?;
        let servers = [(&floor, floor_address), (&node.daemon.process, node.daemon.address)];
        for token in [Token::Sent, Token::Absent] {
            let askers = node.askers(pods, token)?;
            for (connections, reuse) in CONNECTIONS.into_iter().flat_map(|n| [(n, true), (n, false)]) {
                let case = Case { pods, token, load: Load { connections, reuse } };
                figures.push(compare(case, servers, &askers).await?);
            }
        }
    }
    Ok(figures)
}

/// Lets the floor and the daemon take turns.
async fn compare(case: Case, servers: [(&Process, SocketAddr); 2], askers: &[Asker]) -> Result<Measured> {
    let mut rates = [Vec::new(), Vec::new()];
    let mut spent = [CpuTime::default(); 2];
    let mut on_cpu = [Duration::ZERO; 2];
    let mut requests = [0; 2];
    for turn in 0..=case.turns() {
        let is_counted = turn != 0;
        // Who comes second finds the machine as the other has left it, so it is not always the same.
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let (process, address) = servers[side];
            let (before, on_cpu_before) = (process.cpu_time()?, process.threads()?);
            let time = if is_counted { TURN } else { WARM_UP };
            let done = client::rate(address, askers, case.load, time).await?;
            if is_counted {
                spent[side] = spent[side] + (process.cpu_time()? - before);
                on_cpu[side] += process.threads()?.on_cpu_since(&on_cpu_before);
                requests[side] += done.requests;
                rates[side].push(done.per_second());
            }
        }
    }
    let side = |side: usize| Side {
        rate: Spread::of(rates[side].iter().copied()).median,
        each: spent[side] / requests[side],
    };
    let ratio = Spread::of(rates[0].iter().zip(&rates[1]).map(|(floor, daemon)| daemon / floor));
    let of_processor_time =
        on_cpu[0].as_secs_f64() / f64::from(requests[0]) / (on_cpu[1].as_secs_f64() / f64::from(requests[1]));
    Ok(Measured { case, floor: side(0), daemon: side(1), ratio, of_processor_time })
}

fn goals(figures: &[Measured]) -> Vec<Goal> {
    let goal = |measured: &Measured| {
        let goal = measured.case.goal()?;
        Some(Goal {
            subject: Subject::WarmRequests,
            what: measured.what(),
            goal: format!("{goal:.2} of the floor"),
            figure: format!(
                "{:.3} (processor time {:.3})",
                measured.ratio.median, measured.of_processor_time
            ),
            spread: measured.ratio.sure(3),
            verdict: Verdict::at_least(goal, &measured.ratio),
        })
    };
    figures.iter().filter_map(goal).collect()
}

/// The case that misses its goal by the most, or is the nearest to missing it.
fn farthest(figures: &[Measured]) -> Option<&Measured> {
    let missed = figures.iter().filter_map(|it| Some((it.case.goal()? - it.ratio.median, it)));
    missed.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, worst)| worst)
}

/// The cases of a kind that have a goal.
fn of_kind(figures: &[Measured], kind: Kind) -> impl Iterator<Item = &Measured> + Clone {
    figures.iter().filter(move |it| it.case.kind() == kind && it.case.goal().is_some())
}

fn times(figures: &[Measured], kind: Kind) -> Option<Times> {
    let is_alone = |it: &&Measured| it.case.pods == 1 && it.case.load.connections == 1;
    let alone = of_kind(figures, kind).find(is_alone)?;
    let count = u32::try_from(of_kind(figures, kind).count()).ok()?;
    let mean = |of: fn(&Measured) -> CpuTime| {
        of_kind(figures, kind).map(of).fold(CpuTime::default(), |sum, each| sum + each) / count
    };
    Some(Times {
        kind,
        alone: Both { floor: alone.floor.each, daemon: alone.daemon.each },
        mean: Both { floor: mean(|it| it.floor.each), daemon: mean(|it| it.daemon.each) },
    })
}

/// All cases of a kind in one line.
fn summary(figures: &[Measured], kind: Kind) -> String {
    let cases = of_kind(figures, kind);
    format!(
        "- {}, all {} cases with a token: {:.3} of the floor's rate, {:.3} by processor time.\n",
        kind.name(),
        cases.clone().count(),
        geometric_mean(cases.clone().map(|it| it.ratio.median)),
        geometric_mean(cases.map(|it| it.of_processor_time))
    )
}

fn section(figures: &[Measured]) -> String {
    let head = [
        "pods on the node",
        "connections",
        "of which each is",
        "token",
        "floor, requests/s",
        "daemon, requests/s",
        "ratio of rates",
        "its median",
        "middle half",
        "floor, µs of processor",
        "daemon, µs of processor",
        "ratio of processor time",
    ];
    let rows: Vec<_> = figures.iter().map(Measured::row).collect();
    format!(
        "Geometric means of the ratios:\n\n{}\n{}\n\
         {TURNS_FOR_GOAL} turns of {} ms each where there is a goal, {TURNS} elsewhere, after one of {} ms that does not count; the floor is first in every other one.\n\
         Processor time is that of the server for one request: in user space + in the kernel. Its ratio is the floor's to the daemon's, and what else runs on the machine moves it least.\n\
         The goals are about the ratio of rates. \
         The client works on the same processors and spends as much on a request to either, which brings that ratio nearer to 1 than the servers are to each other.\n\
         The goals are for requests with a token. \
         Without one, as pods ask that were given a relative URI, the daemon asks the kubelet's directory each time whether the pod is still there; there is no goal for that.\n",
        Kind::ALL.map(|kind| summary(figures, kind)).concat(),
        table(&head, &rows),
        TURN.as_millis(),
        WARM_UP.as_millis()
    )
}

fn in_microseconds(time: CpuTime) -> String {
    format!("{:.1} + {:.1}", time.user.as_nanos() as f64 / 1e3, time.system.as_nanos() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(token: Token, reuse: bool, ratio: f64) -> Measured {
        let load = Load { connections: 8, reuse };
        let side = || Side { rate: 1.0, each: CpuTime::default() };
        Measured {
            case: Case { pods: 110, token, load },
            floor: side(),
            daemon: side(),
            ratio: Spread::of([ratio; TURNS_FOR_GOAL].into_iter()),
            of_processor_time: ratio - 0.1,
        }
    }

    #[track_caller]
    fn check(token: Token, reuse: bool, ratio: f64, expect: &[Verdict]) {
        let goals = goals(&[measured(token, reuse, ratio)]);
        assert_eq!(goals.iter().map(|goal| goal.verdict).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn a_request_with_a_token_has_a_goal_and_one_without_has_none() {
        check(Token::Sent, true, 0.85, &[Verdict::Met]);
        check(Token::Sent, true, 0.84, &[Verdict::NotMet]);
        check(Token::Sent, false, 0.95, &[Verdict::Met]);
        check(Token::Sent, false, 0.94, &[Verdict::NotMet]);
        check(Token::Absent, true, 0.3, &[]);
    }

    #[test]
    fn a_goal_shows_as_many_decimals_as_decide_it() {
        let goals = goals(&[measured(Token::Sent, false, 0.9496)]);
        assert_eq!(goals[0].figure, "0.950 (processor time 0.850)");
        assert_eq!(goals[0].spread, "0.950–0.950 at 95 %");
    }

    #[test]
    fn the_farthest_from_its_goal_is_not_the_slowest() {
        let figures = [(Token::Absent, true, 0.3), (Token::Sent, true, 0.84), (Token::Sent, false, 0.88)]
            .map(|(token, reuse, ratio)| measured(token, reuse, ratio));
        assert_eq!(farthest(&figures).map(|worst| worst.ratio.median), Some(0.88));
        assert!(farthest(&figures[..1]).is_none());
    }

    #[test]
    fn a_summary_is_of_the_cases_of_its_kind_that_have_a_goal() {
        let figures = [(Token::Absent, true, 0.3), (Token::Sent, true, 0.8), (Token::Sent, false, 0.9)]
            .map(|(token, reuse, ratio)| measured(token, reuse, ratio));
        assert_eq!(
            summary(&figures, Kind::KeptAlive),
            "- kept alive, all 1 cases with a token: 0.800 of the floor's rate, 0.700 by processor time.\n"
        );
    }

    #[test]
    fn times_are_those_of_one_connection_and_the_mean_of_all() {
        let of = |connections: usize, microseconds: u64| {
            let user = Duration::from_micros(microseconds);
            let each = CpuTime { user, system: Duration::ZERO };
            let mut it = measured(Token::Sent, true, 0.9);
            it.case = Case { pods: 1, load: Load { connections, reuse: true }, ..it.case };
            Measured { daemon: Side { rate: 1.0, each }, ..it }
        };
        let times = times(&[of(8, 4), of(1, 10)], Kind::KeptAlive).unwrap();
        assert_eq!(times.alone.daemon.user, Duration::from_micros(10));
        assert_eq!(times.mean.daemon.user, Duration::from_micros(7));
    }
}
