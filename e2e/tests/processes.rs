//! No child and no folder outlives a test process that is killed.

// This program is the test and the process that it kills, so it has its own main (`harness = false`).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and report on stdout")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rolecall_e2e::{Process, Scratch};

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("victim") => victim(),
        // The rest of what a test program is asked, such as a filter, is for programs with more than one test.
        _ => a_killed_test_process_leaves_no_child_and_no_folder(),
    }
}

fn a_killed_test_process_leaves_no_child_and_no_folder() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .arg("victim")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let child = format!("/proc/{}", lines.next().unwrap().unwrap());
    let folder = lines.next().unwrap().unwrap();
    assert!(Path::new(&child).exists() && Path::new(&folder).exists());

    victim.kill().unwrap();
    victim.wait().unwrap();

    let deadline = Instant::now() + Duration::from_secs(30);
    while is_alive(&child) || Path::new(&folder).exists() {
        let left = (is_alive(&child), Path::new(&folder).exists());
        assert!(Instant::now() < deadline, "after 30 s child and folder are there: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("test a_killed_test_process_leaves_no_child_and_no_folder ... ok");
}

/// Starts a child on a thread that ends at once, as the thread of a test does, says where, and waits to be killed.
fn victim() {
    let scratch = Scratch::new("victim").unwrap();
    let folder = scratch.path().to_owned();
    let mut command = Process::command("sleep");
    command.arg("600");
    let child =
        std::thread::spawn(move || Process::spawn("sleep", command, &folder).unwrap()).join().unwrap();
    println!("{}\n{}", child.id(), scratch.path().display());
    loop {
        std::thread::park();
    }
}

/// A child whose new parent has not yet reaped it is dead all the same.
fn is_alive(child: &str) -> bool {
    let stat = std::fs::read_to_string(format!("{child}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
