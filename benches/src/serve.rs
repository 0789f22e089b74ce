//! Warm requests: the daemon and the floor take turns under the same load.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{
    client::{self, Asker, Load},
    node::{Node, Token},
    process::{self, CpuTime, Process},
    report::{Goal, Report, Subject, table},
    spread::Spread,
};

/// Turns of each server that count, and how long one is.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_millis(250);

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

    fn kind(&self) -> &'static str {
        if self.load.reuse { "kept alive" } else { "one per request" }
    }
}

impl Measured {
    /// What the goal is about.
    fn what(&self) -> String {
        let Case { pods, load: Load { connections, .. }, .. } = self.case;
        let kind = self.case.kind();
        format!("warm requests with a token, {connections} connections, {kind}, {pods} pods on the node")
    }

    fn told_as_farthest(&self) -> String {
        format!(
            "Farthest from its goal: {}. There the floor spends {} µs of processor time on a request, the daemon {}.",
            self.what(),
            in_microseconds(self.floor.each),
            in_microseconds(self.daemon.each)
        )
    }

    /// The floor's processor time to the daemon's.
    fn ratio_of_processor_time(&self) -> f64 {
        self.floor.each.total().as_secs_f64() / self.daemon.each.total().as_secs_f64()
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.case.pods.to_string(),
            self.case.load.connections.to_string(),
            self.case.kind().to_owned(),
            if self.case.token == Token::Sent { "yes" } else { "no" }.to_owned(),
            format!("{:.0}", self.floor.rate),
            format!("{:.0}", self.daemon.rate),
            format!("{:.2}", self.ratio.median),
            self.ratio.middle(2),
            in_microseconds(self.floor.each),
            in_microseconds(self.daemon.each),
            format!("{:.2}", self.ratio_of_processor_time()),
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
    let mut requests = [0; 2];
    for turn in 0..=TURNS {
        // Who comes second finds the machine as the other has left it, so it is not always the same.
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let (process, address) = servers[side];
            let before = process.cpu_time()?;
            let done = client::rate(address, askers, case.load, TURN).await?;
            // What is cold is warm after the first turn, which does not count.
            if turn != 0 {
                spent[side] = spent[side] + (process.cpu_time()? - before);
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
    Ok(Measured { case, floor: side(0), daemon: side(1), ratio })
}

fn goals(figures: &[Measured]) -> Vec<Goal> {
    let goal = |measured: &Measured| {
        let goal = measured.case.goal()?;
        Some(Goal {
            subject: Subject::WarmRequests,
            what: measured.what(),
            goal: format!("{goal:.2} of the floor"),
            figure: format!("{:.2}", measured.ratio.median),
            spread: measured.ratio.middle(2),
            is_met: goal <= measured.ratio.median,
        })
    };
    figures.iter().filter_map(goal).collect()
}

/// The case that misses its goal by the most, or is the nearest to missing it.
fn farthest(figures: &[Measured]) -> Option<&Measured> {
    let missed = figures.iter().filter_map(|it| Some((it.case.goal()? - it.ratio.median, it)));
    missed.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, worst)| worst)
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
        "spread",
        "floor, µs of processor",
        "daemon, µs of processor",
        "ratio of processor time",
    ];
    let rows: Vec<_> = figures.iter().map(Measured::row).collect();
    format!(
        "{}\n{TURNS} turns of {} ms each, after one that does not count; the floor is first in every other one.\n\
         Processor time is that of the server for one request: in user space + in the kernel; its ratio is the floor's to the daemon's.\n\
         The goals are about the ratio of rates. \
         The client works on the same processors and spends as much on a request to either, which brings that ratio nearer to 1 than the servers are to each other.\n\
         The goals are for requests with a token. \
         Without one, as pods ask that were given a relative URI, the daemon asks the kubelet's directory each time whether the pod is still there; there is no goal for that.\n",
        table(&head, &rows),
        TURN.as_millis()
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
            ratio: Spread::of([ratio].into_iter()),
        }
    }

    #[track_caller]
    fn check(token: Token, reuse: bool, ratio: f64, expect: &[bool]) {
        let goals = goals(&[measured(token, reuse, ratio)]);
        assert_eq!(goals.iter().map(|goal| goal.is_met).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn a_request_with_a_token_has_a_goal_and_one_without_has_none() {
        check(Token::Sent, true, 0.85, &[true]);
        check(Token::Sent, true, 0.84, &[false]);
        check(Token::Sent, false, 0.95, &[true]);
        check(Token::Sent, false, 0.94, &[false]);
        check(Token::Absent, true, 0.3, &[]);
    }

    #[test]
    fn the_farthest_from_its_goal_is_not_the_slowest() {
        let figures = [(Token::Absent, true, 0.3), (Token::Sent, true, 0.84), (Token::Sent, false, 0.88)]
            .map(|(token, reuse, ratio)| measured(token, reuse, ratio));
        assert_eq!(farthest(&figures).map(|worst| worst.ratio.median), Some(0.88));
        assert!(farthest(&figures[..1]).is_none());
    }
}
