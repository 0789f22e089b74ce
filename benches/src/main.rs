//! Warm requests of the daemon against a bare hyper server with the same bytes, in one run, as a ratio.
//!
//! Absolute times depend on the machine and its mood; the two servers take turns, so what disturbs one disturbs
//! the other.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

mod client;
mod daemon;
mod floor;
mod review;

use std::net::SocketAddr;

use anyhow::Result;

use self::client::Load;

/// Turns that each server takes; odd, so that there is a median.
const ROUNDS: usize = 9;

struct Case {
    name: &'static str,
    load: Load,
    /// The share of the floor's rate that is the goal.
    goal: f64,
}

const CASES: [Case; 4] = [
    Case {
        name: "keep-alive, 1 connection",
        load: Load { connections: 1, requests: 4_000, reuse: true },
        goal: 0.85,
    },
    Case {
        name: "keep-alive, 8 connections",
        load: Load { connections: 8, requests: 2_000, reuse: true },
        goal: 0.85,
    },
    Case {
        name: "keep-alive, 64 connections",
        load: Load { connections: 64, requests: 250, reuse: true },
        goal: 0.85,
    },
    Case {
        name: "a connection per request",
        load: Load { connections: 8, requests: 400, reuse: false },
        goal: 0.95,
    },
];

fn main() -> Result<()> {
    review::run()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let daemon = daemon::start().await?;
    let request = client::request(&daemon.token);
    let reply = client::once(daemon.address, &request).await?;
    let floor = floor::start(reply.clone()).await?;
    println!("warm requests with their token, {} bytes of answer; {ROUNDS} turns each", reply.len());
    println!(
        "{:<28} {:>12} {:>12} {:>7} {:>15} {:>6}",
        "", "floor req/s", "daemon req/s", "ratio", "spread", "goal"
    );
    for case in CASES {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push((
                rate(floor, &request, case.load).await?,
                rate(daemon.address, &request, case.load).await?,
            ));
        }
        report(&case, &rounds);
    }
    Ok(())
}

async fn rate(address: SocketAddr, request: &[u8], load: Load) -> Result<f64> {
    let took = client::run(address, request, load).await?;
    Ok((load.connections * load.requests) as f64 / took.as_secs_f64())
}

fn report(case: &Case, rounds: &[(f64, f64)]) {
    let ratios = sorted(rounds.iter().map(|(floor, daemon)| daemon / floor));
    let floors = sorted(rounds.iter().map(|(floor, _)| *floor));
    let daemons = sorted(rounds.iter().map(|(_, daemon)| *daemon));
    let middle = ROUNDS / 2;
    let met = if case.goal <= ratios[middle] { "met" } else { "missed" };
    println!(
        "{:<28} {:>12.0} {:>12.0} {:>7.2} {:>7.2}–{:<7.2} {:>5.2} {met}",
        case.name,
        floors[middle],
        daemons[middle],
        ratios[middle],
        ratios[0],
        ratios[ROUNDS - 1],
        case.goal
    );
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
