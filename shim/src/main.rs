//! The process: parse, check, harden, run, and say by the exit code how it ended.

use std::process::ExitCode;

use rolecall_process::{
    probe::Question,
    program::{self, Program},
};
use rolecall_shim::{
    app,
    args::{self, Command, Probe, RunArgs},
    config::Config,
};

const PROGRAM: Program =
    Program { name: "rolecall-shim", version: env!("CARGO_PKG_VERSION"), threads: "webhook" };

fn main() -> ExitCode {
    let args = match args::parse() {
        Ok(args) => args,
        Err(error) => return program::show(&error),
    };
    let (question, socket) = match args.command {
        None => return run(args.run),
        Some(Command::Probe { probe: Probe::Live, socket }) => (Question::Live, socket),
        Some(Command::Probe { probe: Probe::Ready, socket }) => (Question::Ready, socket),
        Some(Command::LogLevel { filter: None, socket }) => (Question::LogLevel, socket),
        Some(Command::LogLevel { filter: Some(filter), socket }) => (Question::SetLogLevel(filter), socket),
    };
    program::ask(&question, &socket.admin_socket)
}

fn run(args: RunArgs) -> ExitCode {
    let check_only = args.process.check_config;
    PROGRAM.run(Config::try_from(args), check_only, app::run)
}
