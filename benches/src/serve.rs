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

/// Turns that each server takes, and how long one is.
const TURNS: usize = 11;
const TURN: Duration = Duration::from_millis(100);

const PODS: [usize; 3] = [1, 110, 1000];
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// The shares of the floor's rate that are the goals.
const GOAL_REUSED: f64 = 0.85;
const GOAL_ANEW: f64 = 0.95;

struct Measured {
    floor: Side,
    daemon: Side,
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
    let mut node = Node::start(&[], &Vec::new()).await?;
    let mut rows = Vec::new();
    let mut worst: Option<(f64, String)> = None;
    node.add_pods(1).await?;
    let body = node.first_answer().await?;
    let (floor, floor_address) = process::start_floor(client::body(&body)?, &Vec::new())?;
    for pods in PODS {
        node.add_pods(pods).await?;
        for token in [Token::Sent, Token::Absent] {
            let askers = node.askers(pods, token)?;
            for (connections, reuse) in CONNECTIONS.into_iter().flat_map(|n| [(n, true), (n, false)]) {
                let load = Load { connections, reuse };
                let servers = [(&floor, floor_address), (&node.daemon.process, node.daemon.address)];
                let Measured { floor, daemon, ratio } = measure(servers, &askers, load).await?;
                let kind = if reuse { "kept alive" } else { "one per request" };
                let goal = if reuse { GOAL_REUSED } else { GOAL_ANEW };
                if token == Token::Sent {
                    let what = format!("warm requests, {connections} connections, {kind}, {pods} pods");
                    let missed = goal - ratio.median;
                    if worst.as_ref().is_none_or(|(most, _)| *most < missed) {
                        let text = format!(
                            "Farthest from its goal: {what}. There the floor spends {} µs of processor time on a request, \
                             the daemon {}.",
                            in_microseconds(floor.each),
                            in_microseconds(daemon.each)
                        );
                        worst = Some((missed, text));
                    }
                    report.goal(Goal {
                        subject: Subject::WarmRequests,
                        what,
                        goal: format!("{goal:.2} of the floor"),
                        figure: format!("{:.2}", ratio.median),
                        spread: ratio.middle(2),
                        is_met: goal <= ratio.median,
                    });
                }
                rows.push(vec![
                    pods.to_string(),
                    connections.to_string(),
                    kind.to_owned(),
                    if token == Token::Sent { "yes" } else { "no" }.to_owned(),
                    format!("{:.0}", floor.rate),
                    format!("{:.0}", daemon.rate),
                    format!("{:.2}", ratio.median),
                    ratio.middle(2),
                    in_microseconds(floor.each),
                    in_microseconds(daemon.each),
                ]);
            }
        }
    }
    if let Some((_, text)) = worst {
        report.profile(Subject::WarmRequests, text);
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
        "floor, µs of processor",
        "daemon, µs of processor",
    ];
    report.section(
        "serve: warm requests against the floor",
        format!(
            "{}\n{TURNS} turns of {} ms each. Processor time is that of the server for one request: in user space + in the kernel. \
             Without a token the daemon asks the kubelet's directory each time whether the pod is still there.\n",
            table(&head, &rows),
            TURN.as_millis()
        ),
    );
    Ok(())
}

/// Lets the floor and the daemon take turns.
async fn measure(servers: [(&Process, SocketAddr); 2], askers: &[Asker], load: Load) -> Result<Measured> {
    let mut turns = [Vec::new(), Vec::new()];
    let mut spent = [CpuTime::default(); 2];
    let mut requests = [0; 2];
    for _ in 0..TURNS {
        for (side, (process, address)) in servers.iter().enumerate() {
            let before = process.cpu_time()?;
            let done = client::rate(*address, askers, load, TURN).await?;
            spent[side] = spent[side] + (process.cpu_time()? - before);
            requests[side] += done.requests;
            turns[side].push(done.per_second());
        }
    }
    let side = |side: usize| Side {
        rate: Spread::of(turns[side].iter().copied()).median,
        each: spent[side] / requests[side],
    };
    let ratio = Spread::of(turns[0].iter().zip(&turns[1]).map(|(floor, daemon)| daemon / floor));
    Ok(Measured { floor: side(0), daemon: side(1), ratio })
}

fn in_microseconds(time: CpuTime) -> String {
    format!("{:.1} + {:.1}", time.user.as_nanos() as f64 / 1e3, time.system.as_nanos() as f64 / 1e3)
}
