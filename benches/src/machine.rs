//! What the figures were measured on, and what else the machine did meanwhile.

use std::{fs, process::Command, thread::available_parallelism};

/// The source and the machine before the first benchmark.
#[derive(Default)]
pub(crate) struct Machine {
    /// It may be another one when the page is written.
    commit: String,
    load: String,
    ticks: Ticks,
}

/// What the processors and we have spent, in the kernel's ticks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ticks {
    /// Of all processors, whatever they did.
    all: u64,
    idle: u64,
    /// What the host gave to others.
    stolen: u64,
    /// Of this process and of all that it has started and that are over.
    ours: u64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        Self { commit: commit(), load: load(), ticks: Ticks::now() }
    }

    /// Where and from what was measured, and what has disturbed it until now.
    pub(crate) fn told(&self) -> String {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = available_parallelism().map_or(0, usize::from);
        format!(
            "{}, {cores} cores, Linux {}, {}, commit {}.\n{}\n\
             Load over the last 15 minutes: {} before the first benchmark, {} at the end, the benchmarks included.\n",
            model.trim_start_matches([' ', '\t', ':']),
            kernel.trim(),
            output("rustc", &["--version"]),
            self.commit,
            Ticks::now().since(self.ticks).told(),
            self.load,
            load(),
        )
    }
}

impl Ticks {
    pub(crate) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/stat"), &read("/proc/self/stat"))
    }

    /// From the forms of `/proc/stat` and `/proc/<pid>/stat` (proc(5)).
    pub(crate) fn parse(machine: &str, process: &str) -> Self {
        // user, nice, system, idle, iowait, irq, softirq, steal; what comes after is a part of the first two.
        let machine: Vec<u64> = numbers(machine.lines().next().unwrap_or_default()).take(8).collect();
        let at = |field: usize| machine.get(field).copied().unwrap_or_default();
        // The fields after the program's name, which may have spaces: 14 to 17 are the process's own time and that of
        // its children.
        let (_, process) = process.rsplit_once(')').unwrap_or_default();
        let ours = process.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok());
        Self { all: machine.iter().sum(), idle: at(3) + at(4), stolen: at(7), ours: ours.sum() }
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            all: self.all.saturating_sub(earlier.all),
            idle: self.idle.saturating_sub(earlier.idle),
            stolen: self.stolen.saturating_sub(earlier.stolen),
            ours: self.ours.saturating_sub(earlier.ours),
        }
    }

    /// What the host gave to others, in percent of all.
    pub(crate) fn stolen_percent(self) -> f64 {
        self.percent(self.stolen)
    }

    fn percent(self, ticks: u64) -> f64 {
        ticks as f64 * 100.0 / self.all.max(1) as f64
    }

    fn told(self) -> String {
        let others = self.all.saturating_sub(self.idle + self.stolen + self.ours);
        format!(
            "Of the processors' time during the run, the benchmarks took {:.1} %, all other processes {:.1} %, and the host kept {:.1} % for others (steal); they were idle for {:.1} %.",
            self.percent(self.ours),
            self.percent(others),
            self.percent(self.stolen),
            self.percent(self.idle)
        )
    }
}

fn numbers(line: &str) -> impl Iterator<Item = u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_ours_nor_idle_nor_the_hosts_is_the_others() {
        let machine = |user: u64, idle: u64, stolen: u64| {
            format!("cpu  {user} 10 20 {idle} 5 0 3 {stolen} 7 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        };
        let process = |own: u64, childrens: u64| {
            format!("42 (a b) c) S 1 42 42 0 -1 0 9 9 9 9 {own} 1 {childrens} 2 20 0 4\n")
        };
        let before = Ticks::parse(&machine(1000, 500, 10), &process(100, 50));
        let after = Ticks::parse(&machine(1060, 530, 20), &process(110, 90));
        let expect = "Of the processors' time during the run, the benchmarks took 50.0 %, all other processes 10.0 %, \
                      and the host kept 10.0 % for others (steal); they were idle for 30.0 %.";
        assert_eq!(after.since(before).told(), expect);
    }
}
