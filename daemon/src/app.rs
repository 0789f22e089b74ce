//! The wiring: binds every socket, then starts the parts, and ends them in order. Parts meet here alone.

mod follower;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};

use self::follower::Follower;
use crate::{
    config::{Config, StsConfig},
    credentials::{self, CredentialManager},
    events::{self, Events, Notice, Publisher},
    exemptions,
    kubernetes::{self, ClientError},
    node::{
        FollowError, NodeAddresses,
        firewall::{self, Firewall},
        loopback,
        taint::{self, StartupTaint},
    },
    pods::{self, PodTable},
    server::{
        caller::Callers,
        endpoint::Endpoint,
        limits::Limits,
        listener::{self, Server},
        observe::Observer,
    },
    sessions::Sessions,
    sts::{self, StsClient, StsConfigError},
    token::{keys::KeySet, verify::Verifier, volume::TokenSource},
};
use rolecall_process::time::Clock;
use rolecall_process::{
    address::on_this_machine,
    admin,
    drain::{self, EssentialTaskEnded},
    liveness::Liveness,
    metrics,
    readiness::Readiness,
    signal::Signals,
    telemetry::{LogLevel, chain},
};

/// Connections that the kernel keeps for a listener that is busy.
const BACKLOG: u32 = 4096;

/// Why the daemon did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the system has to give was not to be had.
    #[error("{0:#}")]
    Boot(#[from] anyhow::Error),
    /// A part without which the daemon is of no use ended.
    #[error(transparent)]
    EssentialTask(#[from] EssentialTaskEnded),
    /// A second signal came before the drain was over.
    #[error("{0} during the drain: ended at once")]
    Interrupted(&'static str),
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error("bind --listen {address}: {source}; {remedy}")]
    Listen { address: SocketAddr, source: io::Error, remedy: &'static str },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Sts(#[from] StsConfigError),
    #[error("follow the node's addresses")]
    Node(#[from] FollowError),
    #[error("put the addresses of --listen on the node (--manage-addresses=off turns it off)")]
    Loopback(#[from] loopback::Error),
    #[error("--metadata-firewall")]
    Firewall(#[from] firewall::Error),
}

/// A running daemon.
pub struct App {
    /// Where pods are served.
    pub endpoint_addresses: Vec<SocketAddr>,
    /// Where health is told over TCP.
    pub admin_address: Option<SocketAddr>,
    /// Where the metrics are.
    pub metrics_address: Option<SocketAddr>,
    readiness: Readiness,
    drain_deadline: Duration,
    /// What takes requests; it drains first.
    front: drain::Trigger,
    /// What requests need to be answered; it ends when they are.
    back: drain::Trigger,
    _admin: admin::Admin,
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// When it cannot start, an essential part dies, or a second signal cuts the drain short.
pub async fn run(config: Config, log_level: LogLevel) -> Result<(), Error> {
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let (node, follow) =
        NodeAddresses::follow().await.map_err(|error| anyhow::Error::from(StartError::from(error)))?;
    let app = App::start(config, node, log_level).await.map_err(anyhow::Error::from)?;
    app.back.tasks().spawn_essential("node addresses", async move {
        let error = follow.await;
        tracing::error!(error = %chain(&error), "cannot follow the node's addresses any more");
    });
    let result = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "the drain begins");
            Ok(())
        }
        ended = app.failed() => Err(ended.into()),
    };
    tokio::select! {
        () = app.drain() => result,
        name = signals.next() => Err(Error::Interrupted(name)),
    }
}

impl App {
    /// Binds every socket of `config`, then starts every part. `node` tells the node's own addresses.
    ///
    /// # Errors
    /// When a socket cannot be bound, or a client cannot be made of the settings. That the API server or STS is
    /// away is no error.
    pub async fn start(config: Config, node: NodeAddresses, log_level: LogLevel) -> Result<Self, StartError> {
        let mut registry = metrics::registry();
        let readiness = Readiness::default();
        let addresses = config.addresses_to_put();
        let metrics_listen = config.admin.metrics_listen.map(on_this_machine);
        let admin = admin::Bound::bind(admin::Config { metrics_listen, ..config.admin })?;
        // Pods are kept from the node's own credentials before anything else, whatever fails afterwards.
        let keep_exempt = !config.node.exemptions.is_empty();
        let firewall_metrics = firewall::Metrics::register(&mut registry);
        let firewall = Firewall::start(config.node.firewall, keep_exempt, firewall_metrics).await?;
        let loopback_metrics = loopback::Metrics::register(&mut registry);
        let loopback = match addresses.is_empty() {
            true => None,
            false => Some(loopback::put(addresses, loopback_metrics).await?),
        };
        let listeners = bind(&config.server.listen)?;
        let endpoint_addresses: Vec<SocketAddr> =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();

        let clock = Clock::system();
        let liveness = Liveness::default();
        let (front, _) = drain::new();
        let (back, back_watch) = drain::new();
        let tasks = back.tasks();
        tasks.spawn_essential("heartbeat", liveness.heart("data plane").keep_beating(back_watch));

        let watch_metrics = pods::watch::Metrics::register(&mut registry);
        let client = kubernetes::client(config.kubernetes.kubeconfig, watch_metrics.connection()).await?;
        let (table, writer) = PodTable::new();

        let source = TokenSource::new(config.tokens.pods_dir);
        if let Err(error) = source.check() {
            tracing::error!(
                error = %chain(&error),
                "cannot open --pods-dir: no pod gets credentials until the kubelet's directory is mounted there"
            );
        }
        let (keys, fetcher) = KeySet::new(kubernetes::issuer_documents(client.clone()));
        let audience = config.tokens.verify.audience.clone();
        let verifier = Verifier::new(config.tokens.verify, keys, source.clone());
        tasks.spawn_essential("signing keys", fetcher.run());

        let events_metrics = events::Metrics::register(&mut registry);
        let events = if config.kubernetes.events {
            let known = verifier.clone();
            let issuer = move || known.issuer();
            let node = &config.kubernetes.node_name;
            let (publisher, events) =
                Publisher::new(client.clone(), node, issuer, audience.clone(), events_metrics);
            tasks.spawn("events", publisher.run());
            events
        } else {
            Events::off()
        };

        let credentials_metrics = credentials::Metrics::register(&mut registry);
        let sts = StsClient::new(sts_config(config.sts))?;
        let (credentials, worker) =
            CredentialManager::new(config.credentials, sts, source, clock.clone(), credentials_metrics);
        let failures = events.clone();
        let worker = worker.on_failure(move |request, error| {
            if let Some(notice) = Notice::of_failure(&request.key.role, error) {
                failures.tell(&request.pod, notice);
            }
        });
        tasks.spawn_essential("credentials", worker.run(std::future::pending()));

        let sessions = Sessions::new(config.sessions);
        let observer = Observer::new(&mut registry, events.clone());
        let limits = Limits::new(config.server.limits);
        let callers = Callers::new(
            config.server.callers,
            table.clone(),
            verifier.clone(),
            node.clone(),
            clock.clone(),
            &mut registry,
        );
        let endpoint = Endpoint {
            config: config.server.endpoint,
            callers,
            credentials: credentials.clone(),
            sessions: sessions.clone(),
            limits: limits.clone(),
            node: node.clone(),
            observer: observer.clone(),
        };
        let listener_metrics = listener::Metrics::register(&mut registry);
        let server =
            Server::new(config.server.listener, endpoint, limits, node, listener_metrics, front.tasks());

        let synced = readiness.latch("pods synced");
        let bound = readiness.latch("endpoint bound");
        let follower = Follower { sessions, credentials, verifier, observer, events };
        let stream = pods::watch::stream(client.clone(), &config.kubernetes.node_name);
        tasks.spawn_essential("pod watch", async move {
            let on_changes = |changes| follower.follow_all(changes);
            pods::watch::run(stream, writer, audience, clock, watch_metrics, on_changes).await;
        });
        if let Some(firewall) = firewall {
            let (exempt, exempt_now) = watch::channel(None);
            front.tasks().spawn_essential(
                "metadata firewall",
                firewall.keep(exempt_now, readiness.condition("metadata firewall"), front.tasks().watch()),
            );
            tasks.spawn("exemptions", exemptions::follow(config.node.exemptions, table.clone(), exempt));
        }
        if let Some(loopback) = loopback {
            front.tasks().spawn_essential(
                "endpoint address",
                loopback.keep(readiness.condition("endpoint address"), front.tasks().watch()),
            );
        }
        tasks.spawn("first list", async move {
            let mut changes = table.changes();
            while !table.synced() && changes.changed().await.is_ok() {}
            tracing::info!(pods = table.len(), "the pods of the node are known");
            drop(synced);
        });
        if let Some(key) = config.node.startup_taint {
            let metrics = taint::Metrics::register(&mut registry);
            let taint =
                StartupTaint::new(client, config.kubernetes.node_name, key, readiness.clone(), metrics);
            tasks.spawn("startup taint", taint.keep_off());
        }
        for listener in listeners {
            front.tasks().spawn_essential("listener", server.clone().run(listener));
        }
        drop(bound);

        let (admin_address, metrics_address) = (admin.address(), admin.metrics_address());
        let state =
            admin::State { liveness, readiness: readiness.clone(), log_level, registry: Arc::new(registry) };
        let admin = admin.serve(state)?;
        Ok(Self {
            endpoint_addresses,
            admin_address,
            metrics_address,
            readiness,
            drain_deadline: config.drain_deadline,
            front,
            back,
            _admin: admin,
        })
    }

    /// Completes once the pods are known and every listener is bound.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// Completes if a part dies without which the daemon is of no use.
    pub async fn failed(&self) -> EssentialTaskEnded {
        tokio::select! {
            ended = self.front.essential_task_ended() => ended,
            ended = self.back.essential_task_ended() => ended,
        }
    }

    /// Takes no more requests, lets those under way end until the deadline, then ends everything.
    pub async fn drain(self) {
        let serving = self.readiness.condition("serving");
        serving.broken("the drain has begun");
        for left in self.front.finish(self.drain_deadline).await {
            tracing::warn!(task = left.name, count = left.count, "cut off at the end of the drain");
        }
        // The watch and the worker have no end of their own.
        self.back.finish(Duration::ZERO).await;
    }
}

/// Binds what can be bound. A family that the node does not have is left out, as long as something is left.
fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    let mut left_out = None;
    for &address in addresses {
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(source) => {
                let remedy = match source.kind() {
                    io::ErrorKind::AddrInUse => {
                        "another program has this address and port (the EKS Pod Identity Agent, if it is 169.254.170.23:80): remove \
                         one of the two, or choose another --listen"
                    }
                    io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
                    _ if loopback::is_ours_to_put(address.ip()) => {
                        "the address must be on an interface of the node: give the daemon CAP_NET_ADMIN and \
                         --manage-addresses=on, and it puts it on lo"
                    }
                    _ => "the address must be on an interface of the node: ip address add <address> dev lo",
                };
                let error = StartError::Listen { address, source, remedy };
                if !is_absent(&error) {
                    return Err(error);
                }
                tracing::warn!(%address, "leave out an address that the node does not have");
                left_out = Some(error);
            }
        }
    }
    match left_out {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn is_absent(error: &StartError) -> bool {
    let StartError::Listen { source, .. } = error else { return false };
    use nix::errno::Errno;
    let absent = [Errno::EADDRNOTAVAIL, Errno::EAFNOSUPPORT];
    source.raw_os_error().is_some_and(|raw| absent.contains(&Errno::from_raw(raw)))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted daemon must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The settings as the client of STS takes them. Beside an endpoint of its own the region only has to be something.
fn sts_config(config: StsConfig) -> sts::StsConfig {
    sts::StsConfig {
        region: config.region.unwrap_or_else(|| "us-east-1".to_owned()),
        endpoint: config.endpoint,
        fips: config.fips,
        dual_stack: config.dual_stack,
        connect_timeout: config.connect_timeout,
        attempt_timeout: config.attempt_timeout,
        proxy: sts::ProxySettings {
            https: config.proxy.https.map(|url| url.expose().to_string()),
            http: config.proxy.http.map(|url| url.expose().to_string()),
            no_proxy: config.proxy.no_proxy,
        },
    }
}
