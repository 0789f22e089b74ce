//! What a warm request finds in the processor's caches and what not, simulated by callgrind: why the same number of
//! instructions takes longer where there is more to keep.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::{
    client::{self, Asker},
    node::{Node, Token},
    process::{self, Process},
    report::{self, Report, Subject, table},
    valgrind::{self, Valgrind},
    warm::{Both, Kind},
};

const TITLE: &str = "caches: what a warm request does not find there";

/// Of one size whatever the machine has, so that figures can be compared: 32 KiB for code and for data each, and 1 MiB
/// behind both, as a core of a server has today.
const FLAGS: [&str; 5] =
    ["--tool=callgrind", "--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64"];

/// Pods that ask in turn, and those of them that are counted together: each has asked before.
const PODS: [usize; 2] = [1, 1000];
const REQUESTS: usize = 1000;

/// Connections that are kept alive, of a pod each as far as there are pods.
const KEPT: usize = 64;

/// Misses of a request, in events of callgrind's (<https://valgrind.org/docs/manual/cl-manual.html#cl-manual.options.cachesimulation>).
struct Misses {
    /// Of the cache for code.
    code: f64,
    /// Of the cache for data.
    data: f64,
    /// Of the larger one behind both, by code and by data.
    behind: f64,
}

/// Counts for the floor and for the daemon.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let Some(valgrind) = Valgrind::new(&FLAGS)? else {
        report.section(TITLE, valgrind::MISSING.to_owned());
        return Ok(());
    };
    let wrapper = |name: &str| valgrind.wrapper("--callgrind-out-file=", name);
    let mut node = Node::start(&[], &wrapper("daemon")).await?;
    node.add_pods(1).await?;
    let answer = node.first_answer().await?;
    let (floor, floor_address) = process::start_floor(client::body(&answer)?, &wrapper("floor"))?;
    let mut rows = Vec::new();
    for pods in PODS {
        node.add_pods(pods).await?;
        let askers = node.askers(pods, Token::Sent)?;
        for kind in Kind::ALL {
            let floor = count(&valgrind, &floor, "floor", floor_address, &askers, kind).await?;
            let daemon = &node.daemon;
            let daemon = count(&valgrind, &daemon.process, "daemon", daemon.address, &askers, kind).await?;
            rows.push(row(pods, kind, &Both { floor, daemon }));
        }
    }
    node.daemon.process.end()?;
    floor.end()?;
    report.profile(
        Subject::WarmRequests,
        format!(
            "What does not find its code or data in the processor's caches is in {}.\n",
            report::link(TITLE)
        ),
    );
    report.section(TITLE, section(&rows));
    Ok(())
}

/// Misses of a request by pods in turn, in that process which has the wrapper of this `name`.
async fn count(
    valgrind: &Valgrind,
    process: &Process,
    name: &str,
    server: SocketAddr,
    askers: &[Asker],
    kind: Kind,
) -> Result<Misses> {
    let kept = if kind == Kind::KeptAlive { KEPT } else { 0 };
    // Twice, for from its second request on an address is remembered.
    client::in_turn(server, askers, kept, 2 * REQUESTS).await?;
    valgrind.tell(process, "zero")?;
    client::in_turn(server, askers, kept, REQUESTS).await?;
    Misses::read(&valgrind.dump(process, name)?, REQUESTS)
}

impl Misses {
    /// From the sums of a file of callgrind's (<https://valgrind.org/docs/manual/cl-format.html>).
    fn read(text: &str, requests: usize) -> Result<Self> {
        let line = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::split_whitespace).with_context(|| format!("callgrind writes no {name}"))
        };
        let counts: Vec<_> = line("events:")?.zip(line("totals:")?).collect();
        let of = |events: &[&str]| -> Result<f64> {
            let counted = counts.iter().filter(|(event, _)| events.contains(event));
            let counted = counted.map(|(_, count)| count.parse::<u64>()).collect::<Result<Vec<_>, _>>()?;
            Ok(counted.iter().sum::<u64>() as f64 / requests as f64)
        };
        Ok(Self {
            code: of(&["I1mr"])?,
            data: of(&["D1mr", "D1mw"])?,
            behind: of(&["ILmr", "DLmr", "DLmw"])?,
        })
    }
}

fn row(pods: usize, kind: Kind, both: &Both<Misses>) -> Vec<String> {
    let mut row = vec![pods.to_string(), kind.name().to_owned()];
    for of in [|misses: &Misses| misses.code, |misses| misses.data, |misses| misses.behind] {
        row.extend([of(&both.floor), of(&both.daemon)].map(|misses| format!("{misses:.0}")));
    }
    row
}

fn section(rows: &[Vec<String>]) -> String {
    let head = [
        "pods in turn",
        "connections",
        "code, floor",
        "daemon",
        "data, floor",
        "daemon",
        "neither in 1 MiB, floor",
        "daemon",
    ];
    format!(
        "{}\nMisses of a request in user space, simulated: caches of 32 KiB for code and for data, and one of 1 MiB behind them. \
         On connections that are kept alive, {KEPT} of them ask in turn. \
         The kernel uses the same caches on a real processor, and there is more of it in a request than of either; it is not in this.\n",
        table(&head, rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_read_by_the_names_of_events() {
        let text = "version: 1\nevents: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\n\
                    fn=(1) main\n1 2 3 4 5 6 7 8 9\ntotals: 9000 800 700 60 50 40 3 2 1\n";
        let misses = Misses::read(text, 10).unwrap();
        assert_eq!((misses.code, misses.data, misses.behind), (6.0, 9.0, 0.6));
    }

    #[test]
    fn a_file_without_sums_is_told() {
        assert!(Misses::read("events: Ir\n", 10).is_err());
    }
}
