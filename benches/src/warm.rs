//! Why a warm request costs more than the floor's: its time and its instructions beside each other.

use crate::process::CpuTime;

/// What two benchmarks found, each its part.
#[derive(Default)]
pub(crate) struct WarmCosts {
    pub(crate) times: Vec<Times>,
    pub(crate) instructions: Vec<Instructions>,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    KeptAlive,
    OnePerRequest,
}

/// Of the floor and of the daemon.
#[derive(Clone, Copy)]
pub(crate) struct Both<T> {
    pub(crate) floor: T,
    pub(crate) daemon: T,
}

/// Processor time of a request.
pub(crate) struct Times {
    pub(crate) kind: Kind,
    /// Of one connection from one pod, which is what instructions are counted of.
    pub(crate) alone: Both<CpuTime>,
    /// The mean over all cases that have a goal.
    pub(crate) mean: Both<CpuTime>,
}

/// Instructions of a request in user space.
pub(crate) struct Instructions {
    pub(crate) kind: Kind,
    pub(crate) count: Both<u64>,
}

/// Times that differ by less than this share are said to be equal: turns differ as much.
const EQUAL: f64 = 0.05;

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::KeptAlive, Self::OnePerRequest];

    pub(crate) fn of(reuse: bool) -> Self {
        if reuse { Self::KeptAlive } else { Self::OnePerRequest }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeptAlive => "kept alive",
            Self::OnePerRequest => "one per request",
        }
    }

    pub(crate) fn of_request(self) -> &'static str {
        match self {
            Self::KeptAlive => "A request on a connection that is kept alive",
            Self::OnePerRequest => "A request on a connection of its own",
        }
    }
}

impl WarmCosts {
    /// Says of each kind what its time is spent on; nothing of what was not measured.
    pub(crate) fn told(&self) -> String {
        let told = self.times.iter().map(|times| {
            let its = self.instructions.iter().find(|instructions| instructions.kind == times.kind);
            format!("- {}\n", told(times, its.map(|its| its.count)))
        });
        told.collect()
    }
}

fn told(times: &Times, instructions: Option<Both<u64>>) -> String {
    let Times { kind, alone, mean } = times;
    let user = alone.map(|time| microseconds(time.user));
    let mut text = format!(
        "{}, 1 connection and 1 pod: {:.1} µs in user space where the floor takes {:.1}, {:+.1}.",
        kind.of_request(),
        user.daemon,
        user.floor,
        user.daemon - user.floor
    );
    if let Some(count) = instructions {
        text += &explained(user, count);
    }
    let kernel = alone.map(|time| microseconds(time.system));
    text += &format!(" In the kernel: {}.", compared(kernel));
    text += &format!(
        " The mean over all pods and connections: in user space {}; in the kernel {}.",
        compared(mean.map(|time| microseconds(time.user))),
        compared(mean.map(|time| microseconds(time.system)))
    );
    text
}

/// How much of the time more is that of instructions more.
fn explained(user: Both<f64>, count: Both<u64>) -> String {
    let more = count.daemon as f64 - count.floor as f64;
    let pace = user.floor / count.floor.max(1) as f64;
    let rest = user.daemon - user.floor - more * pace;
    let about_the_rest = if user.floor * EQUAL < rest {
        format!("The other {rest:.1} µs are not more instructions, but slower ones.")
    } else if rest < -user.floor * EQUAL {
        "They take less than that.".to_owned()
    } else {
        "That is all of it.".to_owned()
    };
    format!(
        " The difference in instructions is {more:+.0}, at the floor's pace of {:.2} ns each {:+.1} µs. {about_the_rest}",
        pace * 1e3,
        more * pace
    )
}

fn compared(Both { floor, daemon }: Both<f64>) -> String {
    let equal = if (daemon - floor).abs() <= floor * EQUAL { ", which is equal within 5 %" } else { "" };
    format!("{daemon:.1} µs, the floor {floor:.1}{equal}")
}

fn microseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl<T: Copy> Both<T> {
    fn map<U>(self, of: impl Fn(T) -> U) -> Both<U> {
        Both { floor: of(self.floor), daemon: of(self.daemon) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(floor: f64, daemon: f64, count: (u64, u64), expect: &str) {
        let count = Both { floor: count.0, daemon: count.1 };
        let text = explained(Both { floor, daemon }, count);
        assert!(text.contains(expect), "{text}");
    }

    #[test]
    fn what_more_instructions_do_not_explain_is_said_to_be_left() {
        check(10.0, 14.0, (10_000, 12_000), "is +2000, at the floor's pace of 1.00 ns each +2.0 µs");
        check(10.0, 14.0, (10_000, 12_000), "The other 2.0 µs are not more instructions, but slower ones.");
        check(10.0, 12.3, (10_000, 12_000), "That is all of it.");
        check(10.0, 11.0, (10_000, 12_000), "They take less than that.");
    }

    #[test]
    fn times_that_differ_less_than_turns_do_are_equal() {
        assert_eq!(
            compared(Both { floor: 10.0, daemon: 10.4 }),
            "10.4 µs, the floor 10.0, which is equal within 5 %"
        );
        assert_eq!(compared(Both { floor: 10.0, daemon: 10.6 }), "10.6 µs, the floor 10.0");
    }

    #[test]
    fn what_was_not_counted_is_not_explained() {
        let none = Both { floor: CpuTime::default(), daemon: CpuTime::default() };
        let times = vec![Times { kind: Kind::KeptAlive, alone: none, mean: none }];
        let costs = WarmCosts { times, instructions: Vec::new() };
        assert!(!costs.told().contains("instructions"));
        assert_eq!(WarmCosts::default().told(), "");
    }
}
