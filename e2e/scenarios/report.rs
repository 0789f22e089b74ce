//! What the scenarios have shown: a line each as they go, and all of it for the documentation.

use std::fmt;
use std::time::{Duration, Instant};

use crate::pods::Answer;

/// What comes before all scenarios.
pub(crate) const CLUSTER: &str = "cluster";

/// What has been shown so far.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    scenario: String,
    lines: Vec<Line>,
}

/// One thing that was shown.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What was asked.
    pub(crate) claim: String,
    /// What came out.
    pub(crate) figure: String,
}

#[derive(Debug, Clone)]
struct Line {
    scenario: String,
    figure: Figure,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), scenario: String::new(), lines: Vec::new() }
    }

    /// What is added from now on belongs to this scenario.
    pub(crate) fn begin(&mut self, scenario: &str) {
        self.scenario = scenario.to_owned();
    }

    /// Prints a figure and keeps it.
    pub(crate) fn add(&mut self, figure: Figure) {
        println!("{:>7.1}s  {:<11} {figure}", self.elapsed().as_secs_f64(), self.scenario);
        self.lines.push(Line { scenario: self.scenario.clone(), figure });
    }

    /// Since the beginning of the run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many scenarios have shown something.
    pub(crate) fn scenarios(&self) -> usize {
        let mut names: Vec<&str> = self.lines.iter().map(|line| line.scenario.as_str()).collect();
        names.retain(|name| *name != CLUSTER);
        names.dedup();
        names.len()
    }

    /// The scenarios' figures, as a table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| scenario | shown | figure |\n|---|---|---|\n");
        for Line { scenario, figure } in &self.lines {
            table.push_str(&format!("| {scenario} | {} | {} |\n", figure.claim, figure.figure));
        }
        table
    }
}

impl Figure {
    pub(crate) fn new(claim: &str, figure: impl Into<String>) -> Self {
        Self { claim: claim.to_owned(), figure: figure.into() }
    }

    /// How many first requests succeeded, and how long they took.
    pub(crate) fn first_requests(claim: &str, answers: &[Answer]) -> Self {
        let succeeded = answers.iter().filter(|answer| answer.is_success()).count();
        let mut seconds: Vec<f64> = answers.iter().map(|answer| answer.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
        let longest = seconds.last().copied().unwrap_or_default();
        Self::new(
            claim,
            format!(
                "{succeeded} of {}, median {:.0} ms, longest {:.0} ms",
                answers.len(),
                median * 1e3,
                longest * 1e3
            ),
        )
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.claim, self.figure)
    }
}
