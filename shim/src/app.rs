//! The wiring: binds every socket, then starts the parts, and ends them in order. Parts meet here alone.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kube::Client;
use prometheus_client::registry::Registry;
use rolecall_process::{
    address::{on_this_machine, with_remedy},
    admin,
    drain::{self, EssentialTaskEnded},
    liveness::Liveness,
    metrics,
    program::Error,
    readiness::Readiness,
    signal::Signals,
    telemetry::Log,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    time::sleep,
};

use crate::{
    cache::{self, Known, latest::Latest, lookup::Lookup, service_accounts::ServiceAccounts},
    certificate::{
        Names, SelfManagedConfig, Serving, files,
        keeper::{self, Keeper},
        mint::Facts,
    },
    config::{CertificateConfig, Config, SourcesConfig},
    kubernetes::{self, ClientError},
    missed::{self, Missed},
    server::{bodies::Bodies, endpoint::Endpoint, listener::Server, metrics::Metrics, tls},
};
use rolecall_process::time::Clock;

/// Connections that the kernel keeps for a listener that is busy.
const BACKLOG: u32 = 1024;

/// How long the parts behind the webhook get to end, once no call needs them.
const BACK_DEADLINE: Duration = Duration::from_secs(1);

/// Why the shim cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error("bind --listen {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A running shim.
pub struct App {
    /// Where the API server calls.
    pub address: SocketAddr,
    /// Where health is told over TCP.
    pub admin_address: Option<SocketAddr>,
    /// Where the metrics are.
    pub metrics_address: Option<SocketAddr>,
    readiness: Readiness,
    serving: Serving,
    drain_delay: Duration,
    drain_deadline: Duration,
    /// Says that this replica is about to go.
    leaving: drain::Trigger,
    /// What takes calls; it drains first.
    front: drain::Trigger,
    /// What calls need to be answered; it ends when they are.
    back: drain::Trigger,
    _admin: admin::Admin,
}

/// Runs the shim until a signal ends it.
///
/// # Errors
/// When it cannot start, an essential part dies, or a second signal cuts the drain short.
pub async fn run(config: Config, log: Log) -> Result<(), Error> {
    let mut signals = Signals::catch().map_err(Error::boot)?;
    let app = App::start(config, log).await.map_err(Error::boot)?;
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
    /// Binds every socket of `config`, then starts every part.
    ///
    /// # Errors
    /// When a socket cannot be bound, or a client cannot be made of the settings. That the API server is away is no
    /// error.
    pub async fn start(config: Config, log: Log) -> Result<Self, StartError> {
        let admin_config = admin::Config {
            metrics_listen: config.admin.metrics_listen.map(on_this_machine),
            ..config.admin
        };
        let admin = admin::Bound::bind(admin_config)?;
        let listener = bind(on_this_machine(config.server.listen))?;
        let address = listener.local_addr().unwrap_or(config.server.listen);

        let clock = Clock::system();
        let mut registry = metrics::registry();
        log.register(&mut registry);
        let readiness = Readiness::default();
        let liveness = Liveness::default();
        let (leaving, leaving_watch) = drain::new();
        let (front, _) = drain::new();
        let (back, back_watch) = drain::new();
        let tasks = back.tasks();
        tasks.spawn_essential("heartbeat", liveness.heart("webhook").keep_beating(back_watch));
        let bound = readiness.latch("endpoint bound");

        let (client, namespace) = kubernetes::client(config.kubernetes).await?;
        let provider = tls::provider(&config.tls);
        let serving = Serving::new(provider.clone(), &mut registry);
        let parts = Parts { readiness: &readiness, tasks: &tasks, client: &client, namespace: &namespace };
        let webhook_configuration = config.webhook_configuration;
        parts.keep_certificate(
            config.certificate,
            webhook_configuration.clone(),
            serving.clone(),
            clock.clone(),
            &mut registry,
        );
        let prefix = config.policy.compatibility_prefix.clone();
        let known = parts.follow_sources(config.sources, prefix, &mut registry);
        let served = serving.clone();
        let tls = tls::server_config(&config.tls, provider, serving).map_err(StartError::Tls)?;

        let (start, started) = watch::channel(false);
        if config.missed_injection {
            let missed_metrics = missed::Metrics::register(&mut registry);
            let missed = Missed::new(
                known.clone(),
                config.policy.clone(),
                webhook_configuration,
                client.clone(),
                clock,
                missed_metrics,
            );
            let mut started = started.clone();
            tasks.spawn("missed injections", async move {
                // Before every ServiceAccount is known, no pod would look as if it lacked anything.
                if started.wait_for(|started| *started).await.is_ok() {
                    missed.run(missed::stream(client)).await;
                }
            });
        }
        let endpoint = Endpoint {
            policy: config.policy,
            known,
            readiness: readiness.clone(),
            started,
            metrics: Metrics::register(&mut registry),
            bodies: Bodies::default(),
        };
        let server = Server::new(endpoint, tls, config.server.max_connections, front.tasks(), leaving_watch);
        front.tasks().spawn_essential("listener", server.run(listener));
        drop(bound);
        let all = readiness.clone();
        tasks.spawn("start", async move {
            all.ready().await;
            start.send_replace(true);
            tracing::info!(%address, "ready for reviews");
            // Kept, so that whoever waits is told.
            start.closed().await;
        });

        let (admin_address, metrics_address) = (admin.address(), admin.metrics_address());
        let state = admin::State {
            liveness,
            readiness: readiness.clone(),
            log_level: log.level,
            registry: Arc::new(registry),
        };
        let admin = admin.serve(state)?;
        Ok(Self {
            address,
            admin_address,
            metrics_address,
            readiness,
            serving: served,
            drain_delay: config.drain_delay,
            drain_deadline: config.drain_deadline,
            leaving,
            front,
            back,
            _admin: admin,
        })
    }

    /// Completes once everything is known and the certificate is trusted.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// What the served certificate says; `None` while there is none.
    #[must_use]
    pub fn certificate(&self) -> Option<Facts> {
        self.serving.facts()
    }

    /// Completes if a part dies without which the shim is of no use.
    pub async fn failed(&self) -> EssentialTaskEnded {
        tokio::select! {
            ended = self.front.essential_task_ended() => ended,
            ended = self.back.essential_task_ended() => ended,
        }
    }

    /// Says that it is not ready any more, goes on taking calls until the cluster has learned that, lets those under
    /// way end until the deadline, then ends everything.
    pub async fn drain(self) {
        let serving = self.readiness.condition("serving");
        serving.broken("the drain has begun");
        self.leaving.begin();
        sleep(self.drain_delay).await;
        for left in self.front.finish(self.drain_deadline).await {
            tracing::warn!(task = left.name, count = left.count, "cut off at the end of the drain");
        }
        // The watches have no end of their own.
        self.back.finish(BACK_DEADLINE).await;
    }
}

/// What the parts behind the webhook are started with.
struct Parts<'a> {
    readiness: &'a Readiness,
    tasks: &'a drain::Tasks,
    client: &'a Client,
    namespace: &'a str,
}

impl Parts<'_> {
    fn keep_certificate(
        &self,
        config: CertificateConfig,
        webhook_configuration: String,
        serving: Serving,
        clock: Clock,
        registry: &mut Registry,
    ) {
        let loaded = self.readiness.latch("certificate loaded");
        let drain = self.tasks.watch();
        match config {
            CertificateConfig::Files(config) => {
                let errors = files::errors(registry);
                self.tasks
                    .spawn_essential("certificate", files::follow(config, serving, errors, loaded, drain));
            }
            CertificateConfig::SelfManaged { secret, service, other_names, lifetimes } => {
                let names = Names::of_service(self.namespace, &service, &other_names);
                let namespace = self.namespace.to_owned();
                let config =
                    SelfManagedConfig { namespace, secret, service, webhook_configuration, names, lifetimes };
                let latches = (loaded, self.readiness.latch("certificate trusted by caBundle"));
                let metrics = keeper::Metrics::register(registry);
                let keeper = Keeper::new(self.client.clone(), config, serving, clock, metrics, latches);
                self.tasks.spawn_essential("certificate", keeper.run(drain));
            }
        }
    }

    fn follow_sources(
        &self,
        config: SourcesConfig,
        prefix: Option<String>,
        registry: &mut Registry,
    ) -> Known {
        let (table, writer) = ServiceAccounts::new(prefix.clone());
        let metrics = cache::service_accounts::Metrics::register(registry);
        let stream = cache::service_accounts::stream(self.client.clone());
        let synced = self.readiness.latch("service accounts synced");
        self.tasks.spawn_essential(
            "service accounts",
            cache::service_accounts::run(stream, writer, metrics, synced),
        );

        let config_map = Latest::default();
        if config.config_map {
            let metrics = cache::bindings::Metrics::register(registry);
            let stream = cache::bindings::stream(self.client.clone(), self.namespace);
            let known = self.readiness.latch("config map read");
            self.tasks.spawn_essential(
                "config map",
                cache::bindings::run(stream, config_map.clone(), metrics, known),
            );
        }
        let identities = Latest::default();
        if let Some(path) = config.identities {
            let metrics = cache::identities::Metrics::register(registry);
            let known = self.readiness.latch("identities read");
            self.tasks.spawn_essential(
                "identities",
                cache::identities::run(path, identities.clone(), metrics, known, self.tasks.watch()),
            );
        }
        let metrics = cache::lookup::Metrics::register(registry);
        let service_accounts = Lookup::new(
            config.service_accounts,
            table,
            self.client.clone(),
            prefix,
            self.tasks.clone(),
            metrics,
        );
        Known { service_accounts, config_map, identities }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted shim must not wait for the connections of its predecessor to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|cause| {
        let remedy = match cause.kind() {
            io::ErrorKind::AddrInUse => "Another program listens there: choose another --listen",
            io::ErrorKind::PermissionDenied => {
                "Ports below 1024 need CAP_NET_BIND_SERVICE here: choose another --listen, such as [::]:8443, and \
                 lead the Service to it"
            }
            _ => "The address must be one of this pod: [::]:8443 stands for all",
        };
        StartError::Listen { address, source: with_remedy(cause, remedy) }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rolecall_process::telemetry::chain;

    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_told_once_with_its_cause_and_the_remedy() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = Error::boot(bind(address).unwrap_err());
        let expect = format!(
            "bind --listen {address}: Address already in use (os error 98). Another program listens there: choose \
             another --listen"
        );
        assert_eq!(chain(&error).to_string(), expect);
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let mut registry = metrics::registry();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let _ = Serving::new(provider, &mut registry);
        let _ = (Metrics::register(&mut registry), keeper::Metrics::register(&mut registry));
        let _ = missed::Metrics::register(&mut registry);
        let _ = cache::service_accounts::Metrics::register(&mut registry);
        let _ = cache::bindings::Metrics::register(&mut registry);
        let _ = cache::identities::Metrics::register(&mut registry);
        let _ = cache::lookup::Metrics::register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        // A counter's samples have an ending that its family has not.
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = names.filter_map(|line| line.split_once(' ')).map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        });
        let exist: BTreeSet<String> = names.filter(|name| name.starts_with("rolecall_shim_")).collect();
        let docs = include_str!("../../docs/shim.md");
        let (_, table) = docs.split_once("\n## Metrics\n").unwrap();
        let quoted = table.split('`').skip(1).step_by(2);
        let documented: BTreeSet<String> = quoted
            .filter(|text| text.starts_with("rolecall_shim_"))
            .map(|text| text.split('{').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(exist, documented);
        for outcome in crate::mutate::Outcome::ALL {
            assert!(table.contains(&format!("`{}`", outcome.as_str())), "{outcome:?}");
        }
    }
}
