//! What the benchmarks found: the goals with their figures, and a section for each benchmark.

use std::{fmt::Write, fs, path::Path, process::Command, thread::available_parallelism};

use anyhow::Result;

use crate::plot::Plot;

/// All findings, in the order of their making.
#[derive(Default)]
pub(crate) struct Report {
    goals: Vec<Goal>,
    sections: Vec<Section>,
    plots: Vec<(&'static str, Plot)>,
}

/// One goal and what was measured of it.
struct Goal {
    what: String,
    goal: String,
    figure: String,
    is_met: bool,
}

/// The findings of one benchmark, in Markdown.
struct Section {
    title: &'static str,
    text: String,
}

impl Report {
    /// Takes a measured goal and prints it.
    pub(crate) fn goal(&mut self, what: impl Into<String>, goal: String, figure: String, is_met: bool) {
        let goal = Goal { what: what.into(), goal, figure, is_met };
        println!("    {} ({}): {} — {}", goal.what, goal.goal, goal.figure, verdict(goal.is_met));
        self.goals.push(goal);
    }

    /// Takes a section and prints it.
    pub(crate) fn section(&mut self, title: &'static str, text: String) {
        println!("\n## {title}\n\n{text}");
        self.sections.push(Section { title, text });
    }

    /// Takes a plot, to be written to `file`.
    pub(crate) fn plot(&mut self, file: &'static str, plot: Plot) {
        self.plots.push((file, plot));
    }

    /// Prints every goal once more, together.
    pub(crate) fn print_goals(&self) {
        println!("\n{}", self.goals_table());
    }

    /// Writes the page, and the plots beside it.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let mut page = String::from(HEAD);
        writeln!(page, "\n## Machine\n\n{}", machine())?;
        writeln!(page, "## Goals\n\n{}", self.goals_table())?;
        for Section { title, text } in &self.sections {
            writeln!(page, "## {title}\n\n{text}")?;
        }
        fs::write(directory.join("README.md"), page.trim_end().to_owned() + "\n")?;
        for (file, plot) in &self.plots {
            fs::write(directory.join(file), plot.svg())?;
        }
        Ok(())
    }

    fn goals_table(&self) -> String {
        let mut table = String::from("| | goal | measured | |\n|---|---|---|---|\n");
        for Goal { what, goal, figure, is_met } in &self.goals {
            let _ = writeln!(table, "| {what} | {goal} | {figure} | {} |", verdict(*is_met));
        }
        table
    }
}

/// Rows of a Markdown table under `head`.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    [line(&head), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

const HEAD: &str = "# Benchmarks

`make bench` wrote this page; change it there, in `benches/src`.

## How to read it

- Absolute times depend on the machine and on what else it does.
  Where a figure is a *ratio*, the daemon and the floor took turns in one run, driven by the same client; what disturbs one disturbs the other.
- The **floor** is hyper with nothing behind it, which answers every request with the daemon's own headers and body.
- The daemon is the release binary in a process of its own, on a node whose pods have addresses of their own.
  STS, the kubelet's directory and the API server are those of `sandbox`.
- A ratio is the median over all turns; the spread is that of the middle half of the turns.
- `make bench ONLY=serve` runs one benchmark and prints it, without writing this page.
";

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = available_parallelism().map_or(0, usize::from);
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed = if output("git", &["status", "--porcelain"]).is_empty() { "" } else { ", with changes" };
    format!(
        "{}, {cores} cores, Linux {}, {}, commit {commit}{changed}.\n",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        output("rustc", &["--version"]),
    )
}

fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "**not met**" }
}
