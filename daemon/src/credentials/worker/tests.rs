//! A node with pods, tokens on disk and an STS that does as it is told, on paused time.

mod failures;
mod fetching;
mod handover;
mod pacing;
mod refresh;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rolecall_contract::SessionDuration;
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use zeroize::Zeroizing;

use crate::{
    credentials::{
        Config, CredentialKey, CredentialManager, Credentials, FetchError, Issued, Metrics, Pending,
        SessionNameTemplate, SessionNameValues, SessionRequest, Sts, StsError, Urgency,
    },
    identity::PodIdentity,
    token::{
        Token,
        volume::{TokenSource, TokenVolume},
    },
};
use rolecall_process::time::Clock;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What the fake does with an exchange.
#[derive(Clone)]
enum Answer {
    /// Issues a session of this length.
    Issue(Duration),
    Fail(StsError),
    /// Answers only after this time.
    After(Duration, Box<Answer>),
    Panic,
}

/// An exchange, in the order in which they began.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    pod: String,
    role: String,
    token: String,
    /// Time since the start.
    at: Duration,
}

/// The fake STS; it may be told something else at any time.
#[derive(Clone)]
struct FakeSts(Arc<Fake>);

type Behavior = Box<dyn FnMut(&Call) -> Answer + Send>;

struct Fake {
    answer: Mutex<Behavior>,
    calls: Mutex<Vec<Call>>,
    out: AtomicUsize,
    most_out: AtomicUsize,
    began: Instant,
    clock: Clock,
}

/// A node. Its worker runs until the test ends.
struct Node {
    manager: CredentialManager,
    sts: FakeSts,
    metrics: Metrics,
    pods_dir: TempDir,
    /// How far the wall clock was stepped, in seconds.
    stepped: Arc<AtomicU64>,
    clock: Clock,
    worker: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Node {
    fn start() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let pods_dir = tempfile::tempdir().unwrap();
        let stepped = Arc::new(AtomicU64::new(0));
        let (steps, following) = (stepped.clone(), Clock::following_tokio(UNIX_EPOCH + 1000 * HOUR));
        let clock =
            Clock::from_fn(move || following.now() + Duration::from_secs(steps.load(Ordering::SeqCst)));
        let sts = FakeSts(Arc::new(Fake {
            answer: Mutex::new(Box::new(|_| Answer::Issue(HOUR))),
            calls: Mutex::default(),
            out: AtomicUsize::new(0),
            most_out: AtomicUsize::new(0),
            began: Instant::now(),
            clock: clock.clone(),
        }));
        let metrics = Metrics::default();
        let tokens = TokenSource::new(pods_dir.path().to_owned());
        let (manager, worker) =
            CredentialManager::new(config, sts.clone(), tokens, clock.clone(), metrics.clone());
        let worker = spawn(worker.run(std::future::pending()));
        Self { manager, sts, metrics, pods_dir, stepped, clock, worker }
    }

    /// A node with one pod `a`, whose token is there and whose credentials are warm.
    async fn with_warm_pod() -> (Self, SessionRequest) {
        let node = Self::start();
        let request = node.pod("a");
        node.manager.warm(request.clone());
        pass(SECOND).await;
        assert!(node.manager.valid(&request.key).is_some(), "the pod is warm");
        (node, request)
    }

    /// A pod with a token.
    fn pod(&self, name: &str) -> SessionRequest {
        self.write_token(name, &format!("token-of-{name}"));
        request(name, "orders")
    }

    fn write_token(&self, pod: &str, token: &str) {
        let path = self.token_path(pod);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, token).unwrap();
    }

    fn remove_token(&self, pod: &str) {
        std::fs::remove_file(self.token_path(pod)).unwrap();
    }

    fn token_path(&self, pod: &str) -> PathBuf {
        self.pods_dir.path().join(pod).join("volumes/kubernetes.io~projected/rolecall-token/token")
    }

    /// Asks, and waits for the outcome for as long as the endpoint would: 20 s.
    async fn ask(&self, request: &SessionRequest) -> Result<Arc<Credentials>, FetchError> {
        let mut pending = self.manager.request(request.clone()).expect("the pod may have this role");
        match tokio::time::timeout(20 * SECOND, pending.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => match pending.best() {
                Some(credentials) => Ok(credentials),
                None => Err(pending.give_up()),
            },
        }
    }

    /// A request that waits in a task of its own.
    fn asking(&self, request: &SessionRequest) -> JoinHandle<Result<Arc<Credentials>, FetchError>> {
        let mut pending = self.manager.request(request.clone()).expect("the pod may have this role");
        spawn(async move { pending.outcome().await })
    }

    fn pending(&self, request: &SessionRequest) -> Pending {
        self.manager.request(request.clone()).expect("the pod may have this role")
    }

    /// What is known to a request at once, without a wait.
    async fn at_once(&self, request: &SessionRequest) -> Option<Result<Arc<Credentials>, FetchError>> {
        let mut pending = self.pending(request);
        tokio::time::timeout(Duration::ZERO, pending.outcome()).await.ok()
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Steps the wall clock, as after a suspend: timers notice nothing of it.
    fn step_clock(&self, by: Duration) {
        self.stepped.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    /// The page of metrics, for one line of it.
    #[track_caller]
    fn check_metric(&self, line: &str) {
        let mut registry = rolecall_process::metrics::registry();
        self.metrics.register_in(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        assert!(page.lines().any(|it| it == line), "no {line} in\n{page}");
    }
}

impl FakeSts {
    fn answers(&self, answer: impl FnMut(&Call) -> Answer + Send + 'static) {
        *self.0.answer.lock().unwrap() = Box::new(answer);
    }

    fn always(&self, answer: Answer) {
        self.answers(move |_| answer.clone());
    }

    fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.calls().len()
    }

    fn pods(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.pod).collect()
    }

    /// Seconds between the calls.
    fn gaps(&self) -> Vec<f64> {
        self.calls().windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
    }
}

impl Sts for FakeSts {
    async fn assume_role_with_web_identity(
        &self,
        request: &SessionRequest,
        token: &Token,
    ) -> Result<Issued, StsError> {
        let fake = &self.0;
        let call = Call {
            pod: request.key.pod.to_string(),
            role: request.key.role.name().to_owned(),
            token: token.expose().to_owned(),
            at: fake.began.elapsed(),
        };
        let out = Out::new(fake);
        let mut answer = (fake.answer.lock().unwrap())(&call);
        let number = {
            let mut calls = fake.calls.lock().unwrap();
            calls.push(call);
            calls.len()
        };
        while let Answer::After(delay, then) = answer {
            sleep(delay).await;
            answer = *then;
        }
        drop(out);
        match answer {
            Answer::Issue(lifetime) => Ok(Issued {
                access_key_id: format!("ASIA{number}"),
                secret_access_key: Zeroizing::new("secret-key".to_owned()),
                session_token: Zeroizing::new("session-token".to_owned()),
                expires_at: fake.clock.now() + lifetime,
                assumed_role_arn: None,
                request_id: Some(format!("request-{number}")),
            }),
            Answer::Fail(error) => Err(error),
            Answer::Panic => panic!("the SDK has a bug"),
            Answer::After(..) => unreachable!("the loop ends with another answer"),
        }
    }
}

/// Counts the exchanges that are out, cancelled ones included.
struct Out<'a>(&'a Fake);

impl<'a> Out<'a> {
    fn new(fake: &'a Fake) -> Self {
        let out = fake.out.fetch_add(1, Ordering::SeqCst) + 1;
        fake.most_out.fetch_max(out, Ordering::SeqCst);
        Self(fake)
    }
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        self.0.out.fetch_sub(1, Ordering::SeqCst);
    }
}

fn after(delay: Duration, answer: Answer) -> Answer {
    Answer::After(delay, Box::new(answer))
}

fn denied() -> Answer {
    Answer::Fail(StsError::Denied {
        code: "AccessDenied".into(),
        message: "Not authorized to perform sts:AssumeRoleWithWebIdentity".into(),
        request_id: Some("request-denied".into()),
    })
}

fn token_refused() -> Answer {
    Answer::Fail(StsError::TokenRefused {
        code: "ExpiredTokenException".into(),
        message: "expired".into(),
        request_id: None,
    })
}

fn throttled() -> Answer {
    Answer::Fail(StsError::Throttled {
        code: "Throttling".into(),
        message: "Rate exceeded".into(),
        request_id: None,
    })
}

fn unreachable() -> Answer {
    Answer::Fail(StsError::unreachable("connection refused"))
}

/// A request of the pod named `pod`, which is its uid too, for `role`.
fn request(pod: &str, role: &str) -> SessionRequest {
    let identity = PodIdentity {
        uid: pod.parse().unwrap(),
        namespace: "shop".into(),
        name: pod.into(),
        service_account: "orders".into(),
    };
    let values = SessionNameValues {
        cluster: "",
        namespace: &identity.namespace,
        pod,
        service_account: &identity.service_account,
        node: "",
    };
    let key = CredentialKey {
        pod: identity.uid.clone(),
        role: format!("arn:aws:iam::111122223333:role/{role}").parse().unwrap(),
        session_name: SessionNameTemplate::default().render(&values),
        duration: SessionDuration::from_seconds(3600).unwrap(),
    };
    let volume = TokenVolume { volume: "rolecall-token".into(), path: "token".into() };
    SessionRequest { key, pod: identity, volumes: [volume].into(), urgency: Urgency::LEAST }
}

/// Lets time pass, and everything happen that happens in it.
async fn pass(time: Duration) {
    sleep(time).await;
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}
