//! Measures the daemon against the floor and against its goals; `--help` lists what it can run.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

mod bench_targets;
mod caches;
mod callgrind;
mod churn;
mod client;
mod code;
mod cold;
mod floor;
mod handover;
mod heap;
mod instructions;
mod lifetimes;
mod machine;
mod massif;
mod memory;
mod network;
mod node;
mod order;
mod pauses;
mod plot;
mod process;
mod report;
mod scratch;
mod serve;
mod smaps;
mod spread;
mod start;
mod sts;
mod threads;
mod valgrind;
mod waiting;
mod warm;

use std::{env, path::PathBuf, time::Instant};

use anyhow::{Result, bail, ensure};

use self::report::Report;

const USAGE: &str = "usage: rolecall-benches [--write DIRECTORY] [BENCHMARK...]
       rolecall-benches order

Runs all benchmarks, or those named: serve instructions micro cold start handover churn memory heap lifetimes day
--write DIRECTORY  writes README.md and the plots there
order              prints the symbols of what the daemon runs, in the order in which they are to be linked";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Benchmark {
    Serve,
    Instructions,
    Micro,
    Cold,
    Start,
    Handover,
    Churn,
    Memory,
    Heap,
    Lifetimes,
    Day,
}

const ALL: [(&str, Benchmark); 11] = [
    ("serve", Benchmark::Serve),
    ("instructions", Benchmark::Instructions),
    ("micro", Benchmark::Micro),
    ("cold", Benchmark::Cold),
    ("start", Benchmark::Start),
    ("handover", Benchmark::Handover),
    ("churn", Benchmark::Churn),
    ("memory", Benchmark::Memory),
    ("heap", Benchmark::Heap),
    ("lifetimes", Benchmark::Lifetimes),
    ("day", Benchmark::Day),
];

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let (mut directory, mut wanted, mut is_order) = (None, Vec::new(), false);
    while let Some(word) = words.next() {
        match word.as_str() {
            // How this program starts itself.
            "floor" => return floor::run(words.next().unwrap_or_default()),
            "order" => is_order = true,
            "--write" => directory = words.next().map(PathBuf::from),
            name => match ALL.iter().find(|(it, _)| *it == name) {
                Some(found) => wanted.push(*found),
                None => bail!("{USAGE}"),
            },
        }
    }
    if wanted.is_empty() {
        wanted = ALL.into();
    }
    ensure!(
        !cfg!(debug_assertions),
        "the floor of a debug build says nothing: cargo run --release -p rolecall-benches"
    );
    network::enter()?;
    scratch::keep_in_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if is_order {
        return runtime.block_on(order::run());
    }
    let mut report = Report::begin();
    let mut failed = Vec::new();
    for (name, benchmark) in wanted {
        let began = Instant::now();
        // What the others have measured is not thrown away for it.
        if let Err(error) = runtime.block_on(run(benchmark, &mut report)) {
            println!("{name} failed: {error:#}");
            failed.push(name);
        }
        report.took(name, began.elapsed());
    }
    report.print_goals();
    // The page would not show what it lacks.
    ensure!(failed.is_empty(), "not measured to the end: {}; no page is written", failed.join(", "));
    if let Some(directory) = directory {
        report.write(&directory)?;
    }
    Ok(())
}

async fn run(benchmark: Benchmark, report: &mut Report) -> Result<()> {
    match benchmark {
        Benchmark::Serve => serve::run(report).await,
        Benchmark::Instructions => instructions::run(report).await,
        Benchmark::Micro => bench_targets::micro(report),
        Benchmark::Cold => cold::run(report).await,
        Benchmark::Start => start::run(report).await,
        Benchmark::Handover => handover::run(report).await,
        Benchmark::Churn => churn::run(report).await,
        Benchmark::Memory => {
            memory::run(report).await?;
            waiting::run(report).await
        }
        Benchmark::Heap => heap::run(report).await,
        Benchmark::Lifetimes => lifetimes::run(report).await,
        Benchmark::Day => bench_targets::day(report),
    }
}
