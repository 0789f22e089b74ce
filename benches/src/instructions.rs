//! Instructions that a warm request costs, counted by callgrind: the figure that noise does not move.

use std::net::SocketAddr;

use anyhow::Result;

use crate::{
    caches::{self, Misses},
    callgrind::{self, Parts, SHA_256},
    client::{self, Asker},
    node::{Node, Token},
    process::{self, Process, Wrapper},
    report::{self, Report, Subject, table},
    valgrind::{self, Valgrind},
    warm::{Both, Instructions, Kind},
};

const TITLE: &str = "instructions: what a warm request costs in user space";

/// Requests that are counted together.
const REQUESTS: u64 = 1000;

/// Parts of the program that are shown by name.
const SHOWN: usize = 16;

/// Counts for the floor and for the daemon.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let Some(valgrind) = Valgrind::new(&callgrind::FLAGS)? else {
        report.section(TITLE, valgrind::MISSING.to_owned());
        return Ok(());
    };
    let counter = Counter(valgrind);
    let mut node = Node::start(&[], &counter.wrapper("daemon")).await?;
    node.add_pods(1).await?;
    let answer = node.first_answer().await?;
    let asker = node.asker(0, Token::Sent)?;
    let (floor, floor_address) = process::start_floor(client::body(&answer)?, &counter.wrapper("floor"))?;
    let mut tables = String::new();
    for kind in Kind::ALL {
        let reuse = kind == Kind::KeptAlive;
        let (floor, floor_misses) = counter.count("floor", &floor, floor_address, &asker, reuse).await?;
        let daemon = &node.daemon;
        let (daemon, daemon_misses) =
            counter.count("daemon", &daemon.process, daemon.address, &asker, reuse).await?;
        let misses = caches::told(Both { floor: floor_misses, daemon: daemon_misses });
        let count = Both { floor: total(&floor), daemon: total(&daemon) };
        report.warm.instructions.push(Instructions { kind, count });
        let (request, totals) = (kind.of_request(), totals(count, daemon.get(SHA_256).copied()));
        tables += &format!("{request}: {totals}\n\n{}\n{misses}\n", split(&floor, &daemon));
    }
    node.daemon.process.end()?;
    floor.end()?;
    tables += &format!(
        "Both get the same request of {} bytes, the token in it, {REQUESTS} times, from 1 pod on 1 connection at a time. \
         What the standard library and libc do, allocation too, counts for the first caller that is somebody. \
         Caches are simulated, of the sizes told, with code and data of user space alone. \
         The kernel's part, which is larger, is not in it; `serve` has the processor time of both.\n",
        asker.request.len()
    );
    report.profile(
        Subject::WarmRequests,
        format!(
            "Where its instructions are, by who caused them, and what does not find its code or data in the processor's caches, is in {}.\n",
            report::link(TITLE)
        ),
    );
    report.section(TITLE, tables);
    Ok(())
}

fn total(parts: &Parts) -> u64 {
    parts.values().sum()
}

/// Instructions of both; of the daemon also without what is overstated, if that is any.
fn totals(count: Both<u64>, sha_256: Option<u64>) -> String {
    let Both { floor, daemon } = count;
    let times = |of_daemon: u64| of_daemon as f64 / floor as f64;
    let text = format!("floor {floor}, daemon {daemon} instructions, {:.2} times as many", times(daemon));
    match sha_256 {
        None => format!("{text}."),
        Some(sha_256) => format!(
            "{text}; without SHA-256 {}, {:.2} times: valgrind does not offer the processor's own instructions for it.",
            daemon - sha_256,
            times(daemon - sha_256)
        ),
    }
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
struct Counter(Valgrind);

impl Counter {
    fn wrapper(&self, name: &str) -> Wrapper {
        self.0.wrapper("--callgrind-out-file=", name)
    }

    /// Instructions of one request by the part of the program, and its misses, from that process which has the wrapper of this `name`.
    async fn count(
        &self,
        name: &str,
        process: &Process,
        server: SocketAddr,
        asker: &Asker,
        reuse: bool,
    ) -> Result<(Parts, Misses)> {
        // What is cold is warm after this.
        client::repeat(server, asker, reuse, REQUESTS / 10).await?;
        self.0.tell(process, "zero")?;
        client::repeat(server, asker, reuse, REQUESTS).await?;
        let text = self.0.dump(process, name)?;
        let parts = callgrind::parts(&text).into_iter().map(|(part, count)| (part, count / REQUESTS));
        Ok((parts.filter(|(_, count)| *count != 0).collect(), Misses::read(&text, REQUESTS)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha_256_is_told_of_only_where_there_is_some() {
        let count = Both { floor: 1000, daemon: 1500 };
        assert_eq!(totals(count, None), "floor 1000, daemon 1500 instructions, 1.50 times as many.");
        assert!(totals(count, Some(300)).contains("as many; without SHA-256 1200, 1.20 times: "));
    }
}
