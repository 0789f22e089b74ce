//! From what was typed to what is valid; each rule is here, with its remedy.

mod certificate;
mod form;
mod pods;

use std::{fmt, net::SocketAddr, time::Duration};

use rolecall_process::{
    admin,
    telemetry::{self, LogFilter},
};

use super::{Config, ConfigError, SourcesConfig};
use crate::{
    args::{EndpointArgs, IdentityArgs, KubernetesArgs, LogArgs, ProcessArgs, RunArgs, SourceArgs, Switch},
    cache::lookup,
    kubernetes::KubernetesConfig,
    server,
};

/// Longest a review may wait for a ServiceAccount: the API server gives up after 10 s unless told otherwise.
const LONGEST_GRACE: Duration = Duration::from_secs(8);

/// Longest that a drain may be asked to take.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// Longest path of a Unix socket (107 bytes), less the suffix that it carries until it is ready.
const MAX_SOCKET_PATH: usize = 96;

pub(super) fn config(args: RunArgs) -> Result<Config, Vec<ConfigError>> {
    let RunArgs { pods, sources, identities, kubernetes, certificate, endpoint, process, log, ignored } =
        args;
    let mut checked = Checked::default();
    for one in ignored {
        checked.warnings.push(format!("--{} has no effect: {}", one.flag, one.why));
    }
    let config = Config {
        policy: pods::check_policy(&mut checked, pods, &identities),
        sources: check_sources(&mut checked, &sources, identities),
        kubernetes: check_kubernetes(&mut checked, kubernetes),
        tls: certificate::check_tls(&mut checked, &certificate),
        certificate: certificate::check_certificate(&mut checked, certificate),
        missed_injection: endpoint.missed_injection == Switch::On,
        server: check_server(&endpoint),
        drain_delay: check_drain(&mut checked, "--drain-delay", process.drain_delay),
        drain_deadline: check_drain(&mut checked, "--drain-deadline", process.drain_deadline),
        admin: check_admin(&mut checked, &endpoint, process),
        log: check_log(log),
        warnings: Vec::new(),
    };
    if checked.mistakes.is_empty() {
        Ok(Config { warnings: checked.warnings, ..config })
    } else {
        Err(checked.mistakes)
    }
}

/// What was found so far.
#[derive(Default)]
struct Checked {
    mistakes: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Checked {
    fn that(&mut self, holds: bool, flag: &'static str, given: impl fmt::Debug, remedy: &str) {
        if !holds {
            self.mistake(flag, format!("{given:?}"), remedy);
        }
    }

    fn mistake(&mut self, flag: &'static str, given: String, remedy: impl Into<String>) {
        self.mistakes.push(ConfigError { flag, given, remedy: remedy.into() });
    }

    fn name(&mut self, flag: &'static str, name: &str) {
        self.that(
            form::is_dns_name(name),
            flag,
            name,
            "a name has 1 to 253 lower-case letters, digits, dashes and dots",
        );
    }

    fn label(&mut self, flag: &'static str, name: &str) {
        self.that(
            form::is_dns_label(name),
            flag,
            name,
            "such a name has 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
        );
    }
}

fn check_sources(checked: &mut Checked, args: &SourceArgs, identities: IdentityArgs) -> SourcesConfig {
    let grace = args.service_account_lookup_grace_period;
    checked.that(
        grace <= LONGEST_GRACE,
        "--service-account-lookup-grace-period",
        grace,
        "the API server waits 10 s at most for a review; choose up to 8s, such as 1s",
    );
    SourcesConfig {
        service_accounts: lookup::Config { grace },
        config_map: args.watch_config_map,
        identities: identities.watch_container_credentials_config.filter(|path| !path.as_os_str().is_empty()),
    }
}

fn check_kubernetes(checked: &mut Checked, args: KubernetesArgs) -> KubernetesConfig {
    let namespace = filled(args.namespace);
    if let Some(namespace) = &namespace {
        checked.label("--namespace", namespace);
    }
    let api = filled(args.kube_api).and_then(|url| match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme().is_some() && uri.authority().is_some() => Some(uri),
        _ => {
            checked.mistake("--kube-api", format!("{url:?}"), "give a URL, such as https://10.0.0.1:6443");
            None
        }
    });
    KubernetesConfig {
        kubeconfig: args.kubeconfig.filter(|path| !path.as_os_str().is_empty()),
        api,
        namespace,
    }
}

fn check_server(args: &EndpointArgs) -> server::Config {
    server::Config {
        listen: with_port(args.listen, args.port),
        max_connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
    }
}

fn check_drain(checked: &mut Checked, flag: &'static str, time: Duration) -> Duration {
    checked.that(
        time <= LONGEST_DRAIN,
        flag,
        time,
        "keep --drain-delay and --drain-deadline together below the pod's terminationGracePeriodSeconds",
    );
    time
}

fn check_admin(checked: &mut Checked, endpoint: &EndpointArgs, args: ProcessArgs) -> admin::Config {
    let listen = args.admin_listen.address();
    let metrics_listen = args.metrics_listen.address().map(|address| with_port(address, args.metrics_port));
    if let Some(address) = listen {
        checked.that(
            address.ip().is_loopback(),
            "--admin-listen",
            address,
            "whoever reaches it learns of the shim's health; choose a loopback address, or off",
        );
    }
    let served = with_port(endpoint.listen, endpoint.port);
    let mut taken = vec![("--listen", served)];
    for (flag, address) in [("--admin-listen", listen), ("--metrics-listen", metrics_listen)] {
        let Some(address) = address else { continue };
        if let Some((other, held)) = taken.iter().find(|(_, held)| clash(*held, address)) {
            let remedy = format!("{other} {held} has this port; give each its own");
            checked.mistake(flag, address.to_string(), remedy);
        }
        taken.push((flag, address));
    }
    let socket = args.admin_socket.admin_socket;
    checked.that(
        socket.is_absolute() && socket.as_os_str().len() <= MAX_SOCKET_PATH,
        "--admin-socket",
        &socket,
        &format!("give an absolute path of at most {MAX_SOCKET_PATH} bytes"),
    );
    admin::Config { listen, socket, metrics_listen }
}

fn check_log(args: LogArgs) -> telemetry::Config {
    let by_verbosity = if args.verbosity.is_some_and(|verbosity| 4 <= verbosity) { "debug" } else { "info" };
    let filter =
        args.log_level.unwrap_or_else(|| by_verbosity.parse::<LogFilter>().expect("both words are levels"));
    telemetry::Config { format: args.log_format, filter }
}

fn with_port(address: SocketAddr, port: Option<u16>) -> SocketAddr {
    port.map_or(address, |port| SocketAddr::new(address.ip(), port))
}

/// Whether the two cannot be listened on at once. A system that is asked for any port gives two.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}

/// An empty optional value counts as absent: a chart that sets every variable leaves some empty.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn error_text(error: &dyn std::error::Error) -> String {
    telemetry::chain(error).to_string()
}
