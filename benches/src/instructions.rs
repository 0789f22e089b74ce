//! Instructions that a warm request costs, counted by callgrind: the figure that noise does not move.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    callgrind::{self, Parts},
    client::{self, Asker},
    node::{Node, Token},
    process::{self, Process, Wrapper},
    report::{Report, Subject, table},
};

/// Requests that are counted together.
const REQUESTS: u64 = 1000;

/// Parts of the program that are shown by name.
const SHOWN: usize = 16;

/// Counts for the floor and for the daemon. Without valgrind or a C compiler it says so and leaves it out.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let title = "instructions: what a warm request costs in user space";
    if !has("valgrind") || !has("vgdb") || !has("cc") {
        let text = "Left out: this machine has no valgrind, or no C compiler.\n";
        report.section(title, text.to_owned());
        return Ok(());
    }
    let counter = Counter::new()?;
    let mut node = Node::start(&[], &counter.wrapper("daemon")).await?;
    node.add_pods(1).await?;
    let answer = node.first_answer().await?;
    let asker = node.asker(0, Token::Sent)?;
    let (floor, floor_address) = process::start_floor(client::body(&answer)?, &counter.wrapper("floor"))?;
    let mut tables = String::new();
    for (kind, reuse) in [("on a connection that is kept alive", true), ("on a connection of its own", false)]
    {
        let floor = counter.count("floor", &floor, floor_address, &asker, reuse).await?;
        let daemon = &node.daemon;
        let daemon = counter.count("daemon", &daemon.process, daemon.address, &asker, reuse).await?;
        let (of_floor, of_daemon): (u64, u64) = (floor.values().sum(), daemon.values().sum());
        let head = format!(
            "A request {kind}: floor {of_floor}, daemon {of_daemon} instructions, {:.2} times as many.",
            of_daemon as f64 / of_floor as f64
        );
        tables += &format!("{head}\n\n{}\n", split(&floor, &daemon));
    }
    node.daemon.process.end()?;
    floor.end()?;
    tables += &format!(
        "Both get the same request of {} bytes, the token in it, {REQUESTS} times. \
         The kernel's part, which is larger, is not in it; `serve` has the processor time of both.\n",
        asker.request.len()
    );
    report.profile(Subject::WarmRequests, format!("Where its instructions are (callgrind):\n\n{tables}"));
    report.section(title, tables);
    Ok(())
}

/// The parts on which the two differ most, and the rest.
fn split(floor: &Parts, daemon: &Parts) -> String {
    let of = |parts: &Parts, name: &str| parts.get(name).copied().unwrap_or_default();
    let mut names: Vec<&String> = floor.keys().chain(daemon.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.sort_by_key(|name| std::cmp::Reverse(of(daemon, name).abs_diff(of(floor, name))));
    let row = |name: &str, floor: u64, daemon: u64| {
        let more = daemon as i64 - floor as i64;
        vec![name.to_owned(), floor.to_string(), daemon.to_string(), format!("{more:+}")]
    };
    let (shown, rest) = names.split_at(names.len().min(SHOWN));
    let mut rows: Vec<_> = shown.iter().map(|name| row(name, of(floor, name), of(daemon, name))).collect();
    let sum = |parts: &Parts| rest.iter().map(|name| of(parts, name)).sum();
    rows.push(row("all others", sum(floor), sum(daemon)));
    table(&["instructions in", "floor", "daemon", "more"], &rows)
}

/// Counts what processes do between two moments.
struct Counter {
    scratch: TempDir,
}

impl Counter {
    fn new() -> Result<Self> {
        let counter = Self { scratch: tempfile::tempdir()? };
        let source = counter.path("openat2.c");
        fs::write(&source, include_str!("openat2.c"))?;
        let mut cc = Command::new("cc");
        let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).args([&counter.preload(), &source]).status();
        ensure!(built.context("run cc")?.success(), "cc cannot build openat2.c");
        Ok(counter)
    }

    fn wrapper(&self, name: &str) -> Wrapper {
        let mut preload = OsString::from("LD_PRELOAD=");
        preload.push(self.preload());
        vec![
            "env".into(),
            preload,
            "valgrind".into(),
            "-q".into(),
            "--tool=callgrind".into(),
            flag("--callgrind-out-file=", &self.path(name)),
            self.prefix(),
        ]
    }

    /// Instructions of one request by the part of the program, from that process which has the wrapper of this `name`.
    async fn count(
        &self,
        name: &str,
        process: &Process,
        server: SocketAddr,
        asker: &Asker,
        reuse: bool,
    ) -> Result<Parts> {
        // What is cold is warm after this.
        client::repeat(server, asker, reuse, REQUESTS / 10).await?;
        self.tell(process, "zero")?;
        client::repeat(server, asker, reuse, REQUESTS).await?;
        self.tell(process, &format!("dump {}", if reuse { "kept" } else { "own" }))?;
        let newest = self.newest_dump(name)?;
        let text = fs::read_to_string(&newest).context("read what callgrind wrote")?;
        let parts = callgrind::parts(&text).into_iter().map(|(part, count)| (part, count / REQUESTS));
        Ok(parts.filter(|(_, count)| *count != 0).collect())
    }

    /// Speaks with callgrind in the process.
    fn tell(&self, process: &Process, order: &str) -> Result<()> {
        let output = Command::new("vgdb")
            .arg(self.prefix())
            .arg(format!("--pid={}", process.id()))
            .args(order.split(' '))
            .output()
            .context("run vgdb")?;
        ensure!(output.status.success(), "vgdb {order}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Callgrind numbers its dumps: `name.1`, `name.2`.
    fn newest_dump(&self, name: &str) -> Result<PathBuf> {
        let dumps = (1..).map(|number| self.path(&format!("{name}.{number}")));
        dumps.take_while(|path| path.exists()).last().context("callgrind has dumped nothing")
    }

    fn preload(&self) -> PathBuf {
        self.path("openat2.so")
    }

    fn prefix(&self) -> OsString {
        flag("--vgdb-prefix=", &self.path("vgdb"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

fn flag(name: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(value);
    flag
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok()
}
