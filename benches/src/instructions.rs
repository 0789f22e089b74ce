//! Instructions that a warm request costs, counted by callgrind: the figure that noise does not move.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    client::{self, Asker},
    node::{Node, Token},
    process::{self, Wrapper},
    report::{Report, table},
};

/// Requests of the shorter and of the longer run; what lies between them costs the difference of their counts, in
/// which start and end of the process cancel out.
const REQUESTS: [usize; 2] = [500, 2500];

/// Counts for the daemon and for the floor. Without valgrind or a C compiler it says so and leaves it out.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let title = "instructions: what a warm request costs in user space";
    if !has("valgrind") || !has("cc") {
        report.section(title, "Left out: this machine has no valgrind, or no C compiler.\n".to_owned());
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let preload = scratch.path().join("openat2.so");
    let source = scratch.path().join("openat2.c");
    fs::write(&source, include_str!("openat2.c"))?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&preload, &source]).status();
    ensure!(built.context("run cc")?.success(), "cc cannot build openat2.c");

    let mut counts = Vec::new();
    let mut answer = Vec::new();
    for requests in REQUESTS {
        let counter = Counter::new(scratch.path(), &preload, requests);
        let mut node = Node::start(&[], &counter.wrapper("daemon")).await?;
        node.add_pods(1).await?;
        answer = node.first_answer().await?;
        client::repeat(node.daemon.address, &node.asker(0, Token::Sent)?, requests).await?;
        node.daemon.process.end()?;
        counts.push(counter.read("daemon")?);
    }
    for requests in REQUESTS {
        let counter = Counter::new(scratch.path(), &preload, requests);
        let (process, floor) = process::start_floor(client::body(&answer)?, &counter.wrapper("floor"))?;
        // As long as the daemon's request.
        let asker = Asker::new([10, 0, 0, 1], Some(&"t".repeat(900)));
        client::repeat(floor, &asker, requests).await?;
        process.end()?;
        counts.push(counter.read("floor")?);
    }
    let each = |at: usize| (counts[at + 1] - counts[at]) / (REQUESTS[1] - REQUESTS[0]) as u64;
    let (daemon, floor) = (each(0), each(2));
    let row = |what: &str, count: u64| vec![what.to_owned(), count.to_string()];
    let rows =
        [row("floor", floor), row("daemon", daemon), row("the daemon's own", daemon.saturating_sub(floor))];
    report.section(
        title,
        format!(
            "{}\nOne connection that is kept alive, a token of {} bytes. The kernel's part, which is larger, is not in it.\n",
            table(&["", "instructions a request"], &rows),
            900
        ),
    );
    Ok(())
}

struct Counter<'a> {
    directory: &'a Path,
    preload: &'a Path,
    requests: usize,
}

impl<'a> Counter<'a> {
    fn new(directory: &'a Path, preload: &'a Path, requests: usize) -> Self {
        Self { directory, preload, requests }
    }

    fn wrapper(&self, name: &str) -> Wrapper {
        let mut out = OsString::from("--callgrind-out-file=");
        out.push(self.out(name));
        let mut preload = OsString::from("LD_PRELOAD=");
        preload.push(self.preload);
        ["env".into(), preload, "valgrind".into(), "-q".into(), "--tool=callgrind".into(), out].into()
    }

    /// The sum over all threads.
    fn read(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(self.out(name)).context("read what callgrind wrote")?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.context("callgrind's file has totals")?.trim().parse()?)
    }

    fn out(&self, name: &str) -> std::path::PathBuf {
        self.directory.join(format!("{name}-{}", self.requests))
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}
