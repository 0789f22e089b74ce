//! A daemon that takes over from another one under load: when does it serve, and does any request fail?

use std::{
    mem,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinSet, block_in_place},
    time::{sleep, timeout},
};

use crate::{
    client::{self, Asker},
    node::{LIMIT, Node, Token},
    process::Daemon,
    report::{Goal, Report, Subject, Verdict, table},
    spread::Spread,
};

const PODS: usize = 250;

/// Daemons that take over, one after another.
const TAKEOVERS: u16 = 5;

/// Pods that ask all the time: half of them keep their connections.
const CLIENTS: usize = 16;

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);

/// How long is asked before each step of a hand-over and after it, so that all of it happens under load.
const AROUND: Duration = Duration::from_millis(300);

/// Of the first daemon's metrics.
const METRICS_PORT: u16 = 9911;

/// What a new daemon must have done within this many seconds.
const GOAL_SERVES: f64 = 1.0;

/// What was measured.
struct Figures {
    rounds: Vec<Round>,
    /// Exchanges with STS in all of them.
    exchanges: usize,
}

/// One hand-over.
struct Round {
    /// Seconds from exec until the new daemon was ready, and until it had answered a request.
    ready: f64,
    serving: f64,
    /// What the clients saw in the time before, and from before the new daemon until after the old one.
    before: Seen,
    across: Seen,
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    answered: usize,
    failures: Vec<String>,
    /// How long each request took, in milliseconds.
    waits: Vec<f64>,
}

/// Starts daemon after daemon on a node that is asked all the time.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let figures = measure().await?;
    for goal in goals(&figures) {
        report.goal(goal);
    }
    report.section("handover: a daemon that takes over from another", section(&figures));
    Ok(())
}

impl Figures {
    fn spread(&self, of: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(of))
    }

    fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.rounds.iter().flat_map(|round| [&round.before, &round.across])
    }

    fn answered(&self) -> usize {
        self.seen().map(|seen| seen.answered).sum()
    }

    fn failures(&self) -> Vec<&String> {
        self.seen().flat_map(|seen| &seen.failures).collect()
    }
}

impl Seen {
    fn longest_wait(&self) -> f64 {
        self.waits.iter().copied().fold(f64::NAN, f64::max)
    }
}

async fn measure() -> Result<Figures> {
    let scratch = tempfile::tempdir()?;
    let handover = format!("--handover-socket={}", scratch.path().join("handover/handover.sock").display());
    let flags = |daemon: u16| [handover.clone(), format!("--metrics-listen={}", metrics_of(daemon))];
    let [first, second] = flags(0);
    let mut node = Node::start(&[&first, &second], &Vec::new()).await?;
    node.add_pods(PODS).await?;
    let exchanges = node.world.sts.call_count();
    let mut rounds = Vec::new();
    for daemon in 1..=TAKEOVERS {
        rounds.push(take_over(&mut node, &flags(daemon), metrics_of(daemon)).await?);
    }
    Ok(Figures { rounds, exchanges: node.world.sts.call_count() - exchanges })
}

/// Has a new daemon with these flags take over from that of the node.
async fn take_over(node: &mut Node, [handover, metrics]: &[String; 2], tells: SocketAddr) -> Result<Round> {
    let clients = Clients::start(node)?;
    sleep(3 * AROUND).await;
    let before = clients.stop().await?;
    let clients = Clients::start(node)?;
    sleep(AROUND).await;
    let began = Instant::now();
    let world = node.world.clone();
    let next = block_in_place(|| Daemon::start(&world, &[handover, metrics], &Vec::new()))?;
    until_it_answers(tells).await?;
    let serving = began.elapsed().as_secs_f64();
    sleep(AROUND).await;
    // The kubelet stops the old one only once the new one is ready.
    let ready = next.ready_after.as_secs_f64();
    let old = mem::replace(&mut node.daemon, next);
    block_in_place(|| old.process.end())?;
    sleep(AROUND).await;
    Ok(Round { ready, serving, before, across: clients.stop().await? })
}

/// Where this daemon tells its metrics: each has an address of its own there, so that it is known which one answers.
fn metrics_of(daemon: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, METRICS_PORT + daemon).into()
}

/// Waits until the daemon with these metrics has answered a request: to be ready is what it says of itself.
async fn until_it_answers(metrics: SocketAddr) -> Result<()> {
    let answered = async {
        while requests_answered(metrics).await? == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    };
    timeout(LIMIT, answered).await.context("the new daemon answers no request")?
}

/// How many requests the daemon with these metrics has answered.
async fn requests_answered(metrics: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect(metrics).await.context("connect to the metrics")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let name = r#"rolecall_requests_total{outcome="answered"} "#;
    let count = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(count.with_context(|| format!("the metrics have no {name}"))?.parse()?)
}

fn goals(figures: &Figures) -> [Goal; 3] {
    let serving = figures.spread(|round| round.serving);
    let (answered, failed) = (figures.answered(), figures.failures().len());
    let goal = |what: String, goal: &str, figure: String, spread: String, is_met: bool| Goal {
        subject: Subject::Start,
        what,
        goal: goal.to_owned(),
        figure,
        spread,
        verdict: Verdict::of(is_met),
    };
    [
        goal(
            format!("hand-over with {PODS} pods until the new daemon has answered a request"),
            &format!("under {GOAL_SERVES:.0} s"),
            format!("{:.3} s", serving.median),
            serving.all(3),
            serving.median < GOAL_SERVES,
        ),
        goal(
            format!("requests that fail before, in and after {TAKEOVERS} hand-overs"),
            "none",
            format!("{failed} of {}", answered + failed),
            String::new(),
            failed == 0 && answered != 0,
        ),
        goal(
            format!("exchanges with STS for {TAKEOVERS} hand-overs"),
            "none",
            figures.exchanges.to_string(),
            String::new(),
            figures.exchanges == 0,
        ),
    ]
}

fn section(figures: &Figures) -> String {
    let measured = |what: &str, spread: Spread, decimals: usize| {
        vec![what.to_owned(), format!("{:.decimals$}", spread.median), spread.all(decimals)]
    };
    let counted = |what: &str, figure: String| vec![what.to_owned(), figure, String::new()];
    let failures = figures.failures();
    let rows = [
        measured("from exec until the new daemon is ready, s", figures.spread(|round| round.ready), 3),
        measured("from exec until it has answered a request, s", figures.spread(|round| round.serving), 3),
        measured(
            "longest wait of a request across a hand-over, ms",
            figures.spread(|round| round.across.longest_wait()),
            1,
        ),
        measured(
            "longest wait of a request in as long a time before, ms",
            figures.spread(|round| round.before.longest_wait()),
            1,
        ),
        counted("requests answered, and failed", format!("{}, {}", figures.answered(), failures.len())),
        counted("exchanges with STS", figures.exchanges.to_string()),
    ];
    format!(
        "{}\nMedians of {TAKEOVERS} hand-overs with {PODS} warm pods, of which {CLIENTS} ask again and again, with pauses of {} ms; \
         one half keeps its connections, the other opens one for each request, and nobody tries twice.\n\
         They ask from {around} ms before the new daemon until {around} ms after the old one, which is told to end {around} ms after the new one has answered.\n{}",
        table(&["", "", "spread"], &rows),
        PAUSE.as_millis(),
        failures.first().map(|failure| format!("The first failure: {failure}\n")).unwrap_or_default(),
        around = AROUND.as_millis(),
    )
}

/// Clients under way.
struct Clients {
    tasks: JoinSet<Result<Seen>>,
    is_over: Arc<AtomicBool>,
}

impl Clients {
    fn start(node: &Node) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for client in 0..CLIENTS {
            let asker = node.asker(client, Token::Sent)?;
            let (server, is_over) = (node.daemon.address, is_over.clone());
            tasks.spawn(async move { ask_on(server, asker, client % 2 == 0, &is_over).await });
        }
        Ok(Self { tasks, is_over })
    }

    /// Ends them, and says what they saw.
    async fn stop(mut self) -> Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen.context("a client")??;
            all.answered += seen.answered;
            all.failures.extend(seen.failures);
            all.waits.extend(seen.waits);
        }
        ensure!(all.answered != 0 || !all.failures.is_empty(), "no client has asked anything");
        Ok(all)
    }
}

async fn ask_on(server: SocketAddr, asker: Asker, keeps: bool, is_over: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut kept = None;
    while !is_over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        match timeout(LIMIT, client::ask(server, &asker, &mut kept)).await? {
            Ok(_) => seen.answered += 1,
            Err(error) => {
                seen.failures.push(format!("{error:#}"));
                kept = None;
            }
        }
        seen.waits.push(asked.elapsed().as_secs_f64() * 1e3);
        if !keeps {
            kept = None;
        }
        sleep(PAUSE).await;
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(answered: usize, failures: &[&str]) -> Seen {
        let failures: Vec<String> = failures.iter().map(|&failure| failure.to_owned()).collect();
        Seen { answered, failures, waits: vec![1.0] }
    }

    #[track_caller]
    fn check(serving: f64, before: Seen, across: Seen, exchanges: usize, expect: [bool; 3]) {
        let rounds = vec![Round { ready: 0.01, serving, before, across }];
        assert_eq!(goals(&Figures { rounds, exchanges }).map(|goal| goal.verdict == Verdict::Met), expect);
    }

    #[test]
    fn what_fails_around_a_hand_over_counts_as_what_fails_in_it() {
        check(0.1, seen(9, &[]), seen(9, &[]), 0, [true, true, true]);
        check(0.1, seen(9, &[]), seen(9, &["reset"]), 0, [true, false, true]);
        check(0.1, seen(9, &["reset"]), seen(9, &[]), 0, [true, false, true]);
        check(0.1, seen(0, &[]), seen(0, &[]), 0, [true, false, true]);
    }

    #[test]
    fn a_daemon_that_is_ready_and_does_not_answer_does_not_serve() {
        check(1.5, seen(9, &[]), seen(9, &[]), 1, [false, true, false]);
    }
}
