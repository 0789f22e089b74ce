//! What a whole cluster asks of STS: the daemon's own code for the credentials of every node, on virtual time.
//!
//! Only the account is made up. Where a part of the nodes tells the same as all of them, only that part is simulated,
//! with its part of the quota, and scaled up again. Two runs are the same to the last digit.
//!
//! It fails where docs/scaling.md says otherwise. With a number as its argument it takes that for the seed of another
//! draw, and compares nothing; with `day` it lets one node live through a day instead.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

mod account;
mod day;
mod page;

use std::{
    env, fs,
    future::pending,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use prometheus_client::registry::Registry;
use rolecall_contract::SessionDuration;
use rolecall_daemon::{
    credentials::{
        Config, CredentialKey, CredentialManager, Issued, Metrics, SessionNameTemplate, SessionNameValues,
        SessionRequest, Sts, StsError, Urgency, Worker,
    },
    identity::PodIdentity,
    token::{
        Token,
        volume::{TokenSource, TokenVolume},
    },
};
use rolecall_process::time::Clock;
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Barrier, Notify},
    task::{JoinSet, unconstrained},
    time::{Instant, sleep, sleep_until},
};
use zeroize::Zeroizing;

use self::{
    account::{Account, Quota},
    page::{HEAD, PAGE, Row, differences},
};

/// Nodes of the cluster, and a part of them that is simulated in seconds.
const ALL: usize = 5000;
const PART: usize = ALL / 25;

const PODS_PER_NODE: usize = 30;

/// AWS's published quota for one account in one Region, in requests a second; and an account that has a tenth left.
const QUOTAS: [f64; 2] = [600.0, 60.0];

const STS_TIME: Duration = Duration::from_millis(80);

/// What happens to the cluster.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    /// When daemon number `n` of [`ALL`] starts.
    starts_at: fn(usize) -> Duration,
    /// How long a session lasts.
    session: Duration,
    /// Pods of each node, and within how long they come.
    pods: usize,
    come_within: Duration,
    /// From when on calls are counted, and until when.
    watched: (Duration, Duration),
    /// Nodes that are simulated with each of [`QUOTAS`].
    ///
    /// Where all compete for a quota that is nearly enough it has to be all of them: in the bucket of a part whole
    /// tokens gather between two calls.
    nodes: [usize; 2],
}

/// A scenario with one of the quotas.
#[derive(Clone, Copy)]
struct Simulation {
    scenario: Scenario,
    quota: f64,
    nodes: usize,
    /// Of all chance.
    seed: u64,
}

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "steady, sessions of 1 h",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: PODS_PER_NODE,
        // As evenly as renewals come, so that these are even from the start.
        come_within: Duration::from_secs(1950),
        watched: (Duration::from_secs(2 * 3600), Duration::from_secs(3 * 3600)),
        nodes: [PART; 2],
    },
    Scenario {
        name: "steady, sessions of 12 h",
        starts_at: |_| Duration::ZERO,
        session: Duration::from_secs(12 * 3600),
        pods: PODS_PER_NODE,
        come_within: Duration::from_secs(12 * 1950),
        watched: (Duration::from_secs(7 * 3600), Duration::from_secs(13 * 3600)),
        nodes: [PART; 2],
    },
    Scenario {
        name: "all daemons start at once, without a hand-over",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: PODS_PER_NODE,
        come_within: Duration::ZERO,
        watched: (Duration::ZERO, Duration::from_secs(1200)),
        nodes: [ALL, PART],
    },
    Scenario {
        name: "a rollout by 10 % of the nodes a minute, without a hand-over",
        starts_at: |node| MINUTE * (node * 10 / ALL) as u32,
        session: HOUR,
        pods: PODS_PER_NODE,
        come_within: Duration::ZERO,
        watched: (Duration::ZERO, Duration::from_secs(1200)),
        nodes: [ALL, PART],
    },
    Scenario {
        name: "a burst of jobs: 50 000 pods within a minute",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: 10,
        come_within: MINUTE,
        watched: (Duration::ZERO, Duration::from_secs(1200)),
        nodes: [ALL, PART],
    },
];

impl Scenario {
    /// Of a cluster to which nothing happens only the rate of calls is of interest.
    fn is_steady(&self) -> bool {
        MINUTE < self.come_within
    }
}

impl Simulation {
    fn scale(&self) -> f64 {
        ALL as f64 / self.nodes as f64
    }

    /// What the nodes get of the quota.
    fn granted(&self) -> Quota {
        let rate = self.quota / self.scale();
        // A few nodes' calls are as uneven as few calls are, which a bucket of their scale would throttle although
        // the whole one would not. Where all call at once, a whole one would grant too much.
        let size = if self.scenario.is_steady() { self.quota } else { rate };
        Quota { rate, size, session: self.scenario.session }
    }

    /// When the daemon of node `number` starts.
    fn starts_after(&self, number: usize) -> Duration {
        (self.scenario.starts_at)(number * ALL / self.nodes)
    }

    /// When pod `pod` comes to node `number`: spread over the time and over the nodes, the same in each run.
    fn comes_after(&self, number: usize, pod: usize) -> Duration {
        let share =
            (pod * self.nodes + number * 7919 % self.nodes) as f64 / (self.scenario.pods * self.nodes) as f64;
        self.scenario.come_within.mul_f64(share)
    }
}

fn main() -> Result<()> {
    if env::args().any(|word| word == "day") {
        return runtime()?.block_on(day::run());
    }
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE)).context(PAGE)?;
    let seed = env::args().find_map(|word| word.parse().ok());
    let rows = simulate(seed.unwrap_or_default())?;
    println!("{HEAD}\n|---|---|---|---|---|---|---|---|");
    for row in &rows {
        println!("{row}");
    }
    if seed.is_some() {
        return Ok(());
    }
    let differences = differences(&page, &rows);
    ensure!(differences.is_empty(), "{PAGE} is out of date:\n{}", differences.join("\n"));
    Ok(())
}

/// The rows of the table, each by a thread of its own.
fn simulate(seed: u64) -> Result<Vec<Row>> {
    let simulations = SCENARIOS.iter().flat_map(|scenario| {
        let quotas = QUOTAS.into_iter().zip(scenario.nodes);
        quotas.map(move |(quota, nodes)| Simulation { scenario: *scenario, quota, nodes, seed })
    });
    thread::scope(|scope| {
        let threads: Vec<_> =
            simulations.map(|simulation| scope.spawn(move || runtime()?.block_on(run(simulation)))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a simulation panicked"))?)
            .collect()
    })
}

/// Virtual time. Tokens are read one after the other: that takes no virtual time, and threads that wait are dear.
///
/// Tokens are read in real time, by a thread that wakes nodes in an order of its own. That must not matter: nothing but
/// calls comes of a token, and the account answers those of an instant together.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().start_paused(true).max_blocking_threads(1).build()
}

/// The wall clock's time when a simulation begins.
fn epoch() -> SystemTime {
    UNIX_EPOCH + 1000 * HOUR
}

async fn run(simulation: Simulation) -> Result<Row> {
    let Simulation { scenario, quota, nodes, .. } = simulation;
    let began = Instant::now();
    let tokens = tokens(PODS_PER_NODE)?;
    let account = Account::new(simulation.granted());
    let over = Arc::new(Barrier::new(nodes));
    let mut lives = JoinSet::new();
    for number in 0..nodes {
        let (account, granted) = (account.clone(), Arc::default());
        let sts = Door { account, seed: simulation.seed, began, granted };
        let tokens = TokenSource::new(tokens.path().to_owned());
        // Unconstrained: what a node may do before others have their turn depends on how often it was woken.
        lives.spawn(unconstrained(live(simulation, number, sts, tokens, over.clone())));
    }
    let mut waits = Vec::new();
    // What is waited for here is looked at before any task, so that each finds all answers of an instant.
    let all_waits = async {
        while let Some(waited) = lives.join_next().await {
            waits.extend(waited??);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        () = account.serve() => bail!("STS ended"),
        ended = all_waits => ended?,
    }
    waits.sort_unstable();
    let seconds = account.seconds(scenario.watched);
    let scaled = |calls: u32| f64::from(calls) * simulation.scale();
    let all = scaled(seconds.iter().map(|second| second.calls).sum());
    let busiest = seconds.iter().map(|second| second.calls).max().map(scaled);
    let throttled = scaled(seconds.iter().map(|second| second.throttled).sum());
    let figures = [
        Some(all / seconds.len() as f64),
        // In steady operation chance alone makes a second busy, and of few calls it makes too much.
        busiest.filter(|_| !scenario.is_steady()),
        Some(throttled),
        waits.get(waits.len() / 2).map(Duration::as_secs_f64),
        waits.last().map(Duration::as_secs_f64),
    ];
    Ok(Row { name: scenario.name, quota, nodes, figures })
}

/// Lets a node live, and says how long each of its pods waited where that is of interest.
async fn live(
    simulation: Simulation,
    number: usize,
    sts: Door,
    tokens: TokenSource,
    over: Arc<Barrier>,
) -> Result<Vec<Duration>> {
    sleep(simulation.starts_after(number)).await;
    let (began, granted) = (sts.began, sts.granted.clone());
    let (manager, worker) = start(sts, tokens, began);
    // Not tasks of their own: which of two tasks is looked at first is up to the machine.
    tokio::select! {
        biased;
        () = worker.run(pending()) => bail!("the worker ended"),
        waits = pods(simulation, number, &manager, began, &granted, &over) => waits,
    }
}

/// Lets the pods of a node come.
async fn pods(
    simulation: Simulation,
    number: usize,
    manager: &CredentialManager,
    began: Instant,
    granted: &Notify,
    over: &Barrier,
) -> Result<Vec<Duration>> {
    let scenario = simulation.scenario;
    // The last calls that count have their answers by then.
    let (first, ends_at) = (Instant::now(), began + scenario.watched.1 + STS_TIME);
    let mut coming =
        (0..scenario.pods).map(|pod| (pod, first + simulation.comes_after(number, pod))).peekable();
    let (mut waiting, mut waits) = (Vec::new(), Vec::new());
    loop {
        let now = Instant::now();
        while let Some((pod, came_at)) = coming.next_if(|(_, at)| *at <= now) {
            let request = request(number, pod)?;
            manager.warm(request.clone());
            if !scenario.is_steady() {
                waiting.push((request.key, came_at));
            }
        }
        waiting.retain(|(key, came_at)| {
            let is_warm = manager.valid(key).is_some();
            if is_warm {
                waits.push(now - *came_at);
            }
            !is_warm
        });
        let next_at = coming.peek().map_or(ends_at, |(_, at)| *at);
        if next_at <= now && waiting.is_empty() {
            // Others may still wait, and compete with what is renewed here.
            over.wait().await;
            return Ok(waits);
        }
        tokio::select! {
            biased;
            () = sleep_until(next_at), if now < next_at => {}
            () = granted.notified(), if !waiting.is_empty() => {}
        }
    }
}

/// A node's credentials, with the defaults of the daemon.
fn start<S: Sts>(sts: S, tokens: TokenSource, began: Instant) -> (CredentialManager, Worker<S>) {
    let clock = Clock::from_fn(move || epoch() + began.elapsed());
    let metrics = Metrics::register(&mut Registry::default());
    CredentialManager::new(Config::default(), sts, tokens, clock, metrics)
}

/// A node's door to the account.
struct Door {
    account: Account,
    seed: u64,
    began: Instant,
    /// Told of each call that was granted.
    granted: Arc<Notify>,
}

impl Sts for Door {
    async fn assume_role_with_web_identity(
        &self,
        request: &SessionRequest,
        _token: &Token,
    ) -> Result<Issued, StsError> {
        let chance = chance(self.seed, &request.pod.name, self.began.elapsed());
        let answer = self.account.call(chance).await;
        // What the daemon draws, it draws of an answer and at once.
        fastrand::seed(chance);
        let Some(expires_at) = answer.ok().flatten() else {
            let (code, message) = ("Throttling".into(), "Rate exceeded".into());
            return Err(StsError::Throttled { code, message, request_id: None });
        };
        self.granted.notify_one();
        Ok(issued("token", expires_at))
    }
}

/// The chance of one call: the same in each run with the same seed, in whatever order calls come.
fn chance(seed: u64, pod: &str, since: Duration) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, pod, since).hash(&mut hasher);
    hasher.finish()
}

fn issued(session_token: &str, expires_at: SystemTime) -> Issued {
    Issued {
        access_key_id: "ASIAEXAMPLE".to_owned(),
        secret_access_key: Zeroizing::new("secret".to_owned()),
        session_token: Zeroizing::new(session_token.to_owned()),
        expires_at,
        assumed_role_arn: None,
        request_id: None,
    }
}

fn request(node: usize, pod: usize) -> Result<SessionRequest> {
    let name = format!("pod-{node}-{pod}");
    let template = SessionNameTemplate::default();
    let values =
        SessionNameValues { cluster: "", namespace: "scale", pod: &name, service_account: "scale", node: "" };
    // The nodes share a directory of tokens; their tables do not know each other.
    let uid = format!("pod-{pod}").parse().context("a uid")?;
    Ok(SessionRequest {
        key: CredentialKey {
            pod: uid,
            role: "arn:aws:iam::111122223333:role/scale".parse()?,
            session_name: template.render(&values),
            duration: SessionDuration::MAX,
        },
        pod: PodIdentity {
            uid: format!("pod-{pod}").parse()?,
            namespace: "scale".into(),
            name: name.as_str().into(),
            service_account: "scale".into(),
        },
        volumes: [TokenVolume { volume: "v".into(), path: "token".into() }].into(),
        urgency: Urgency::LEAST,
    })
}

/// A kubelet's directory with the tokens of so many pods.
fn tokens(pods: usize) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for pod in 0..pods {
        let volume = directory.path().join(format!("pod-{pod}/volumes/kubernetes.io~projected/v"));
        fs::create_dir_all(&volume)?;
        fs::write(volume.join("token"), "token")?;
    }
    Ok(directory)
}
