//! What a whole cluster asks of STS: the daemon's own code for the credentials of every node, on virtual time.
//!
//! Only the account is made up: it answers after 80 ms, and beyond its quota it throttles, as a token bucket. The
//! cluster is a 25th of 5 000 nodes with 30 pods each, and so is the quota; what is printed is scaled up again.
//! With `day` as its argument it lets one node live through a day instead.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

mod day;

use std::{
    env, fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use rolecall_contract::SessionDuration;
use rolecall_daemon::{
    credentials::{
        Config, CredentialKey, CredentialManager, Issued, Metrics, SessionNameTemplate, SessionNameValues,
        SessionRequest, Sts, StsError, Urgency,
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
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use zeroize::Zeroizing;

/// Of the cluster's 5 000, so that this runs in seconds.
const SCALE: usize = 25;
const NODES: usize = 5000 / SCALE;
const PODS_PER_NODE: usize = 30;

/// AWS's published quota for one account in one Region, in requests a second; and an account that has a tenth left.
const QUOTAS: [f64; 2] = [600.0, 60.0];

const STS_TIME: Duration = Duration::from_millis(80);

/// What happens to the cluster.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    /// When daemon number `n` starts.
    starts_at: fn(usize) -> Duration,
    /// How long a session lasts.
    session: Duration,
    /// Pods of each node, and within how long they come.
    pods: usize,
    come_within: Duration,
    /// From when on calls are counted, and until when.
    watched: (Duration, Duration),
}

/// How often a pod's credentials are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "steady, sessions of 1 h",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: PODS_PER_NODE,
        come_within: HOUR,
        watched: (Duration::from_secs(2 * 3600), Duration::from_secs(3 * 3600)),
    },
    Scenario {
        name: "steady, sessions of 12 h",
        starts_at: |_| Duration::ZERO,
        session: Duration::from_secs(12 * 3600),
        pods: PODS_PER_NODE,
        come_within: Duration::from_secs(12 * 3600),
        watched: (Duration::from_secs(13 * 3600), Duration::from_secs(19 * 3600)),
    },
    Scenario {
        name: "all daemons start at once, without a hand-over",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: PODS_PER_NODE,
        come_within: Duration::ZERO,
        watched: (Duration::ZERO, Duration::from_secs(3600)),
    },
    Scenario {
        name: "a rollout by 10 % of the nodes a minute, without a hand-over",
        starts_at: |node| MINUTE * (node * 10 / NODES) as u32,
        session: HOUR,
        pods: PODS_PER_NODE,
        come_within: Duration::ZERO,
        watched: (Duration::ZERO, Duration::from_secs(1200)),
    },
    Scenario {
        name: "a burst of jobs: 50 000 pods within a minute",
        starts_at: |_| Duration::ZERO,
        session: HOUR,
        pods: 10,
        come_within: MINUTE,
        watched: (Duration::ZERO, Duration::from_secs(1200)),
    },
];

impl Scenario {
    /// Of a cluster to which nothing happens only the rate of calls is of interest.
    fn is_steady(&self) -> bool {
        MINUTE < self.come_within
    }
}

fn main() -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    if env::args().any(|word| word == "day") {
        return runtime()?.block_on(day::run());
    }
    println!(
        "| | quota, /s | calls, mean /s | busiest second | throttled | half are warm after, s | all are, s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for scenario in SCENARIOS {
        for quota in QUOTAS {
            runtime()?.block_on(run(scenario, quota))?;
        }
    }
    Ok(())
}

/// The wall clock's time when a simulation begins.
fn epoch() -> SystemTime {
    UNIX_EPOCH + 1000 * HOUR
}

async fn run(scenario: Scenario, quota: f64) -> Result<()> {
    let began = Instant::now();
    let tokens = tokens(PODS_PER_NODE)?;
    let account = Account::new(quota / SCALE as f64, scenario.session);
    let mut nodes = JoinSet::new();
    for number in 0..NODES {
        let (account, directory) = (account.clone(), tokens.path().to_owned());
        nodes.spawn(async move {
            sleep((scenario.starts_at)(number)).await;
            let (manager, _worker) = start(account, TokenSource::new(directory), began);
            let mut waits = Vec::new();
            let first = Instant::now();
            for pod in 0..scenario.pods {
                // Spread over the time and over the nodes, the same in each run.
                let share = (pod * NODES + number * 7919 % NODES) as f64 / (scenario.pods * NODES) as f64;
                tokio::time::sleep_until(first + scenario.come_within.mul_f64(share)).await;
                let request = request(number, pod)?;
                manager.warm(request.clone());
                if scenario.is_steady() {
                    continue;
                }
                let (manager, wanted) = (manager.clone(), Instant::now());
                waits.push(async move {
                    while manager.valid(&request.key).is_none() {
                        sleep(LOOK_AGAIN).await;
                    }
                    wanted.elapsed()
                });
            }
            let mut done = Vec::new();
            let mut waiting: JoinSet<Duration> = waits.into_iter().collect();
            while let Some(waited) = waiting.join_next().await {
                done.push(waited?);
            }
            tokio::time::sleep_until(began + scenario.watched.1).await;
            anyhow::Ok(done)
        });
    }
    let mut waits = Vec::new();
    while let Some(done) = nodes.join_next().await {
        waits.extend(done??);
    }
    waits.sort_unstable();
    let calls = account.calls(began, scenario.watched);
    let scaled = |calls: f64| (calls * SCALE as f64).round();
    let seconds = (scenario.watched.1 - scenario.watched.0).as_secs_f64();
    let shown =
        |wait: Option<&Duration>| wait.map_or("–".to_owned(), |wait| format!("{:.1}", wait.as_secs_f64()));
    println!(
        "| {} | {quota:.0} | {:.0} | {:.0} | {:.0} | {} | {} |",
        scenario.name,
        scaled(calls.all as f64 / seconds),
        scaled(calls.busiest as f64),
        scaled(calls.throttled as f64),
        shown(waits.get(waits.len() / 2)),
        shown(waits.last()),
    );
    Ok(())
}

/// A node's credentials, with the defaults of the daemon. The worker ends with the guard.
fn start<S: Sts>(sts: S, tokens: TokenSource, began: Instant) -> (CredentialManager, Abort) {
    let clock = Clock::from_fn(move || epoch() + began.elapsed());
    let metrics = Metrics::register(&mut Registry::default());
    let (manager, worker) = CredentialManager::new(Config::default(), sts, tokens, clock, metrics);
    let task = tokio::spawn(worker.run(std::future::pending()));
    (manager, Abort(task.abort_handle()))
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One account's STS. Cloning is cheap.
#[derive(Clone)]
struct Account(Arc<Mutex<Book>>);

struct Book {
    began: Instant,
    quota: f64,
    session: Duration,
    level: f64,
    filled_at: Instant,
    /// When each call came, and whether it was throttled.
    calls: Vec<(Instant, bool)>,
}

/// Calls within a time.
struct Calls {
    all: usize,
    throttled: usize,
    /// Of its busiest second.
    busiest: usize,
}

impl Account {
    fn new(quota: f64, session: Duration) -> Self {
        let now = Instant::now();
        let book = Book { began: now, quota, session, level: quota, filled_at: now, calls: Vec::new() };
        Self(Arc::new(Mutex::new(book)))
    }

    fn calls(&self, began: Instant, (from, until): (Duration, Duration)) -> Calls {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within = book.calls.iter().filter(|(at, _)| (from..until).contains(&(*at - began)));
        let mut seconds = vec![0; until.as_secs() as usize + 1];
        let (mut all, mut throttled) = (0, 0);
        for (at, was_throttled) in within {
            all += 1;
            throttled += usize::from(*was_throttled);
            seconds[(*at - began).as_secs() as usize] += 1;
        }
        Calls { all, throttled, busiest: seconds.into_iter().max().unwrap_or_default() }
    }

    /// Takes a call, and says when its session ends if there is one.
    fn take(&self) -> Option<SystemTime> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        book.level = (book.level + (now - book.filled_at).as_secs_f64() * book.quota).min(book.quota);
        book.filled_at = now;
        let is_granted = 1.0 <= book.level;
        if is_granted {
            book.level -= 1.0;
        }
        book.calls.push((now, !is_granted));
        is_granted.then(|| epoch() + (now - book.began) + book.session)
    }
}

impl Sts for Account {
    async fn assume_role_with_web_identity(
        &self,
        _request: &SessionRequest,
        _token: &Token,
    ) -> Result<Issued, StsError> {
        let granted = self.take();
        sleep(STS_TIME).await;
        let Some(expires_at) = granted else {
            let (code, message) = ("Throttling".into(), "Rate exceeded".into());
            return Err(StsError::Throttled { code, message, request_id: None });
        };
        Ok(issued("token", expires_at))
    }
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
