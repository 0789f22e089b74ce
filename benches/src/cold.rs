//! Credentials that are not there yet: what a miss costs beside STS's own time, and what many at once cost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rolecall_sandbox::{Behavior, TrustPolicy};
use tokio::task::JoinSet;

use crate::{
    client::{self, Asker},
    network::pod_address,
    node::{self, LIMIT, Node, STS_BURST, Token},
    report::{self, Goal, Report, Subject, Verdict, counted, table},
    spread::Spread,
    sts::DirectSts,
};

const TITLE: &str = "cold: credentials that are not there yet";

/// STS's time, and how often a miss at it is measured: ordinary; within the hold; beyond it, where the answer is
/// begun.
const MISSES: [(Duration, usize); 3] =
    [(Duration::from_millis(20), 80), (Duration::from_millis(400), 10), (Duration::from_millis(1500), 8)];

/// What a miss may cost beside STS's time.
const GOAL_MS: f64 = 2.0;

/// Processes of one pod that ask together.
const HERD: usize = 64;

/// Pods that start together, and STS's time for each of them.
const CROWD: usize = 250;
const CROWD_STS_TIME: Duration = Duration::from_millis(50);

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let (mut rows, mut spent_on) = (Vec::new(), Vec::new());
    for (latency, times) in MISSES {
        let miss = miss(latency, times).await?;
        let case = format!("a miss, STS at {} ms", latency.as_millis());
        let beyond = miss.beyond;
        rows.push(vec![
            case.clone(),
            format!("{:.1}", miss.sts.median),
            format!("{:.1}", miss.daemon.median),
            format!("{:+.1}", beyond.median),
            beyond.middle(1),
        ]);
        spent_on.push(miss.spent_on(&case, times));
        report.goal(Goal {
            subject: Subject::Misses,
            what: case,
            goal: format!("STS's time + {GOAL_MS:.0} ms"),
            figure: format!("{:+.1} ms", beyond.median),
            spread: beyond.middle(1),
            verdict: Verdict::of(beyond.median <= GOAL_MS),
        });
    }
    report
        .profile(Subject::Misses, format!("Where the time of a miss goes is in {}.\n", report::link(TITLE)));
    for (latency, pods, each) in [(Duration::from_millis(300), 1, HERD), (CROWD_STS_TIME, CROWD, 1)] {
        let (took, calls) = together(latency, pods, each).await?;
        ensure!(calls == pods, "{calls} exchanges for {pods} pods");
        let sts = latency.as_secs_f64() * 1e3;
        rows.push(vec![
            format!(
                "{} × {} at once: {} with STS",
                counted(pods, "pod"),
                counted(each, "request"),
                counted(calls, "exchange")
            ),
            format!("{sts:.0} each"),
            format!("{took:.0} to the last"),
            String::new(),
            String::new(),
        ]);
    }
    let head = ["", "STS, ms", "through the daemon, ms", "difference, ms", "spread"];
    let head_of_spent =
        ["", "times", "difference, ms", "of the daemon's processors, ms", "nobody at work, ms"];
    report.section(
        TITLE,
        format!(
            "{}\nMedians. STS's own time is that of the same exchange made without the daemon, in turns with it, each over a TLS connection that stands. \
             The daemon runs with `--max-roles-per-pod=1000`, for each miss is of another role.\n\
             Of {CROWD} pods at once, {STS_BURST} exchanges run at a time (`--sts-burst`), so {} ms is the least.\n\n\
             Where the difference goes:\n\n{}\n\
             The daemon's processor time is the mean for one miss, from the request until the answer is whole. \
             The rest is nobody's of the daemon: the wakings from one thread to the next, and the client's and STS's part in a way that is longer.\n",
            table(&head, &rows),
            CROWD.div_ceil(STS_BURST) as u128 * CROWD_STS_TIME.as_millis(),
            table(&head_of_spent, &spent_on)
        ),
    );
    Ok(())
}

/// Milliseconds of an exchange with STS, of a request for a role that nobody asked for before, and between the two.
struct Miss {
    sts: Spread,
    daemon: Spread,
    beyond: Spread,
    /// Processor time of the daemon for one request.
    spent: Duration,
}

impl Miss {
    /// What the difference consists of.
    fn spent_on(&self, case: &str, times: usize) -> Vec<String> {
        let spent = self.spent.as_secs_f64() * 1e3;
        vec![
            case.to_owned(),
            times.to_string(),
            format!("{:+.2}", self.beyond.median),
            format!("{spent:.2}"),
            format!("{:+.2}", self.beyond.median - spent),
        ]
    }
}

async fn miss(latency: Duration, times: usize) -> Result<Miss> {
    let mut node = Node::start(&["--max-roles-per-pod=1000"], &Vec::new()).await?;
    node.add_pods(1).await?;
    let token = node.pods[0].token()?;
    let mut sts = DirectSts::connect(&node.world).await?;
    node.world.sts.set_behavior(Behavior::slow(latency));
    let (mut alone, mut through) = (Vec::new(), Vec::new());
    let mut spent = Duration::ZERO;
    for turn in 0..times {
        let role = format!("arn:aws:iam::111122223333:role/miss-{turn}");
        let policy =
            TrustPolicy::service_account(node.world.issuer.url(), "bench", &node::service_account(0));
        node.world.sts.trust(&role, policy);
        let began = Instant::now();
        sts.exchange(&role, &token).await?;
        alone.push(began.elapsed().as_secs_f64() * 1e3);
        let asker = Asker::for_path(pod_address(0), &format!("/v1/credentials/{role}"), Some(&token));
        let before = node.daemon.process.threads()?;
        let began = Instant::now();
        client::answer(node.daemon.address, &asker, LIMIT).await?;
        through.push(began.elapsed().as_secs_f64() * 1e3);
        spent += node.daemon.process.threads()?.on_cpu_since(&before);
    }
    let beyond = Spread::of(alone.iter().zip(&through).map(|(sts, daemon)| daemon - sts));
    let [sts, daemon] = [alone, through].map(|times| Spread::of(times.into_iter()));
    Ok(Miss { sts, daemon, beyond, spent: spent / u32::try_from(times)? })
}

/// Milliseconds until `each` requests of each of `pods` are answered, all sent at once when the pods come, and the
/// exchanges that it took.
async fn together(latency: Duration, pods: usize, each: usize) -> Result<(f64, usize)> {
    let mut node = Node::start(&[&node::sts_burst()], &Vec::new()).await?;
    node.world.sts.set_behavior(Behavior::slow(latency));
    let gate = node.world.sts.hold();
    for index in 0..pods {
        node.pods.push(node.world.pod(node::pod(index))?);
    }
    let mut asked = JoinSet::new();
    for index in 0..pods {
        let (server, asker) = (node.daemon.address, node.asker(index, Token::Sent)?);
        for _ in 0..each {
            let asker = asker.clone();
            asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
        }
    }
    let began = Instant::now();
    gate.release_all();
    while let Some(answer) = asked.join_next().await {
        answer??;
    }
    Ok((began.elapsed().as_secs_f64() * 1e3, node.world.sts.call_count()))
}
