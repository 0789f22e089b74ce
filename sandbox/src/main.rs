//! `rolecall-sandbox`: the main job on one machine, without a cluster, an AWS account or root.
#![allow(clippy::print_stdout, reason = "what the demo prints is what it is for")]

mod demo;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The world around the Rolecall daemon, on this machine.
#[derive(Debug, Parser)]
#[command(name = "rolecall-sandbox", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon against a small cluster and an STS of our own, with two pods of different roles.
    Demo(demo::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Demo(args) = Args::parse().command;
    match demo::run(&args).await {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell if even this cannot be written.
            let _unwritable = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
