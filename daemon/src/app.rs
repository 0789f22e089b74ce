//! The wiring: binds every socket, then starts the parts, and ends them in order. Parts meet here alone.

mod follower;
mod sockets;
mod takeover;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch, time::Instant};

use self::{
    follower::{Follower, good_here},
    sockets::Wanted,
    takeover::Takeover,
};

use crate::{
    config::{Config, StsConfig},
    credentials::{self, CredentialManager},
    events::{self, Events, Notice, Publisher},
    exemptions,
    handover::{self, Giver, SteppedDown},
    kubernetes::{self, ClientError},
    node::{
        FollowError, Netlink, NodeAddresses,
        firewall::{self, Firewall},
        loopback,
        taint::{self, StartupTaint},
    },
    pods::{self, PodTable},
    server::{
        caller::Callers,
        endpoint::{Endpoint, Limits},
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
    program::Error,
    readiness::{Condition, Readiness},
    signal::Signals,
    telemetry::{Log, chain},
};

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error("bind --listen {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Sts(#[from] StsConfigError),
    #[error("start the thread that talks with the kernel")]
    Netlink(#[source] io::Error),
    #[error("follow the node's addresses")]
    Node(#[from] FollowError),
    #[error("put the addresses of --listen on the node (--manage-addresses=off turns it off)")]
    Loopback(#[from] loopback::Error),
    #[error("--metadata-firewall")]
    Firewall(#[from] firewall::Error),
    #[error("bind --handover-socket {}", path.display())]
    Handover { path: PathBuf, source: io::Error },
    #[error("listen")]
    Listeners(#[source] io::Error),
    /// A part ended while another daemon served that was to hand over.
    #[error(transparent)]
    EssentialTask(#[from] EssentialTaskEnded),
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
    /// Whether it serves its node, or has handed over.
    serving: Arc<Condition>,
    /// What is done by the one daemon that serves the node; it ends first, at a hand-over too.
    duty: drain::Trigger,
    /// What answers requests.
    front: drain::Trigger,
    /// What the next daemon is told; it ends once that waits for nothing here, with no request left that asks for more.
    passing_on: drain::Trigger,
    /// What all of that needs; it ends last.
    back: drain::Trigger,
    _admin: admin::Admin,
    _netlink: Netlink,
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// When it cannot start, an essential part dies, or a second signal cuts the drain short.
pub async fn run(config: Config, log: Log) -> Result<(), Error> {
    let mut signals = Signals::catch().map_err(Error::boot)?;
    let netlink = Netlink::start().map_err(StartError::Netlink)?;
    let (node, follow) = NodeAddresses::follow(&netlink).await.map_err(StartError::from)?;
    // It may have to wait for the daemon before it to hand over.
    let app = tokio::select! {
        started = App::start(config, netlink, node, follow, log) => started?,
        name = signals.next() => {
            tracing::info!(signal = name, "ended before it served");
            return Ok(());
        }
    };
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

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::EssentialTask(ended) => Self::EssentialTask(ended),
            other => Self::Boot(other.into()),
        }
    }
}

impl App {
    /// Binds every socket of `config`, or takes it over from the daemon that serves, and starts every part. `node`
    /// tells the node's own addresses as long as `follow` runs.
    ///
    /// It is done once this daemon serves: while another one does that is to hand over, pods are learned first.
    ///
    /// # Errors
    /// When a socket cannot be bound, a client cannot be made of the settings, or a part dies meanwhile. That the API
    /// server or STS is away is no error.
    pub async fn start(
        config: Config,
        netlink: Netlink,
        node: NodeAddresses,
        follow: impl Future<Output = FollowError> + Send + 'static,
        log: Log,
    ) -> Result<Self, StartError> {
        let mut registry = metrics::registry();
        log.register(&mut registry);
        let readiness = Readiness::default();
        let addresses = config.addresses_to_put();
        let origin = takeover::origin(&config);
        let mark = SteppedDown::beside(&config.admin.socket);
        let bound = admin::Bound::bind_socket(config.admin.socket)?;
        // Pods are kept from the node's own credentials before anything else, whatever fails afterwards.
        let keep_exempt = !config.node.exemptions.is_empty();
        let firewall_metrics = firewall::Metrics::register(&mut registry);
        let firewall = Firewall::start(config.node.firewall, keep_exempt, firewall_metrics).await?;
        let wanted = Wanted {
            endpoint: config.server.listen,
            admin: config.admin.listen,
            metrics: config.admin.metrics_listen.map(on_this_machine),
        };
        let loopback_metrics = loopback::Metrics::register(&mut registry);
        let handover_metrics = handover::Metrics::register(&mut registry);
        let takeover = Takeover {
            wanted,
            socket: config.handover_socket.clone(),
            origin: origin.clone(),
            mark: mark.clone(),
            metrics: handover_metrics.clone(),
        };
        let clock = Clock::system();
        let liveness = Liveness::default();
        let (duty, on_duty) = drain::new();
        let (front, _) = drain::new();
        let (passing_on, to_end) = drain::new();
        let (back, back_watch) = drain::new();
        let tasks = back.tasks();
        tasks.spawn_essential("heartbeat", liveness.heart("data plane").keep_beating(back_watch));
        tasks.spawn_essential("node addresses", async move {
            let error = follow.await;
            tracing::error!(error = %chain(&error), "cannot follow the node's addresses any more");
        });

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
            let keys = verifier.clone();
            tasks.spawn("events", async move {
                // They name the cluster's issuer, which is learned with its keys.
                keys.keys_asked_for().await;
                publisher.run().await;
            });
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
            clock: clock.clone(),
        };
        let listener_metrics = listener::Metrics::register(&mut registry);
        let (handed_over, has_handed_over) = drain::new();
        let server = Server::new(
            config.server.listener,
            endpoint,
            limits.clone(),
            node,
            listener_metrics,
            front.tasks(),
            listener::Terms { on_duty: on_duty.clone(), has_handed_over },
        );

        let synced = readiness.latch("pods synced");
        let bound_latch = readiness.latch("endpoint bound");
        let good_here = good_here(sessions.clone(), table.clone());
        let follower = Follower {
            table: table.clone(),
            sessions,
            credentials: credentials.clone(),
            verifier: verifier.clone(),
            observer,
            limits,
            events,
        };
        let stream = pods::watch::stream(client.clone(), &config.kubernetes.node_name);
        tasks.spawn_essential("pod watch", async move {
            let on_changes = |changes| follower.follow_all(changes);
            pods::watch::run(stream, writer, audience, clock, watch_metrics, on_changes).await;
        });
        tasks.spawn("first list", {
            let table = table.clone();
            async move {
                takeover::synced(&table).await;
                tracing::info!(pods = table.len(), "the pods of the node are known");
                drop(synced);
            }
        });
        let taint = config.node.startup_taint.map(|key| {
            let metrics = taint::Metrics::register(&mut registry);
            StartupTaint::new(client, config.kubernetes.node_name, key, readiness.clone(), metrics)
        });

        let state = admin::State {
            liveness,
            readiness: readiness.clone(),
            log_level: log.level,
            registry: Arc::new(registry),
        };
        let admin = bound.serve(state)?;
        let serving = Arc::new(readiness.condition("serving"));
        // The address and who listens there come together: while there is none, a connection is tried again.
        takeover.pods_if_alone(&table).await;
        let loopback = match addresses.is_empty() {
            true => None,
            false => Some(loopback::put(addresses, &netlink, loopback_metrics).await?),
        };
        let (sockets, estate) = match takeover.sockets_if_alone().await? {
            Some(sockets) => (sockets, None),
            None => tokio::select! {
                taken = takeover.run(&table, &verifier, &serving) => taken?,
                ended = back.essential_task_ended() => return Err(ended.into()),
            },
        };
        let handover = match config.handover_socket.as_deref() {
            None => None,
            Some(path) => takeover::listen(path, estate.is_some())?,
        };
        let listeners = sockets.try_clone().map_err(StartError::Listeners)?;

        let link = estate.map(|estate| {
            credentials.adopt(estate.inherited, estate.predecessor, good_here.clone());
            estate.link.run(credentials.clone(), good_here, tasks.clone())
        });
        tasks.spawn_essential("credentials", worker.run(std::future::pending()));
        if let Some(firewall) = firewall {
            let (exempt, exempt_now) = watch::channel(None);
            duty.tasks().spawn_essential(
                "metadata firewall",
                firewall.keep(exempt_now, readiness.condition("metadata firewall"), on_duty.clone()),
            );
            tasks.spawn("exemptions", exemptions::follow(config.node.exemptions, table, exempt));
        }
        if let Some(loopback) = loopback {
            duty.tasks().spawn_essential(
                "endpoint address",
                loopback.keep(readiness.condition("endpoint address"), on_duty.clone()),
            );
        }
        let endpoint_addresses: Vec<SocketAddr> =
            sockets.endpoint.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        for listener in sockets.endpoint {
            let listener = TcpListener::from_std(listener).map_err(StartError::Listeners)?;
            duty.tasks().spawn_essential("listener", server.clone().run(listener));
        }
        let (admin_address, metrics_address) = (sockets.doors.address(), sockets.doors.metrics_address());
        admin.open(sockets.doors);
        drop(bound_latch);
        if let Some(taint) = taint {
            tasks.spawn("startup taint", taint.keep_off());
        }
        if let Some(link) = link {
            tasks.spawn("the daemon before", link);
        }

        if let Some((listener, file)) = handover {
            if let Err(error) = mark.clear() {
                tracing::warn!(%error, "take away the mark of a former hand-over");
            }
            let giver = Giver { credentials, listeners, origin, mark, metrics: handover_metrics };
            let (serving, close_tcp) = (serving.clone(), admin.tcp_closer());
            let (duty, handed_over) = (duty.beginner(), handed_over.beginner());
            let on_handed_over = move || {
                handed_over.begin();
                duty.begin();
                close_tcp();
                serving.broken("handed over to the next daemon; it waits to be stopped");
            };
            let handing_over = giver.run(listener, file, on_duty, to_end, on_handed_over);
            passing_on.tasks().spawn("hand-over", handing_over);
        }
        Ok(Self {
            endpoint_addresses,
            admin_address,
            metrics_address,
            readiness,
            drain_deadline: config.drain_deadline,
            serving,
            duty,
            front,
            passing_on,
            back,
            _admin: admin,
            _netlink: netlink,
        })
    }

    /// Completes once the pods are known and every listener is bound.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// Completes if a part dies without which the daemon is of no use.
    pub async fn failed(&self) -> EssentialTaskEnded {
        tokio::select! {
            ended = self.duty.essential_task_ended() => ended,
            ended = self.front.essential_task_ended() => ended,
            ended = self.back.essential_task_ended() => ended,
        }
    }

    /// Takes no more requests, lets those under way end until the deadline, then ends everything.
    pub async fn drain(self) {
        self.serving.broken("the drain has begun");
        let until = Instant::now() + self.drain_deadline;
        // Nothing accepts any more before the connections are told to end.
        let mut left = self.duty.finish(self.drain_deadline).await;
        left.extend(self.front.finish(until.saturating_duration_since(Instant::now())).await);
        // With no request left nothing more is asked of the next daemon, but it may wait for exchanges of this one.
        left.extend(self.passing_on.finish(until.saturating_duration_since(Instant::now())).await);
        for left in left {
            tracing::warn!(task = left.name, count = left.count, "cut off at the end of the drain");
        }
        // The watch and the worker have no end of their own.
        self.back.finish(Duration::ZERO).await;
    }
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
