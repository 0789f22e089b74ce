//! From what was typed to what is valid; each rule is here, with its remedy.

mod certificate;
mod form;
mod pods;

use std::{net::SocketAddr, time::Duration};

use rolecall_process::{
    admin,
    setting::{Checked, Mistake},
    telemetry::{self, LogFilter},
};

use super::{Config, SourcesConfig};
use crate::{
    args::{EndpointArgs, IdentityArgs, KubernetesArgs, LogArgs, ProcessArgs, RunArgs, SourceArgs, Switch},
    cache::lookup,
    kubernetes::KubernetesConfig,
    server,
};

/// Longest a review may wait for a ServiceAccount: the API server gives up after 10 s unless told otherwise.
const LONGEST_GRACE: Duration = Duration::from_secs(8);

const DRAIN_REMEDY: &str = "choose up to 1h; keep --drain-delay and --drain-deadline together below the pod's terminationGracePeriodSeconds";

pub(super) fn config(args: RunArgs) -> Result<Config, Vec<Mistake>> {
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
        webhook_configuration: certificate::check_webhook_configuration(&mut checked, &certificate),
        tls: certificate::check_tls(&mut checked, &certificate),
        certificate: certificate::check_certificate(&mut checked, certificate),
        missed_injection: endpoint.missed_injection == Switch::On,
        server: check_server(&endpoint),
        drain_delay: checked.drain("--drain-delay", process.drain_delay, DRAIN_REMEDY),
        drain_deadline: checked.drain("--drain-deadline", process.drain_deadline, DRAIN_REMEDY),
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
        form::check_label(checked, "--namespace", namespace);
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

fn check_admin(checked: &mut Checked, endpoint: &EndpointArgs, args: ProcessArgs) -> admin::Config {
    let served = with_port(endpoint.listen, endpoint.port);
    let metrics = args.metrics_listen.address().map(|address| with_port(address, args.metrics_port));
    let doors = [("--admin-listen", args.admin_listen.address()), ("--metrics-listen", metrics)];
    let doors = doors.into_iter().filter_map(|(flag, address)| Some((flag, address?)));
    checked.listeners([("--listen", served)].into_iter().chain(doors));
    checked.admin(args.admin_listen, args.admin_socket.admin_socket, metrics)
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

/// An empty optional value counts as absent: a chart that sets every variable leaves some empty.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn error_text(error: &dyn std::error::Error) -> String {
    telemetry::chain(error).to_string()
}
