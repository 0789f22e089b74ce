//! Measures the daemon against the floor and against its goals; `--help` lists what it can run.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

mod churn;
mod client;
mod cold;
mod floor;
mod instructions;
mod memory;
mod network;
mod node;
mod plot;
mod process;
mod report;
mod review;
mod serve;
mod start;
mod sts;

use std::{env, path::PathBuf};

use anyhow::{Result, bail};

use self::report::Report;

const USAGE: &str = "usage: rolecall-benches [--write DIRECTORY] [BENCHMARK...]

Runs all benchmarks, or those named: serve instructions mutate cold start churn memory lifetimes
--write DIRECTORY  writes README.md and the plots there";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Benchmark {
    Serve,
    Instructions,
    Mutate,
    Cold,
    Start,
    Churn,
    Memory,
    Lifetimes,
}

const ALL: [(&str, Benchmark); 8] = [
    ("serve", Benchmark::Serve),
    ("instructions", Benchmark::Instructions),
    ("mutate", Benchmark::Mutate),
    ("cold", Benchmark::Cold),
    ("start", Benchmark::Start),
    ("churn", Benchmark::Churn),
    ("memory", Benchmark::Memory),
    ("lifetimes", Benchmark::Lifetimes),
];

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let (mut directory, mut wanted) = (None, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            // How this program starts itself.
            "floor" => return floor::run(words.next().unwrap_or_default()),
            "--write" => directory = words.next().map(PathBuf::from),
            name => match ALL.iter().find(|(it, _)| *it == name) {
                Some((_, benchmark)) => wanted.push(*benchmark),
                None => bail!("{USAGE}"),
            },
        }
    }
    if wanted.is_empty() {
        wanted = ALL.iter().map(|(_, benchmark)| *benchmark).collect();
    }
    network::enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::default();
    runtime.block_on(run(&wanted, &mut report))?;
    report.print_goals();
    match directory {
        Some(directory) => report.write(&directory),
        None => Ok(()),
    }
}

async fn run(wanted: &[Benchmark], report: &mut Report) -> Result<()> {
    for benchmark in wanted {
        match benchmark {
            Benchmark::Serve => serve::run(report).await?,
            Benchmark::Instructions => instructions::run(report).await?,
            Benchmark::Mutate => review::run(report)?,
            Benchmark::Cold => cold::run(report).await?,
            Benchmark::Start => start::run(report).await?,
            Benchmark::Churn => churn::run(report).await?,
            Benchmark::Memory => memory::run(report).await?,
            Benchmark::Lifetimes => memory::lifetimes(report).await?,
        }
    }
    Ok(())
}
