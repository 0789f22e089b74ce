//! What a request does not find in the processor's caches, simulated by callgrind: why the same number of instructions
//! takes longer where there is more code and data.

use anyhow::{Context, Result};

use crate::{report::table, warm::Both};

/// Misses of one request
/// (<https://valgrind.org/docs/manual/cl-manual.html#cl-manual.options.cachesimulation>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Misses {
    /// Of the cache for code.
    code: f64,
    /// Of the cache for data.
    data: f64,
    /// Of the larger one behind both, by code and by data.
    behind: f64,
}

impl Misses {
    /// From the sums of a file of callgrind's (<https://valgrind.org/docs/manual/cl-format.html>).
    pub(crate) fn read(text: &str, requests: u64) -> Result<Self> {
        let words = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::split_whitespace).with_context(|| format!("callgrind writes no {name}"))
        };
        let counts: Vec<_> = words("events:")?.zip(words("totals:")?).collect();
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

/// What both miss with one request.
pub(crate) fn told(Both { floor, daemon }: Both<Misses>) -> String {
    let row = |name: &str, floor: f64, daemon: f64| {
        vec![
            name.to_owned(),
            format!("{floor:.1}"),
            format!("{daemon:.1}"),
            format!("{:+.1}", daemon - floor),
        ]
    };
    let rows = [
        row("32 KiB for code", floor.code, daemon.code),
        row("32 KiB for data", floor.data, daemon.data),
        row("256 KiB behind both", floor.behind, daemon.behind),
    ];
    table(&["not found in a cache of", "floor", "daemon", "more"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_read_by_the_names_of_events() {
        let text = "version: 1\nevents: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\n\
                    fn=(1) main\n1 2 3 4 5 6 7 8 9\ntotals: 9000 800 700 60 50 40 3 2 1\n";
        let expect = Misses { code: 6.0, data: 9.0, behind: 0.6 };
        assert_eq!(Misses::read(text, 10).unwrap(), expect);
    }

    #[test]
    fn a_file_without_sums_is_told() {
        assert!(Misses::read("events: Ir\n", 10).is_err());
    }
}
