//! Warm requests: the daemon and the floor take turns under the same load.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{
    client::{self, Asker, Load},
    node::{Node, Token},
    process::{self, Process},
    report::{Report, table},
};

/// Turns that each server takes, and how long one is.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(100);

/// The shares of the floor's rate that are the goals.
const GOAL_REUSED: f64 = 0.85;
const GOAL_ANEW: f64 = 0.95;

struct Case {
    load: Load,
    /// Pods that ask, of those that are on the node.
    askers: usize,
    token: Token,
    is_goal: bool,
}

struct Ratio {
    floor: f64,
    daemon: f64,
    quarter: f64,
    median: f64,
    three_quarters: f64,
}

/// Runs every case, with 1, 110 and 1 000 pods on the node.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let mut node = Node::start(&[], &Vec::new()).await?;
    let mut rows = Vec::new();
    let mut floor: Option<(Process, SocketAddr)> = None;
    for pods in [1, 110, 1000] {
        node.add_pods(pods).await?;
        let (_, floor) = match &floor {
            Some(floor) => floor,
            None => {
                let answer = node.first_answer().await?;
                floor.insert(process::start_floor(client::body(&answer)?, &Vec::new())?)
            }
        };
        for case in cases(pods) {
            let askers = node.askers(case.askers, case.token)?;
            let ratio = measure(*floor, node.daemon.address, &askers, case.load).await?;
            let Load { connections, reuse } = case.load;
            let kind = if reuse { "kept alive" } else { "one per request" };
            let goal = if reuse { GOAL_REUSED } else { GOAL_ANEW };
            if case.is_goal {
                report.goal(
                    format!("warm requests, connections {kind}, {connections} at a time, {pods} pods"),
                    format!("{goal:.2} of the floor"),
                    format!("{:.2}", ratio.median),
                    goal <= ratio.median,
                );
            }
            rows.push(vec![
                pods.to_string(),
                connections.to_string(),
                kind.to_owned(),
                if case.token == Token::Sent { "yes" } else { "no" }.to_owned(),
                format!("{:.0}", ratio.floor),
                format!("{:.0}", ratio.daemon),
                format!("{:.2}", ratio.median),
                format!("{:.2}–{:.2}", ratio.quarter, ratio.three_quarters),
            ]);
        }
    }
    let head = [
        "pods",
        "connections",
        "of which each is",
        "token",
        "floor, requests/s",
        "daemon, requests/s",
        "ratio",
        "spread",
    ];
    report.section("serve: warm requests against the floor", table(&head, &rows));
    Ok(())
}

fn cases(pods: usize) -> Vec<Case> {
    let sent = |connections, reuse| Case {
        load: Load { connections, reuse },
        askers: pods,
        token: Token::Sent,
        is_goal: true,
    };
    match pods {
        1 => {
            let all = [1, 8, 64].into_iter().flat_map(|n| [sent(n, true), sent(n, false)]);
            // Its address alone tells who asks; then the kubelet's directory is asked each time.
            let without = [true, false].map(|reuse| Case {
                load: Load { connections: 8, reuse },
                askers: 1,
                token: Token::Absent,
                is_goal: false,
            });
            all.chain(without).collect()
        }
        _ => vec![sent(64, true), sent(64, false)],
    }
}

async fn measure(floor: SocketAddr, daemon: SocketAddr, askers: &[Asker], load: Load) -> Result<Ratio> {
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let floor = client::rate(floor, askers, load, TURN).await?;
        turns.push((floor, client::rate(daemon, askers, load, TURN).await?));
    }
    let ratios = sorted(turns.iter().map(|(floor, daemon)| daemon / floor));
    Ok(Ratio {
        floor: sorted(turns.iter().map(|turn| turn.0))[TURNS / 2],
        daemon: sorted(turns.iter().map(|turn| turn.1))[TURNS / 2],
        quarter: ratios[TURNS / 4],
        median: ratios[TURNS / 2],
        three_quarters: ratios[TURNS - 1 - TURNS / 4],
    })
}

/// In rising order.
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
