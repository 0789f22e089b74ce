//! What is measured in this process's stead by the benchmarks of `benches/benches`: single decisions, and a day.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::report::{Goal, Report, Subject, Verdict, table};

/// What the shim may take for a decision, in nanoseconds.
const GOAL_REVIEW: f64 = 1e6;

/// What a day may add to the daemon's memory, in MiB.
const GOAL_DAY: f64 = 1.0;

/// Nanoseconds of one iteration, as criterion estimates them.
struct Estimate {
    name: String,
    median: f64,
    /// Between which the median is with 95 % confidence.
    interval: (f64, f64),
}

/// `lookup`, `caller` and `mutate`, by criterion.
pub(crate) fn micro(report: &mut Report) -> Result<()> {
    let home = tempfile::tempdir()?;
    bench("micro", &[], &[("CRITERION_HOME", home.path().as_os_str())])?;
    let mut estimates = estimates(home.path())?;
    ensure!(!estimates.is_empty(), "criterion has written no estimate");
    estimates.sort_by(|a, b| a.name.cmp(&b.name));
    for estimate in estimates.iter().filter(|estimate| estimate.name.starts_with("mutate/")) {
        report.goal(Goal {
            subject: Subject::Shim,
            what: format!("the shim's decision, {}", estimate.name.trim_start_matches("mutate/")),
            goal: "under 1 ms".to_owned(),
            figure: shown(estimate.median),
            spread: format!("{}–{}", shown(estimate.interval.0), shown(estimate.interval.1)),
            verdict: Verdict::of(estimate.median < GOAL_REVIEW),
        });
    }
    let rows: Vec<_> = estimates
        .iter()
        .map(|Estimate { name, median, interval: (from, to) }| {
            vec![name.clone(), shown(*median), format!("{}–{}", shown(*from), shown(*to))]
        })
        .collect();
    report.section(
        "lookup, caller, mutate: what single decisions cost",
        format!(
            "{}\nMedians of processor time, estimated by criterion; the interval is that of 95 % confidence. \
             After the last slash: pods on the node, or containers of the pod. \
             `cargo bench -p rolecall-benches --bench micro -- caller` measures some of them.\n",
            table(&["", "median", "interval"], &rows)
        ),
    );
    Ok(())
}

/// A day's renewals on virtual time.
pub(crate) fn day(report: &mut Report) -> Result<()> {
    let printed = bench("scaling", &["day"], &[])?;
    let result =
        printed.lines().find_map(|line| line.strip_prefix("result: ")).context("`day` has no result")?;
    let result: Value = serde_json::from_str(result)?;
    let number = |name: &str| result[name].as_f64().with_context(|| format!("`day` tells no {name}"));
    let (pods, renewals) = (number("pods")?, number("renewals")?);
    let (early, late) = (number("early_mib")?, number("late_mib")?);
    report.goal(Goal {
        subject: Subject::Growth,
        what: format!("growth of memory over a day with {pods} pods, {renewals} renewals"),
        goal: format!("at most {GOAL_DAY:.0} MiB"),
        figure: format!("{:+.2} MiB", late - early),
        spread: String::new(),
        verdict: Verdict::of(late - early <= GOAL_DAY && pods * 40.0 <= renewals),
    });
    report.section(
        "day: memory over a day's renewals",
        format!(
            "The daemon's own code for credentials, with {pods} pods and sessions of 1 h, on virtual time: {renewals} exchanges in 24 h. \
             Own memory of the process, the made-up STS included, was {early:.2} MiB in the hours 4 to 6 and {late:.2} MiB in the last two. \
             What the exchange itself goes through, TLS included, is in `lifetimes`.\n"
        ),
    );
    Ok(())
}

/// Runs one of the package's benchmarks, and returns what it printed.
fn bench(name: &str, words: &[&str], variables: &[(&str, &OsStr)]) -> Result<String> {
    let output = Command::new("cargo")
        .args(["bench", "--quiet", "--offline", "--locked", "-p", "rolecall-benches", "--bench", name, "--"])
        .args(words)
        .envs(variables.iter().copied())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "cargo bench --bench {name} ended with {}:\n{printed}", output.status);
    Ok(printed)
}

/// All estimates below criterion's directory.
fn estimates(home: &Path) -> Result<Vec<Estimate>> {
    let mut estimates = Vec::new();
    let mut directories = vec![home.to_owned()];
    while let Some(directory) = directories.pop() {
        let (file, about) = (directory.join("estimates.json"), directory.join("benchmark.json"));
        if directory.ends_with("new") && file.exists() {
            estimates.push(estimate(&file, &about)?);
        }
        for entry in fs::read_dir(&directory)? {
            let path: PathBuf = entry?.path();
            if path.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(estimates)
}

fn estimate(file: &Path, about: &Path) -> Result<Estimate> {
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let (estimates, about) = (read(file)?, read(about)?);
    let median = &estimates["median"];
    let number = |value: &Value| value.as_f64().with_context(|| format!("the form of {}", file.display()));
    Ok(Estimate {
        name: about["full_id"].as_str().context("the name of a benchmark")?.to_owned(),
        median: number(&median["point_estimate"])?,
        interval: (
            number(&median["confidence_interval"]["lower_bound"])?,
            number(&median["confidence_interval"]["upper_bound"])?,
        ),
    })
}

fn shown(nanoseconds: f64) -> String {
    if nanoseconds < 1e3 { format!("{nanoseconds:.0} ns") } else { format!("{:.1} µs", nanoseconds / 1e3) }
}

/// Of `scaling`, whose `main` leaves no room for tests of its own.
#[cfg(test)]
#[path = "../benches/scaling/page.rs"]
mod page;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::page::{HEAD, KEYS, PAGE, Row, TOLERANCES, cells, differences};

    const ROWS: [Row; 2] = [
        Row {
            name: "steady",
            quota: 600.0,
            nodes: 200,
            figures: [Some(76.777), None, Some(0.0), None, None],
        },
        Row {
            name: "start",
            quota: 60.0,
            nodes: 5000,
            figures: [Some(1083.6), Some(122_223.0), Some(471_918.0), Some(11.582), Some(2.565)],
        },
    ];

    /// A page with these lines in its table.
    fn page(rows: &[&str]) -> String {
        format!("# Scaling\n\n{HEAD}\n|---|---|---|---|---|---|---|---|\n{}\n\nMore.\n", rows.join("\n"))
    }

    #[track_caller]
    fn check(page: &str, expect: &[&str]) {
        assert_eq!(differences(page, &ROWS), expect);
    }

    const STEADY: &str = "| steady | 600 | 200 | 76.8 | – | 0 | – | – |";
    const START: &str = "| start | 60 | 5000 | 1080 | 122000 | 472000 | 11.6 | 2.57 |";

    #[test]
    fn a_row_is_shown_in_three_digits() {
        assert_eq!(ROWS.map(|row| row.to_string()), [STEADY, START]);
    }

    #[test]
    fn a_page_with_the_table_of_this_run_has_no_differences() {
        check(&page(&[STEADY, START]), &[]);
    }

    #[test]
    fn a_figure_may_be_off_by_the_tolerance_of_its_column() {
        for (column, tolerance) in TOLERANCES.iter().enumerate() {
            let cell = KEYS + column;
            let now: f64 = cells(START)[cell].parse().unwrap();
            let page_of = |figure: f64| {
                let mut cells: Vec<_> = cells(START).into_iter().map(str::to_owned).collect();
                cells[cell] = figure.to_string();
                page(&[STEADY, &format!("| {} |", cells.join(" | "))])
            };
            check(&page_of(now * (1.0 - tolerance * 0.99)), &[]);
            check(&page_of(now / (1.0 - tolerance * 0.99)), &[]);
            for off in [now * (1.0 - tolerance * 1.01), now / (1.0 - tolerance * 1.01)] {
                let name = cells(HEAD)[cell];
                let expect =
                    format!("start, quota 60, 5000 nodes: {name}: {off} on the page, {now} in this run");
                check(&page_of(off), &[&expect]);
            }
        }
    }

    #[test]
    fn a_figure_where_there_is_none_is_a_difference() {
        check(
            &page(&["| steady | 600 | 200 | 76.8 | 275 | – | – | – |", START]),
            &[
                "steady, quota 600, 200 nodes: busiest second: 275 on the page, – in this run",
                "steady, quota 600, 200 nodes: throttled: – on the page, 0 in this run",
            ],
        );
    }

    #[test]
    fn a_row_that_is_missing_or_too_many_is_a_difference() {
        let missing = "start, quota 60, 5000 nodes: the row is missing";
        check(&page(&[STEADY]), &[missing, "its table has 1 rows, not 2"]);
        check(&page(&[STEADY, &START.replace("5000", "200")]), &[missing]);
        check(&page(&[STEADY, START, &START.replace("start", "stop")]), &["its table has 3 rows, not 2"]);
        check(
            &page(&[STEADY, "| start | 60 | 5000 | 1080 |"]),
            &["start, quota 60, 5000 nodes: the row has 4 cells, not 8"],
        );
    }

    #[test]
    fn a_page_without_the_table_is_a_difference() {
        let expect = format!("there is no table with the head `{HEAD}`");
        check("# Scaling\n\n| | quota, /s |\n|---|---|\n| steady | 600 |\n", &[&expect]);
    }

    #[test]
    fn the_page_has_the_table() {
        let page = fs::read_to_string(Path::new("..").join(PAGE)).unwrap();
        assert_eq!(differences(&page, &[]), ["its table has 10 rows, not 0"]);
    }
}
