//! Good tokens and all kinds of bad ones, against real signatures.

use std::time::Duration;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;
use rolecall_sandbox::{
    issuer::{Algorithm, Issuer, TokenClaims},
    kubelet::KubeletDir,
};

use super::*;
use crate::token::keys::{Documents, FetchError, Fetcher};

const UID: &str = "0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11";
const URL: &str = "https://kubernetes.default.svc";

struct Fixture {
    issuer: Issuer,
    kubelet: KubeletDir,
    verifier: Verifier,
    /// The task that fetches keys; nothing is fetched unless it is polled.
    fetcher: Option<Fetcher>,
    away: Arc<AtomicBool>,
    fetches: Arc<AtomicUsize>,
}

impl Fixture {
    fn new(algorithm: Algorithm) -> Self {
        Self::with_issuers(algorithm, &[])
    }

    fn with_issuers(algorithm: Algorithm, issuers: &[&str]) -> Self {
        let issuer = Issuer::new(URL, algorithm);
        let kubelet = KubeletDir::new().unwrap();
        let away = Arc::new(AtomicBool::new(false));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (published, is_away, counted) = (issuer.clone(), away.clone(), fetches.clone());
        let (keys, fetcher) = KeySet::new(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = if is_away.load(Ordering::Relaxed) {
                Err(FetchError("connection refused".into()))
            } else {
                Ok(Documents { issuer: URL.into(), jwks: published.jwks() })
            };
            std::future::ready(answer).boxed()
        }));
        let config = Config {
            audience: "sts.amazonaws.com".into(),
            issuers: issuers.iter().map(|&issuer| issuer.to_owned()).collect(),
            node_name: "n1".into(),
        };
        let verifier = Verifier::new(config, keys, TokenSource::new(kubelet.path().to_owned()));
        Self { issuer, kubelet, verifier, fetcher: Some(fetcher), away, fetches }
    }

    fn claims(&self) -> TokenClaims {
        TokenClaims::new("shop", "orders", "orders-0").pod_uid(UID).node("n1")
    }

    /// Runs `test` beside the task that fetches the keys.
    async fn beside_fetcher<T>(&mut self, test: impl AsyncFnOnce(&Self) -> T) -> T {
        let fetcher = self.fetcher.take().unwrap();
        tokio::select! {
            () = fetcher.run() => unreachable!("the fetcher never ends"),
            result = test(self) => result,
        }
    }

    async fn judge(&self, token: &str) -> String {
        let claims = match self.verifier.read(token) {
            Ok(claims) => claims,
            Err(fault) => return format!("refused at sight: {fault}"),
        };
        let volumes = [TokenVolume { volume: "v".into(), path: "token".into() }];
        match self
            .verifier
            .prove(token, &claims, &claims.pod.uid.parse().unwrap(), &volumes, Instant::now())
            .await
        {
            Proof::Good(verified) => format!("good: {}", verified.uid),
            Proof::Bad(fault) => format!("bad: {fault}"),
            Proof::Open => "open".into(),
        }
    }
}

fn good() -> String {
    format!("good: {UID}")
}

/// Replaces one character in the middle of the signature.
fn forge(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let middle = signature.len() / 2;
    let other = if signature.as_bytes()[middle] == b'A' { 'B' } else { 'A' };
    format!("{signed}.{}{other}{}", &signature[..middle], &signature[middle + 1..])
}

#[tokio::test(start_paused = true)]
async fn a_signed_token_is_good_whatever_the_algorithm() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
        let mut fixture = Fixture::new(algorithm);
        fixture
            .beside_fetcher(async |fixture| {
                let token = fixture.issuer.mint(&fixture.claims());
                assert_eq!(fixture.judge(&token).await, good());
                assert!(fixture.judge(&forge(&token)).await.starts_with("bad: it is neither"));
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn whether_the_cluster_was_asked_for_its_keys_can_be_waited_for() {
    for (away, fetches) in [(false, 1), (true, 2)] {
        let mut fixture = Fixture::new(Algorithm::Es256);
        fixture.away.store(away, Ordering::Relaxed);
        assert!(fixture.verifier.keys_asked_for().now_or_never().is_none());
        fixture.beside_fetcher(async |it| it.verifier.keys_asked_for().await).await;
        assert_eq!(fixture.fetches.load(Ordering::Relaxed), fetches);
    }
}

#[tokio::test]
async fn the_kubelets_file_needs_no_api_server() {
    let fixture = Fixture::new(Algorithm::Es256);
    let token = fixture.issuer.mint(&fixture.claims());
    fixture.kubelet.write_token(UID, "v", "token", &token).unwrap();
    // The fetcher does not run: waiting for a key would never end.
    assert_eq!(fixture.judge(&token).await, good());
}

#[tokio::test(start_paused = true)]
async fn a_rotated_token_is_proven_by_its_signature() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let old = fixture.issuer.mint(&fixture.claims().expired());
            let new = fixture.issuer.mint(&fixture.claims());
            fixture.kubelet.write_token(UID, "v", "token", &new).unwrap();
            assert_eq!(fixture.judge(&old).await, good(), "whether it is too old is not decided here");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_meant_for_us_is_refused_at_sight() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let mint = |claims: TokenClaims| fixture.issuer.mint(&claims);
            let audience = mint(fixture.claims().audiences(&["vault", "https://kubernetes.default.svc"]));
            assert_eq!(
                fixture.judge(&audience).await,
                "refused at sight: its audience is not sts.amazonaws.com"
            );
            let node = mint(fixture.claims().node("n2"));
            assert_eq!(fixture.judge(&node).await, "refused at sight: it belongs to a pod of another node");
            let issuer = mint(fixture.claims().issuer("https://other.example"));
            assert_eq!(fixture.judge(&issuer).await, "bad: its issuer is not this cluster's");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_cluster_is_refused() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    let other = Issuer::new(URL, Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let token = other.mint(&fixture.claims());
            assert!(fixture.judge(&token).await.starts_with("bad: it is neither"));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_name_the_issuers() {
    let mut fixture =
        Fixture::with_issuers(Algorithm::Es256, &["https://old.example", "https://new.example"]);
    fixture
        .beside_fetcher(async |fixture| {
            let token = |issuer: &str| fixture.issuer.mint(&fixture.claims().issuer(issuer));
            assert_eq!(fixture.judge(&token("https://old.example")).await, good());
            assert_eq!(fixture.judge(&token("https://new.example")).await, good());
            assert_eq!(fixture.judge(&token(URL)).await, "bad: its issuer is not this cluster's");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_key_of_the_cluster_is_fetched_and_waited_for() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let old = fixture.issuer.mint(&fixture.claims());
            assert_eq!(fixture.judge(&old).await, good());
            fixture.issuer.rotate_key(Algorithm::Rs256);
            let new = fixture.issuer.mint(&fixture.claims());
            let began = Instant::now();
            assert_eq!(fixture.judge(&new).await, good());
            assert_eq!(began.elapsed(), Duration::from_secs(10), "fetches are 10 s apart");
            assert_eq!(fixture.fetches.load(Ordering::Relaxed), 2);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn invented_key_ids_do_not_make_more_fetches() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let others: Vec<Issuer> = (0..50).map(|_| Issuer::new(URL, Algorithm::Es256)).collect();
            let tokens: Vec<String> = others.iter().map(|other| other.mint(&fixture.claims())).collect();
            let judged = futures_util::future::join_all(tokens.iter().map(|token| fixture.judge(token)));
            assert!(judged.await.iter().all(|judged| judged.starts_with("bad")));
            let fetches = fixture.fetches.load(Ordering::Relaxed);
            assert!(fetches <= 2, "{fetches}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_the_keys_last_seen_decide() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let first = fixture.issuer.mint(&fixture.claims());
            assert_eq!(fixture.judge(&first).await, good());
            fixture.away.store(true, Ordering::Relaxed);
            let second = fixture.issuer.mint(&fixture.claims().audiences(&["sts.amazonaws.com", "x"]));
            assert_eq!(fixture.judge(&second).await, good());
            fixture.issuer.rotate_key(Algorithm::Es256);
            let unknown = fixture.issuer.mint(&fixture.claims());
            assert_eq!(fixture.judge(&unknown).await, "open");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_cluster_has_withdrawn_is_noticed() {
    let mut fixture = Fixture::new(Algorithm::Es256);
    fixture
        .beside_fetcher(async |fixture| {
            let token = fixture.issuer.mint(&fixture.claims());
            let other = fixture.issuer.mint(&fixture.claims().audiences(&["sts.amazonaws.com", "x"]));
            assert_eq!(fixture.judge(&token).await, good());
            fixture.issuer.rotate_key(Algorithm::Es256);
            fixture.issuer.retire_old_keys();
            tokio::time::sleep(Duration::from_secs(301)).await;
            assert!(fixture.judge(&other).await.starts_with("bad: it is neither"));
        })
        .await;
}

#[tokio::test]
async fn an_accepted_token_is_remembered_until_its_pod_leaves() {
    let fixture = Fixture::new(Algorithm::Es256);
    let token = fixture.issuer.mint(&fixture.claims());
    fixture.kubelet.write_token(UID, "v", "token", &token).unwrap();
    assert_eq!(fixture.verifier.recall(&token), None);
    assert_eq!(fixture.judge(&token).await, good());
    assert!(fixture.verifier.recall(&token).is_some());
    assert_eq!(fixture.verifier.recall(&forge(&token)), None);
    fixture.verifier.forget(&UID.parse().unwrap());
    assert_eq!(fixture.verifier.recall(&token), None);
}

#[tokio::test]
async fn one_pod_cannot_fill_the_memory_of_accepted_tokens() {
    let fixture = Fixture::new(Algorithm::Es256);
    let mut tokens = Vec::new();
    for _ in 0..=MAX_ACCEPTED_PER_POD {
        let token = fixture.issuer.mint(&fixture.claims());
        fixture.kubelet.write_token(UID, "v", "token", &token).unwrap();
        assert_eq!(fixture.judge(&token).await, good());
        tokens.push(token);
    }
    assert_eq!(fixture.verifier.recall(&tokens[0]), None, "the oldest made room");
    assert!(tokens[1..].iter().all(|token| fixture.verifier.recall(token).is_some()));
}

#[test]
fn the_tokens_of_the_pod_that_was_accepted_first_make_room() {
    let mut accepted = Accepted::default();
    let uid = |n: usize| format!("pod-{n}").parse::<PodUid>().unwrap();
    let digest = |n: usize| sha256(&n.to_string());
    for n in 0..=MAX_PODS {
        let verified = Verified {
            uid: uid(n),
            namespace: "shop".to_owned(),
            pod: "orders-0".to_owned(),
            expires_at: SystemTime::UNIX_EPOCH,
        };
        accepted.insert(digest(n), Arc::new(verified));
    }
    let is_remembered = |n: usize| accepted.by_digest.contains_key(&digest(n));
    assert_eq!([0, 1, MAX_PODS].map(is_remembered), [false, true, true]);
    assert_eq!(
        (accepted.by_digest.len(), accepted.by_pod.len(), accepted.pods.len()),
        (MAX_PODS, MAX_PODS, MAX_PODS)
    );
}
