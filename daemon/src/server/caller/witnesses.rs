//! The witnesses of the caller's table, asked for real: tokens with signatures and files, a table that changes.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use rolecall_sandbox::{
    cluster::pod::PodBuilder,
    issuer::{Algorithm, Issuer, TokenClaims},
    kubelet::KubeletDir,
};

use super::*;
use crate::{
    pods::{Event, Writer},
    token::{
        keys::{Documents, FetchError, Fetcher, KeySet},
        verify::Config,
        volume::TokenSource,
    },
};

const URL: &str = "https://kubernetes.default.svc";
const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

struct Fixture {
    issuer: Issuer,
    kubelet: KubeletDir,
    table: PodTable,
    writer: Option<Writer>,
    callers: Callers,
    fetcher: Option<Fetcher>,
}

/// A world whose table is synced and holds `pods`; the API server tells its keys unless it is `away`.
fn fixture(pods: Vec<PodBuilder>, away: bool) -> Fixture {
    let issuer = Issuer::new(URL, Algorithm::Es256);
    let kubelet = KubeletDir::new().unwrap();
    let (table, mut writer) = PodTable::new();
    writer.apply(Event::Init);
    for pod in pods {
        writer.apply(Event::InitApply(read(&pod)));
    }
    writer.apply(Event::InitDone);
    let (published, away) = (issuer.clone(), AtomicBool::new(away));
    let (keys, fetcher) = KeySet::new(Box::new(move || {
        let answer = if away.load(Ordering::Relaxed) {
            Err(FetchError("connection refused".into()))
        } else {
            Ok(Documents { issuer: URL.into(), jwks: published.jwks() })
        };
        std::future::ready(answer).boxed()
    }));
    let config = Config { audience: "sts.amazonaws.com".into(), issuers: Vec::new(), node_name: "n1".into() };
    let verifier = Verifier::new(config, keys, TokenSource::new(kubelet.path().to_owned()));
    let callers = Callers::new(
        super::Config { witness: Witness::TokenAndAddress, wait: Duration::from_secs(5) },
        table.clone(),
        verifier,
        NodeAddresses::fixed(["127.0.0.0/8".parse().unwrap(), "10.0.0.254/32".parse().unwrap()]),
        Clock::system(),
        &mut Registry::default(),
    );
    Fixture { issuer, kubelet, table, writer: Some(writer), callers, fetcher: Some(fetcher) }
}

fn builder(name: &str) -> PodBuilder {
    PodBuilder::new("shop", name).uid(&format!("uid-{name}")).service_account("orders").node("n1").role(ROLE)
}

fn read(builder: &PodBuilder) -> Pod {
    let object = serde_json::from_value(builder.build()).unwrap();
    Pod::read(&object, "sts.amazonaws.com").unwrap()
}

impl Fixture {
    fn claims(name: &str) -> TokenClaims {
        TokenClaims::new("shop", "orders", name).pod_uid(&format!("uid-{name}")).node("n1")
    }

    /// A token of the pod, which the kubelet writes.
    fn written(&self, name: &str) -> String {
        let token = self.issuer.mint(&Self::claims(name));
        self.kubelet.write_token(&format!("uid-{name}"), "rolecall-token", "token", &token).unwrap();
        token
    }

    async fn ask(&self, peer: &str, token: Option<&str>) -> String {
        let request = Request { peer: peer.parse().unwrap(), token };
        match self.callers.identify(request, &Memory::default(), Instant::now()).await {
            Ok(pod) => format!("caller {}", pod.identity.name),
            Err(refusal) => refusal.code().to_owned(),
        }
    }

    /// Runs `test` beside the task that fetches the cluster's keys.
    async fn beside_fetcher<T>(&mut self, test: impl AsyncFnOnce(&Self) -> T) -> T {
        let fetcher = self.fetcher.take().unwrap();
        tokio::select! {
            () = fetcher.run() => unreachable!("the fetcher never ends"),
            result = test(self) => result,
        }
    }
}

/// Runs a request, and `then` once the request is waiting.
async fn while_waiting(request: impl Future<Output = String>, then: impl FnOnce()) -> String {
    let mut request = std::pin::pin!(request);
    // Files are read on other threads, so waiting is not reached in one poll; with the time paused a second passes
    // only when nothing else can happen.
    tokio::select! {
        biased;
        answer = &mut request => panic!("answered before anything happened: {answer}"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    then();
    request.await
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_before_its_address_is_known_is_known_by_its_token() {
    let fixture = fixture(vec![builder("a")], false);
    let token = fixture.written("a");
    assert_eq!(fixture.ask("10.0.0.1", Some(&token)).await, "caller a");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_without_a_token_before_its_address_is_known_waits_for_it() {
    let mut fixture = fixture(vec![builder("a").token_optional()], false);
    fixture.written("a");
    let mut writer = fixture.writer.take().unwrap();
    let answer = while_waiting(fixture.ask("10.0.0.1", None), || {
        writer.apply(Event::Apply(read(&builder("a").token_optional().ip("10.0.0.1"))));
    })
    .await;
    assert_eq!(answer, "caller a");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_five_seconds_and_that_from_the_arrival() {
    let fixture = fixture(vec![], false);
    let began = Instant::now();
    assert_eq!(fixture.ask("10.0.0.1", None).await, "pod_unknown");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    let arrived = Instant::now();
    tokio::time::advance(Duration::from_secs(4)).await;
    let request = Request { peer: "10.0.0.1".parse().unwrap(), token: None };
    assert_eq!(
        fixture.callers.identify(request, &Memory::default(), arrived).await.unwrap_err().code(),
        "pod_unknown"
    );
    assert_eq!(arrived.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_stolen_token_is_refused_and_counted() {
    let fixture = fixture(vec![builder("a").ip("10.0.0.1"), builder("b").ip("10.0.0.2")], false);
    let token = fixture.written("a");
    assert_eq!(fixture.ask("10.0.0.1", Some(&token)).await, "caller a");
    assert_eq!(fixture.ask("10.0.0.2", Some(&token)).await, "wrong_pod");
    assert_eq!(fixture.ask("127.0.0.1", Some(&token)).await, "wrong_pod");
    assert_eq!(fixture.callers.wrong_pod.get(), 2);
    // From an address that nobody is known to have, the thief outwaits the watch for nothing.
    let began = Instant::now();
    assert_eq!(fixture.ask("10.0.0.9", Some(&token)).await, "wrong_pod");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!(fixture.callers.wrong_pod.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_sandbox_was_made_anew_is_served_once_the_watch_knows_its_new_address() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1")], false);
    let token = fixture.written("a");
    let mut writer = fixture.writer.take().unwrap();
    let answer = while_waiting(fixture.ask("10.0.0.7", Some(&token)), || {
        writer.apply(Event::Apply(read(&builder("a").ip("10.0.0.7"))));
    })
    .await;
    assert_eq!(answer, "caller a");
}

#[tokio::test(start_paused = true)]
async fn the_aws_cli_goes_on_with_the_token_it_read_once() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1"), builder("b")], false);
    fixture
        .beside_fetcher(async |fixture| {
            let rotated = fixture.written("a");
            assert_eq!(fixture.ask("10.0.0.1", Some(&rotated)).await, "caller a");
            fixture.written("a");
            assert_eq!(fixture.ask("10.0.0.1", Some(&rotated)).await, "caller a");
            // After a restart nothing is remembered: an expired one is proven by its signature.
            let expired = fixture.issuer.mint(&Fixture::claims("a").expired());
            assert_eq!(fixture.ask("10.0.0.1", Some(&expired)).await, "caller a");
            // From anywhere else it is too old.
            let of_b = fixture.issuer.mint(&Fixture::claims("b").expired());
            assert_eq!(fixture.ask("10.0.0.5", Some(&of_b)).await, "token_expired");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_accepted_fresh_is_expired_later() {
    let mut fixture = fixture(vec![builder("a").host_network(true)], false);
    let start = Clock::system().now();
    fixture.callers.clock = Clock::following_tokio(start);
    let token = fixture.written("a");
    assert_eq!(fixture.ask("127.0.0.1", Some(&token)).await, "caller a");
    tokio::time::advance(Duration::from_secs(25 * 3600)).await;
    assert_eq!(fixture.ask("127.0.0.1", Some(&token)).await, "token_expired");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_has_not_shown_waits_for_it_if_its_token_is_signed() {
    let mut fixture = fixture(vec![], false);
    let mut writer = fixture.writer.take().unwrap();
    fixture
        .beside_fetcher(async |fixture| {
            let token = fixture.written("a");
            let answer = while_waiting(fixture.ask("10.0.0.1", Some(&token)), || {
                writer.apply(Event::Apply(read(&builder("a"))));
            })
            .await;
            assert_eq!(answer, "caller a");
            let stranger = fixture.issuer.mint(&Fixture::claims("never"));
            assert_eq!(fixture.ask("10.0.0.1", Some(&stranger)).await, "pod_unknown");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_watch_wants_its_news_as_long_as_it_waits() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1")], false);
    let token = fixture.written("a");
    let writer = fixture.writer.take().unwrap();
    let are_wanted = || writer.news_are_wanted().now_or_never().is_some();
    assert_eq!(fixture.ask("10.0.0.1", Some(&token)).await, "caller a");
    assert!(!are_wanted());
    let answer = while_waiting(fixture.ask("10.0.0.2", None), || assert!(are_wanted())).await;
    assert_eq!(answer, "pod_unknown");
    assert!(!are_wanted());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_taken_away_is_refused_at_once() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1"), builder("b").phase("Succeeded")], false);
    let (token, of_finished) = (fixture.written("a"), fixture.written("b"));
    assert_eq!(fixture.ask("10.0.0.1", Some(&token)).await, "caller a");
    fixture.writer.take().unwrap().apply(Event::Delete("uid-a".parse().unwrap()));
    let began = Instant::now();
    assert_eq!(fixture.ask("10.0.0.1", Some(&token)).await, "pod_finished");
    assert_eq!(fixture.ask("10.0.0.2", Some(&of_finished)).await, "pod_finished");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_address_alone_is_enough_only_while_the_kubelet_keeps_the_token() {
    let fixture = fixture(vec![builder("a").token_optional().ip("10.0.0.1")], false);
    fixture.written("a");
    assert_eq!(fixture.ask("10.0.0.1", None).await, "caller a");
    // The pod is gone and the watch is silent: the address may be another pod's by now.
    fixture.kubelet.remove_pod("uid-a").unwrap();
    assert_eq!(fixture.ask("10.0.0.1", None).await, "pod_unknown");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_changes_hands_while_a_request_waits_is_its_new_owners() {
    let pods =
        vec![builder("a").token_optional().ip("10.0.0.1"), builder("b").token_optional().ip("10.0.0.1")];
    let mut fixture = fixture(pods, false);
    fixture.written("a");
    fixture.written("b");
    let mut writer = fixture.writer.take().unwrap();
    let began = Instant::now();
    assert_eq!(fixture.ask("10.0.0.1", None).await, "address_ambiguous");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    let answer = while_waiting(fixture.ask("10.0.0.1", None), || {
        writer.apply(Event::Delete("uid-a".parse().unwrap()));
    })
    .await;
    assert_eq!(answer, "caller b");
}

#[tokio::test(start_paused = true)]
async fn who_was_the_caller_is_asked_again_before_handing_out() {
    let mut fixture = fixture(vec![builder("a").token_optional().ip("10.0.0.1")], false);
    fixture.written("a");
    fixture.written("b");
    let mut writer = fixture.writer.take().unwrap();
    let request = Request { peer: "10.0.0.1".parse().unwrap(), token: None };
    let pod = fixture.callers.identify(request, &Memory::default(), Instant::now()).await.unwrap();
    assert_eq!(fixture.callers.confirm(request, &pod).await, Ok(()));
    writer.apply(Event::Apply(read(&builder("b").token_optional().ip("10.0.0.1"))));
    assert_eq!(fixture.callers.confirm(request, &pod).await, Err(Refusal::AddressAmbiguous));
    writer.apply(Event::Delete("uid-a".parse().unwrap()));
    assert_eq!(fixture.callers.confirm(request, &pod).await, Err(Refusal::WrongPod));
}

#[tokio::test(start_paused = true)]
async fn a_host_network_pod_is_known_by_its_token_alone() {
    let pods = vec![builder("a").host_network(true).ip("10.0.0.254"), builder("b").host_network(true)];
    let fixture = fixture(pods, false);
    let (a, b) = (fixture.written("a"), fixture.written("b"));
    for own in ["127.0.0.1", "10.0.0.254"] {
        assert_eq!(fixture.ask(own, Some(&a)).await, "caller a");
        assert_eq!(fixture.ask(own, Some(&b)).await, "caller b");
        assert_eq!(fixture.ask(own, None).await, "host_network_needs_token");
    }
    assert_eq!(fixture.ask("10.0.0.5", Some(&a)).await, "wrong_pod");
}

#[tokio::test(start_paused = true)]
async fn an_unproven_token_selects_nothing_while_the_api_server_is_away() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1")], true);
    fixture
        .beside_fetcher(async |fixture| {
            let kept = fixture.written("a");
            assert_eq!(fixture.ask("10.0.0.1", Some(&kept)).await, "caller a");
            // It says that it is a's, and its address agrees; but nothing proves it.
            let forged = Issuer::new(URL, Algorithm::Es256).mint(&Fixture::claims("a"));
            assert_eq!(fixture.ask("10.0.0.1", Some(&forged)).await, "not_ready");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_token_is_refused_although_the_address_would_do() {
    let mut fixture = fixture(vec![builder("a").token_optional().ip("10.0.0.1")], false);
    fixture
        .beside_fetcher(async |fixture| {
            fixture.written("a");
            let forged = Issuer::new(URL, Algorithm::Es256).mint(&Fixture::claims("a"));
            // Right after a fetch nobody can tell whether its key is a new one; later the API server is asked.
            assert_eq!(fixture.ask("10.0.0.1", Some(&forged)).await, "not_ready");
            tokio::time::sleep(Duration::from_secs(11)).await;
            for bad in [forged.as_str(), "x", "Bearer x", "a.b.c"] {
                assert_eq!(fixture.ask("10.0.0.1", Some(bad)).await, "token_invalid", "{bad}");
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_not_synced_is_waited_for() {
    let mut fixture = fixture(vec![], false);
    let (table, mut writer) = PodTable::new();
    fixture.callers.table = table.clone();
    fixture.table = table;
    assert_eq!(fixture.ask("10.0.0.1", None).await, "not_ready");
    let token = fixture.written("a");
    fixture
        .beside_fetcher(async |fixture| {
            let answer = while_waiting(fixture.ask("10.0.0.1", Some(&token)), || {
                writer.apply(Event::Init);
                writer.apply(Event::InitApply(read(&builder("a"))));
                writer.apply(Event::InitDone);
            })
            .await;
            assert_eq!(answer, "caller a");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_address_is_known_again_only_while_nothing_has_changed() {
    let mut fixture = fixture(vec![builder("a").ip("10.0.0.1"), builder("b").ip("10.0.0.2")], false);
    let (token, other) = (fixture.written("a"), fixture.written("b"));
    let memory = Memory::default();
    let ask = async |fixture: &Fixture, token: &str| {
        let request = Request { peer: "10.0.0.1".parse().unwrap(), token: Some(token) };
        match fixture.callers.identify(request, &memory, Instant::now()).await {
            Ok(pod) => format!("caller {}", pod.identity.name),
            Err(refusal) => refusal.code().to_owned(),
        }
    };
    for _ in 0..4 {
        assert_eq!(ask(&fixture, &token).await, "caller a");
    }
    assert_eq!(ask(&fixture, &other).await, "wrong_pod");
    assert_eq!(ask(&fixture, "no token").await, "token_invalid");
    assert_eq!(ask(&fixture, &token).await, "caller a");
    let writer = fixture.writer.as_mut().unwrap();
    writer.apply(Event::Apply(read(&builder("a").ip("10.0.0.3"))));
    writer.apply(Event::Apply(read(&builder("b").ip("10.0.0.1"))));
    assert_eq!(ask(&fixture, &token).await, "wrong_pod", "its address has passed on");
    assert_eq!(ask(&fixture, &other).await, "caller b");
    fixture.writer.as_mut().unwrap().apply(Event::Delete("uid-b".parse().unwrap()));
    assert_eq!(ask(&fixture, &other).await, "pod_finished");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_remembered_at_an_address_that_is_not_the_pods() {
    let fixture = fixture(vec![builder("a"), builder("b").ip("10.0.0.2")], false);
    for (name, peer, is_at_home) in [("a", "10.0.0.9", false), ("b", "10.0.0.2", true)] {
        let (token, memory) = (fixture.written(name), Memory::default());
        for _ in 0..3 {
            let request = Request { peer: peer.parse().unwrap(), token: Some(&token) };
            let pod = fixture.callers.identify(request, &memory, Instant::now()).await.unwrap();
            assert_eq!(&*pod.identity.name, name);
        }
        assert_eq!(memory.is_in_use(), is_at_home, "{name}");
    }
}
