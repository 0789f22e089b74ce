//! What the benchmarks found: the goals with their figures, and a section for each benchmark.

use std::{fmt::Write, fs, path::Path, process::Command, thread::available_parallelism, time::Duration};

use anyhow::Result;

use crate::plot::Plot;

/// All findings, in the order of their making.
#[derive(Default)]
pub(crate) struct Report {
    /// Of the source, before the first benchmark: it may be another one when the page is written.
    commit: String,
    /// Of the machine, before the first benchmark.
    load: String,
    goals: Vec<Goal>,
    sections: Vec<Section>,
    plots: Vec<(&'static str, Plot)>,
    profiles: Vec<(Subject, String)>,
    times: Vec<(&'static str, Duration)>,
}

/// One goal and what was measured of it.
pub(crate) struct Goal {
    pub(crate) subject: Subject,
    pub(crate) what: String,
    pub(crate) goal: String,
    pub(crate) figure: String,
    /// In which range the figures of single turns were; empty for what is measured once.
    pub(crate) spread: String,
    pub(crate) is_met: bool,
}

/// What a goal is about: which profile explains it where it is not met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    WarmRequests,
    Misses,
    WarmMemory,
    WaitingRequests,
    Growth,
    Churn,
    Start,
    Shim,
}

/// The findings of one benchmark, in Markdown.
struct Section {
    title: &'static str,
    text: String,
}

impl Report {
    /// One without findings, to be made before anything is measured.
    pub(crate) fn begin() -> Self {
        Self { commit: commit(), load: load(), ..Self::default() }
    }

    /// Takes a measured goal and prints it.
    pub(crate) fn goal(&mut self, goal: Goal) {
        println!(
            "    {} ({}): {} {} — {}",
            goal.what,
            goal.goal,
            goal.figure,
            goal.spread,
            verdict(goal.is_met)
        );
        self.goals.push(goal);
    }

    /// Takes a section and prints it.
    pub(crate) fn section(&mut self, title: &'static str, text: String) {
        println!("\n## {title}\n\n{text}");
        self.sections.push(Section { title, text });
    }

    /// Takes what a profile says of `subject`, for its goals that are not met.
    pub(crate) fn profile(&mut self, subject: Subject, text: String) {
        self.profiles.push((subject, text));
    }

    /// Takes a plot, to be written to `file`.
    pub(crate) fn plot(&mut self, file: &'static str, plot: Plot) {
        self.plots.push((file, plot));
    }

    /// Takes how long a benchmark took, and prints it.
    pub(crate) fn took(&mut self, benchmark: &'static str, time: Duration) {
        println!("({benchmark} took {:.0} s)", time.as_secs_f64());
        self.times.push((benchmark, time));
    }

    /// Prints every goal once more, together, and what is to be said of those that are not met.
    pub(crate) fn print_goals(&self) {
        if !self.goals.is_empty() {
            println!("\n{}\n{}", self.goals_table(), self.not_met());
        }
    }

    /// Writes the page, and the plots beside it.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let mut page = String::from(HEAD);
        writeln!(page, "\n## Machine\n\n{}\n{}", self.machine(), self.times())?;
        writeln!(page, "## Goals\n\n{}", self.goals_table())?;
        writeln!(page, "## What is not met\n\n{}", self.not_met())?;
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
        let rows: Vec<Vec<String>> = self
            .goals
            .iter()
            .map(|Goal { subject: _, what, goal, figure, spread, is_met }| {
                vec![what.clone(), goal.clone(), figure.clone(), spread.clone(), verdict(*is_met).to_owned()]
            })
            .collect();
        table(&["", "goal", "measured", "spread", ""], &rows)
    }

    /// The goals that are not met, by subject, each subject with its profile of this run.
    fn not_met(&self) -> String {
        let mut subjects: Vec<Subject> = Vec::new();
        for goal in self.goals.iter().filter(|goal| !goal.is_met) {
            if !subjects.contains(&goal.subject) {
                subjects.push(goal.subject);
            }
        }
        if subjects.is_empty() {
            return format!("All {} goals that were measured are met.\n", self.goals.len());
        }
        let mut text = String::new();
        for subject in subjects {
            let goals = self.goals.iter().filter(|goal| goal.subject == subject && !goal.is_met);
            for Goal { what, figure, goal, .. } in goals {
                let _ = writeln!(text, "- {what}: {figure} instead of {goal}.");
            }
            text.push('\n');
            let mut profiles = self.profiles.iter().filter(|(its, _)| *its == subject).peekable();
            if profiles.peek().is_none() {
                text.push_str("This run made no profile of it.\n\n");
            }
            for (_, profile) in profiles {
                let _ = writeln!(text, "{profile}");
            }
        }
        text
    }

    fn machine(&self) -> String {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = available_parallelism().map_or(0, usize::from);
        format!(
            "{}, {cores} cores, Linux {}, {}, commit {}.\n\
             Load over the last 15 minutes: {} before the first benchmark, {} at the end, the benchmarks included.\n",
            model.trim_start_matches([' ', '\t', ':']),
            kernel.trim(),
            output("rustc", &["--version"]),
            self.commit,
            self.load,
            load(),
        )
    }

    fn times(&self) -> String {
        let all: Duration = self.times.iter().map(|(_, time)| *time).sum();
        let each: Vec<String> =
            self.times.iter().map(|(name, time)| format!("{name} {:.0} s", time.as_secs_f64())).collect();
        format!("The run took {:.1} min: {}.\n", all.as_secs_f64() / 60.0, each.join(", "))
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
- Easier than on a node: STS and the API server speak HTTP without TLS, a single miss finds a connection to STS that stands, and the metadata firewall is off.
  As on most nodes: tokens are signed with RS256.
- A figure is the median over all turns; the spread is that of the middle half of the turns, unless it says otherwise.
- *Instructions* are counted by callgrind: the figure that noise does not move.
- `make bench ONLY=serve` runs one benchmark and prints it, without writing this page.
";

/// The commit that is checked out, and whether anything differs from it.
fn commit() -> String {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed = if output("git", &["status", "--porcelain"]).is_empty() { "" } else { ", with changes" };
    format!("{commit}{changed}")
}

/// The machine's over the last 15 minutes.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').nth(2).unwrap_or("unknown").to_owned()
}

fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "**not met**" }
}
