//! What the benchmarks found: the goals with their figures, and a section for each benchmark.

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::Result;

use crate::{
    machine::Machine,
    plot::Plot,
    process,
    spread::{Interval, Spread},
    warm::WarmCosts,
};

/// All findings, in the order of their making.
#[derive(Default)]
pub(crate) struct Report {
    machine: Machine,
    /// What explains the goals of warm requests: no single benchmark knows all of it.
    pub(crate) warm: WarmCosts,
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
    pub(crate) verdict: Verdict,
}

/// What is to be said of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    /// By the median; another run could say the other.
    Close {
        is_met: bool,
    },
    NotMet,
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
        Self { machine: Machine::now(), ..Self::default() }
    }

    /// Takes a measured goal and prints it.
    pub(crate) fn goal(&mut self, goal: Goal) {
        println!(
            "    {} ({}): {} {} — {}",
            goal.what,
            goal.goal,
            goal.figure,
            goal.spread,
            goal.verdict.told()
        );
        self.goals.push(goal);
    }

    /// Takes a section and prints it.
    pub(crate) fn section(&mut self, title: &'static str, text: String) {
        println!("\n## {title}\n\n{text}");
        self.sections.push(Section { title, text });
    }

    /// Takes what is to be said of `subject` where its goals are not all met.
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
        let mut page = head();
        writeln!(page, "\n## Machine\n\n{}\n{}", self.machine.told(), self.times())?;
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
            .map(|Goal { subject: _, what, goal, figure, spread, verdict }| {
                vec![what.clone(), goal.clone(), figure.clone(), spread.clone(), verdict.told().to_owned()]
            })
            .collect();
        table(&["", "goal", "measured", "spread", ""], &rows)
    }

    /// The goals that are not met, by subject, each subject with what this run says of why.
    fn not_met(&self) -> String {
        let mut subjects: Vec<Subject> = Vec::new();
        for goal in self.goals.iter().filter(|goal| !goal.verdict.is_met()) {
            if !subjects.contains(&goal.subject) {
                subjects.push(goal.subject);
            }
        }
        if subjects.is_empty() {
            return format!("All {} goals that were measured are met.\n", self.goals.len());
        }
        let mut text = String::new();
        for subject in subjects {
            for Goal { what, figure, goal, spread, verdict, .. } in
                self.goals.iter().filter(|goal| goal.subject == subject)
            {
                let _ = match verdict {
                    Verdict::Met | Verdict::Close { is_met: true } => Ok(()),
                    Verdict::Close { is_met: false } => {
                        writeln!(text, "- {what}: {figure} instead of {goal}, which is within {spread}.")
                    }
                    Verdict::NotMet => writeln!(text, "- {what}: {figure} instead of {goal}."),
                };
            }
            text.push('\n');
            let profiles = self.profiles.iter().filter(|(its, _)| *its == subject);
            let mut profiles: Vec<String> = profiles.map(|(_, profile)| profile.clone()).collect();
            if subject == Subject::WarmRequests {
                profiles.push(self.warm.told());
            }
            if profiles.iter().all(String::is_empty) {
                profiles.push("This run made no profile of it.\n".to_owned());
            }
            for profile in profiles.iter().filter(|profile| !profile.is_empty()) {
                let _ = writeln!(text, "{profile}");
            }
        }
        text
    }

    fn times(&self) -> String {
        let all: Duration = self.times.iter().map(|(_, time)| *time).sum();
        let each: Vec<String> =
            self.times.iter().map(|(name, time)| format!("{name} {:.0} s", time.as_secs_f64())).collect();
        format!("The run took {:.1} min: {}.\n", all.as_secs_f64() / 60.0, each.join(", "))
    }
}

impl Verdict {
    pub(crate) fn of(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::NotMet }
    }

    /// Of a figure that is to be `goal` at the least.
    pub(crate) fn at_least(goal: f64, figure: &Spread) -> Self {
        match figure.confidence {
            None => Self::of(goal <= figure.median),
            Some(Interval { from, .. }) if goal <= from => Self::Met,
            Some(Interval { to, .. }) if to < goal => Self::NotMet,
            Some(_) => Self::Close { is_met: goal <= figure.median },
        }
    }

    fn is_met(self) -> bool {
        matches!(self, Self::Met | Self::Close { is_met: true })
    }

    fn told(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Close { is_met: true } => "met, closely",
            Self::Close { is_met: false } => "**not met**, closely",
            Self::NotMet => "**not met**",
        }
    }
}

/// Rows of a Markdown table under `head`.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    [line(&head), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// A section of the page, from another place on it.
pub(crate) fn link(title: &str) -> String {
    let name = title.split(':').next().unwrap_or_default();
    format!("[{name}](#{})", anchor(title))
}

/// How GitHub calls a heading.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// So many of what is called `one`.
pub(crate) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

fn head() -> String {
    let flags = process::UNLIKE_DEFAULT.map(|flag| format!("`{flag}`")).join(" ");
    format!(
        "# Benchmarks

`make bench` wrote this page; change it there, in `benches/src`.

## How to read it

- Absolute times depend on the machine and on what else it does.
  Where a figure is a *ratio*, the daemon and the floor took turns in one run, driven by the same client; what disturbs one disturbs the other.
- The **floor** is hyper with nothing behind it, which answers every request with the daemon's own headers and body.
- The daemon is the release binary in a process of its own, on a node whose pods have addresses of their own.
  STS, the kubelet's directory and the API server are those of `sandbox`.
- Its flags are the defaults but for where things are, and for {flags}: one pod of the benchmarks asks more than a real one may.
  Flags that a single benchmark sets besides are named there.
- Easier than on a node: STS and the API server are on loopback, a single miss finds a connection to STS that stands, and the metadata firewall is off.
  As on most nodes: STS and the API server speak TLS 1.3, with certificates of a made-up CA that the daemon trusts beside those of the system; tokens are signed with RS256, and they are files in memory (in `/dev/shm` where the machine has it, unless `TMPDIR` says otherwise).
  The daemon's log is such a file too: it never waits for a disk to write it.
- The daemon is linked as it ships, with what runs lying together; the floor is a small part of the benchmarks' own program and is linked by cargo's defaults.
- A figure is the median over all turns; the spread is that of the middle half of the turns, unless it says otherwise.
  *At 95 %* is the interval that the median is in with that confidence; a goal within it is met or missed *closely*, and another run could say the other.
- *Instructions* are counted by callgrind: the figure that noise does not move.
- `make bench ONLY=serve` runs one benchmark and prints it, without writing this page.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(figures: &[f64], expect: Verdict) {
        let spread = Spread::of(figures.iter().copied());
        assert_eq!(Verdict::at_least(0.95, &spread), expect);
    }

    #[test]
    fn a_goal_within_the_interval_is_met_or_missed_closely() {
        check(&[0.95, 0.96, 0.97, 0.98, 0.99, 1.0], Verdict::Met);
        check(&[0.94, 0.96, 0.97, 0.98, 0.99, 1.0], Verdict::Close { is_met: true });
        check(&[0.90, 0.91, 0.92, 0.93, 0.94, 0.95], Verdict::Close { is_met: false });
        check(&[0.90, 0.91, 0.92, 0.93, 0.94, 0.94], Verdict::NotMet);
    }

    #[test]
    fn too_few_figures_for_an_interval_are_judged_by_their_median() {
        check(&[0.94, 0.95, 0.96], Verdict::Met);
        check(&[0.93, 0.94, 0.96], Verdict::NotMet);
    }

    fn goal(subject: Subject, what: &str, verdict: Verdict) -> Goal {
        let (goal, figure) = ("0.95".to_owned(), "0.9".to_owned());
        Goal { subject, what: what.to_owned(), goal, figure, spread: "0.8–1.0".to_owned(), verdict }
    }

    #[test]
    fn only_what_is_not_met_is_explained() {
        let mut report = Report::default();
        report.goals.push(goal(Subject::Misses, "a miss", Verdict::Met));
        report.profile(Subject::Misses, "why a miss".to_owned());
        assert_eq!(report.not_met(), "All 1 goals that were measured are met.\n");
        report.goals.push(goal(Subject::WarmMemory, "memory", Verdict::NotMet));
        report.profile(Subject::WarmMemory, "why memory".to_owned());
        report.goals.push(goal(Subject::WarmRequests, "others", Verdict::Close { is_met: true }));
        report.goals.push(goal(Subject::WarmRequests, "requests", Verdict::Close { is_met: false }));
        let expect = "- memory: 0.9 instead of 0.95.\n\nwhy memory\n\
                      - requests: 0.9 instead of 0.95, which is within 0.8–1.0.\n\n\
                      This run made no profile of it.\n\n";
        assert_eq!(report.not_met(), expect);
    }

    #[test]
    fn a_link_leads_to_the_heading_as_github_calls_it() {
        assert_eq!(
            link("lookup, caller, mutate: what single decisions cost"),
            "[lookup, caller, mutate](#lookup-caller-mutate-what-single-decisions-cost)"
        );
    }
}
