//! The webhook over loopback: TLS, HTTP, reviews, the drain, and certificates that are swapped under load.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness {
    use std::{
        io,
        net::SocketAddr,
        sync::Arc,
        time::{Duration, UNIX_EPOCH},
    };

    use kube::{
        Client,
        client::Body,
        core::{ObjectMeta, PartialObjectMeta, PartialObjectMetaExt},
        runtime::watcher::Event,
    };
    use prometheus_client::registry::Registry;
    use rolecall_process::{
        drain::{self, Trigger},
        readiness::Readiness,
    };
    use rolecall_shim::{
        cache::{
            Known,
            latest::Latest,
            lookup::{self, Lookup},
            service_accounts::{ServiceAccounts, Writer},
        },
        certificate::{
            Names, Serving,
            mint::{self, Facts, Pair},
        },
        policy::Policy,
        server::{bodies::Bodies, endpoint::Endpoint, listener::Server, metrics::Metrics, tls},
    };
    use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket, TcpStream},
        sync::watch,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

    /// A webhook at a port of its own.
    pub(crate) struct Webhook {
        pub(crate) address: SocketAddr,
        pub(crate) serving: Serving,
        pub(crate) accounts: Writer,
        pub(crate) started: watch::Sender<bool>,
        pub(crate) leaving: Trigger,
        pub(crate) front: Trigger,
        pub(crate) authority: Authority,
        _back: Trigger,
    }

    /// A certificate authority of the test.
    pub(crate) struct Authority {
        pub(crate) pair: Pair,
        facts: Facts,
    }

    pub(crate) struct Reply {
        pub(crate) status: u16,
        pub(crate) head: String,
        pub(crate) body: String,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let pair = mint::authority(now(), Duration::from_secs(86_400)).unwrap();
            let facts = Facts::read(pair.certificate.as_bytes()).unwrap();
            Self { pair, facts }
        }

        pub(crate) fn issue(&self) -> Pair {
            let names = Names::of_service("rolecall", "shim", &["127.0.0.1".to_owned()]);
            mint::serving(&self.pair, &self.facts, &names, now() + Duration::from_secs(3600)).unwrap()
        }
    }

    impl Webhook {
        pub(crate) async fn start(grace: Duration, max_connections: usize) -> Self {
            Self::start_with(grace, max_connections, false).await
        }

        pub(crate) async fn start_with(grace: Duration, max_connections: usize, only_v13: bool) -> Self {
            let mut registry = Registry::default();
            let tls_config = tls::Config { only_v13, cipher_suites: Vec::new() };
            let provider = tls::provider(&tls_config);
            let serving = Serving::new(provider.clone(), &mut registry);
            let authority = Authority::new();
            let pair = authority.issue();
            serving.load(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();

            let (back, _) = drain::new();
            let (leaving, leaving_watch) = drain::new();
            let (front, _) = drain::new();
            let (table, accounts) = ServiceAccounts::new(Some("eks.amazonaws.com".to_owned()));
            // An API server that never answers.
            let client = Client::new(
                tower::service_fn(|_: http::Request<Body>| {
                    std::future::pending::<Result<http::Response<Body>, io::Error>>()
                }),
                "default",
            );
            let prefix = Some("eks.amazonaws.com".to_owned());
            let lookup = Lookup::new(
                lookup::Config { grace },
                table,
                client,
                prefix,
                back.tasks(),
                lookup::Metrics::default(),
            );
            let known = Known {
                service_accounts: lookup,
                config_map: Latest::default(),
                identities: Latest::default(),
            };
            let (started, is_started) = watch::channel(true);
            let endpoint = Endpoint {
                policy: Policy::default(),
                known,
                readiness: Readiness::default(),
                started: is_started,
                metrics: Metrics::register(&mut registry),
                bodies: Bodies::default(),
            };
            let tls = tls::server_config(&tls_config, provider, serving.clone()).unwrap();
            let server = Server::new(endpoint, tls, max_connections, front.tasks(), leaving_watch);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            front.tasks().spawn_essential("listener", server.run(listener));
            Self { address, serving, accounts, started, leaving, front, authority, _back: back }
        }

        /// Makes a ServiceAccount known.
        pub(crate) fn account(&mut self, name: &str, role: &str) {
            let object: PartialObjectMeta<_> = ObjectMeta {
                namespace: Some("shop".to_owned()),
                name: Some(name.to_owned()),
                annotations: Some([("eks.amazonaws.com/role-arn".to_owned(), role.to_owned())].into()),
                ..ObjectMeta::default()
            }
            .into_response_partial();
            self.accounts.apply(Event::Apply(object));
        }

        pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
            connect(self.address, &[&self.authority], &rustls::version::TLS13).await.unwrap()
        }

        /// Connects as another peer.
        pub(crate) async fn connect_from(&self, peer: [u8; 4]) -> io::Result<TlsStream<TcpStream>> {
            let socket = TcpSocket::new_v4()?;
            socket.bind((peer, 0).into())?;
            let stream = socket.connect(self.address).await?;
            set_up(stream, &[&self.authority], &rustls::version::TLS13).await
        }

        pub(crate) async fn send(&self, request: &str) -> Reply {
            let mut stream = self.connect().await;
            exchange(&mut stream, request).await
        }
    }

    pub(crate) async fn connect(
        address: SocketAddr,
        trusted: &[&Authority],
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<TlsStream<TcpStream>> {
        set_up(TcpStream::connect(address).await?, trusted, version).await
    }

    async fn set_up(
        stream: TcpStream,
        trusted: &[&Authority],
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        for authority in trusted {
            roots
                .add(CertificateDer::from_pem_slice(authority.pair.certificate.as_bytes()).unwrap())
                .unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("shim.rolecall.svc").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Sends a head and a body, which `request` has in one, and reads one reply.
    pub(crate) async fn exchange(stream: &mut TlsStream<TcpStream>, request: &str) -> Reply {
        stream.write_all(request.as_bytes()).await.unwrap();
        read(stream).await
    }

    pub(crate) async fn read(stream: &mut TlsStream<TcpStream>) -> Reply {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_lowercase();
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                if length.unwrap().parse::<usize>().unwrap() <= body.len() {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return Reply { status, head, body: body.to_owned() };
                }
            }
            let read = stream.read_buf(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "the connection ended in the middle of a reply: {text}");
        }
    }

    pub(crate) fn post(path: &str, kind: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    #[expect(clippy::disallowed_methods, reason = "a client of TLS compares with the time that it is")]
    fn now() -> std::time::SystemTime {
        let seconds = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        UNIX_EPOCH + Duration::from_secs(seconds)
    }
}

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use harness::{Authority, Webhook, connect, exchange, post, read};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::version::{TLS12, TLS13};

const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

fn review(version: &str, account: &str) -> String {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"),
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "operation": "CREATE",
            "namespace": "shop",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"generateName": "orders-"},
                "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "x"}]},
            },
        },
    })
    .to_string()
}

fn mutate(account: &str) -> String {
    post("/mutate?timeout=10s", "application/json", &review("v1", account))
}

#[track_caller]
fn response(reply: &harness::Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("AdmissionReview"), &json!("u-1")));
    assert_eq!(answer["response"]["allowed"], true);
    answer
}

#[tokio::test]
async fn a_review_is_answered_in_its_own_version_over_both_versions_of_tls() {
    let mut webhook = Webhook::start(Duration::ZERO, 64).await;
    webhook.account("orders", ROLE);
    for tls in [&TLS12, &TLS13] {
        let mut stream = connect(webhook.address, &[&webhook.authority], tls).await.unwrap();
        for version in ["v1", "v1beta1"] {
            for kind in ["application/json", "application/json; charset=utf-8"] {
                let reply = exchange(&mut stream, &post("/mutate", kind, &review(version, "orders"))).await;
                let answer = response(&reply);
                assert_eq!(answer["apiVersion"], format!("admission.k8s.io/{version}"));
                assert_eq!(answer["response"]["patchType"], "JSONPatch", "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn where_the_operator_wants_tls_1_3_alone_1_2_is_refused() {
    let webhook = Webhook::start_with(Duration::ZERO, 64, true).await;
    assert!(connect(webhook.address, &[&webhook.authority], &TLS12).await.is_err());
    let mut stream = connect(webhook.address, &[&webhook.authority], &TLS13).await.unwrap();
    assert_eq!(exchange(&mut stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn what_is_no_review_is_refused_and_the_connection_lives_on() {
    let webhook = Webhook::start(Duration::ZERO, 64).await;
    let mut stream = webhook.connect().await;
    for (request, status, words) in [
        (post("/mutate", "text/plain", "{}"), 415, "application/json"),
        (post("/mutate", "", "{}"), 415, "application/json"),
        (post("/mutate", "application/json", "{"), 400, "ends too early"),
        (post("/mutate", "application/json", "{}"), 400, "no AdmissionReview"),
        (post("/other", "application/json", "{}"), 404, "/mutate"),
        (post("/mutate/", "application/json", "{}"), 404, "/mutate"),
        ("GET /mutate HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405, "POST"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200, "ok"),
        ("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200, "ok"),
    ] {
        let reply = exchange(&mut stream, &request).await;
        assert!(
            reply.status == status && reply.body.contains(words),
            "{request}: {} {}",
            reply.status,
            reply.body
        );
    }
}

#[tokio::test]
async fn a_review_of_more_than_four_mebibytes_is_refused() {
    let webhook = Webhook::start(Duration::ZERO, 64).await;
    let mut stream = webhook.connect().await;
    let head = "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4194305\r\n\r\n";
    // Its length alone is enough: the body is never sent.
    assert_eq!(exchange(&mut stream, head).await.status, 413);
}

#[tokio::test]
async fn a_review_that_comes_before_everything_is_known_waits_and_is_answered() {
    let mut webhook = Webhook::start(Duration::ZERO, 64).await;
    webhook.account("orders", ROLE);
    webhook.started.send_replace(false);
    let mut stream = webhook.connect().await;
    stream.write_all(mutate("orders").as_bytes()).await.unwrap();
    webhook.started.send_replace(true);
    assert_eq!(response(&read(&mut stream).await)["response"]["patchType"], "JSONPatch");
    webhook.started.send_replace(false);
    let reply = webhook.send(&post("/mutate?timeout=1s", "application/json", &review("v1", "orders"))).await;
    assert_eq!(reply.status, 503);
}

#[tokio::test]
async fn a_pod_waits_for_its_service_account_and_is_let_in_with_a_warning_without() {
    let mut webhook = Webhook::start(Duration::from_secs(5), 64).await;
    let mut stream = webhook.connect().await;
    stream.write_all(mutate("orders").as_bytes()).await.unwrap();
    // The reply to another request shows that the first had the time to be read; it would be answered by now.
    assert_eq!(webhook.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    webhook.account("orders", ROLE);
    assert_eq!(response(&read(&mut stream).await)["response"]["patchType"], "JSONPatch");

    // The API server waits for one second only, so the grace period is cut short.
    let reply = webhook.send(&post("/mutate?timeout=1s", "application/json", &review("v1", "absent"))).await;
    let answer = response(&reply);
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("shop/orders-") && warning.contains("absent"), "{warning}");
    assert!(answer["response"].get("patch").is_none());
}

#[tokio::test]
async fn a_certificate_that_is_swapped_under_load_fails_no_handshake() {
    let mut webhook = Webhook::start(Duration::ZERO, 256).await;
    webhook.account("orders", ROLE);
    let (next, stop) = (Arc::new(Authority::new()), Arc::new(AtomicBool::new(false)));
    let old = Arc::new(std::mem::replace(&mut webhook.authority, Authority::new()));
    let address = webhook.address;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (old, next, stop) = (old.clone(), next.clone(), stop.clone());
            async move {
                let mut made = 0;
                while !stop.load(Ordering::Relaxed) {
                    let tls = if made % 2 == 0 { &TLS13 } else { &TLS12 };
                    let mut stream = connect(address, &[&old, &next], tls).await.unwrap();
                    response(&exchange(&mut stream, &mutate("orders")).await);
                    made += 1;
                }
                made
            }
        })
        .collect();
    let swaps = async {
        for round in 0..50 {
            let pair = if round % 2 == 0 { next.issue() } else { old.issue() };
            webhook.serving.load(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
            // A handshake in between, so that each certificate is served.
            connect(address, &[if round % 2 == 0 { &*next } else { &*old }], &TLS13).await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (made, ()) = tokio::join!(futures_util::future::join_all(clients), swaps);
    assert!(made.iter().all(|made| 0 < *made), "{made:?}");
    // A key that does not fit changes nothing.
    let (a, b) = (old.issue(), old.issue());
    assert!(webhook.serving.load(a.certificate.as_bytes(), b.key.as_bytes()).is_err());
    connect(address, &[&old], &TLS13).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_leaves_answers_on_and_lets_go_of_its_callers() {
    let mut webhook = Webhook::start(Duration::from_secs(8), 64).await;
    let mut kept = webhook.connect().await;
    assert!(
        !exchange(&mut kept, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .head
            .contains("connection: close")
    );
    webhook.leaving.begin();
    // New callers are served still, and told not to come back on this connection.
    assert!(
        webhook.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.head.contains("connection: close")
    );
    kept.write_all(mutate("orders").as_bytes()).await.unwrap();
    assert_eq!(webhook.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    webhook.front.begin();
    // What is under way is answered, though the drain has begun.
    webhook.account("orders", ROLE);
    let reply = read(&mut kept).await;
    assert!(reply.head.contains("connection: close"), "{}", reply.head);
    assert_eq!(response(&reply)["response"]["patchType"], "JSONPatch");
    assert_eq!(webhook.front.finish(Duration::from_secs(20)).await, []);
    assert!(tokio::net::TcpStream::connect(webhook.address).await.is_err());
}

#[tokio::test]
async fn who_takes_all_places_keeps_nobody_else_out() {
    let webhook = Webhook::start(Duration::ZERO, 3).await;
    let silent = tokio::net::TcpStream::connect(webhook.address).await.unwrap();
    let mut idle = [webhook.connect().await, webhook.connect().await];
    let mut other = webhook.connect_from([127, 0, 0, 2]).await.unwrap();
    assert_eq!(exchange(&mut other, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    // The place is that of the connection which has been idle for the longest time.
    let mut buffer = [0];
    silent.readable().await.unwrap();
    assert!(matches!(silent.try_read(&mut buffer), Ok(0) | Err(_)));
    assert!(webhook.connect_from([127, 0, 0, 1]).await.is_err(), "who holds the most gets no more");
    assert_eq!(exchange(&mut idle[0], "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn what_says_no_tls_ends_alone() {
    let webhook = Webhook::start(Duration::ZERO, 64).await;
    let mut plain = tokio::net::TcpStream::connect(webhook.address).await.unwrap();
    plain.write_all(b"POST /mutate HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"));
    assert_eq!(webhook.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
}
