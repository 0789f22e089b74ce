//! From what was typed to what is valid; each rule is here, with its remedy.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use rolecall_contract::{annotation, endpoint};
use rolecall_process::{
    admin,
    telemetry::{self, LogFilter},
};

use super::{CertificateConfig, Config, ConfigError, SourcesConfig};
use crate::{
    args::{
        CertificateArgs, CertificateMode, EndpointArgs, IdentityArgs, KubernetesArgs, LogArgs, PodArgs,
        ProcessArgs, RunArgs, SourceArgs, Switch, TlsVersion,
    },
    cache::lookup,
    certificate::{FilesConfig, Lifetimes},
    kubernetes::KubernetesConfig,
    policy::{ContainerCredentials, Policy},
    server,
    session_name::SessionName,
};

/// The API server takes no shorter-lived token.
///
/// <https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.33/#serviceaccounttokenprojection-v1-core>
const SHORTEST_TOKEN: u64 = 600;

/// Longest a review may wait for a ServiceAccount: the API server gives up after 10 s unless told otherwise.
const LONGEST_GRACE: Duration = Duration::from_secs(8);

/// Longest that a drain may be asked to take.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// Longest path of a Unix socket (107 bytes), less the suffix that it carries until it is ready.
const MAX_SOCKET_PATH: usize = 96;

const CERTIFICATE_FILE: &str = "/etc/webhook/certs/tls.crt";
const KEY_FILE: &str = "/etc/webhook/certs/tls.key";

pub(super) fn config(args: RunArgs) -> Result<Config, Vec<ConfigError>> {
    let RunArgs { pods, sources, identities, kubernetes, certificate, endpoint, process, log, ignored } =
        args;
    let mut checked = Checked::default();
    for one in ignored {
        checked.warnings.push(format!("--{} has no effect: {}", one.flag, one.why));
    }
    let config = Config {
        policy: check_policy(&mut checked, pods, &identities),
        sources: check_sources(&mut checked, &sources, identities),
        kubernetes: check_kubernetes(&mut checked, kubernetes),
        tls: check_tls(&mut checked, &certificate),
        certificate: check_certificate(&mut checked, certificate),
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
            is_dns_name(name),
            flag,
            name,
            "a name has 1 to 253 lower-case letters, digits, dashes and dots",
        );
    }
}

fn check_policy(checked: &mut Checked, args: PodArgs, identities: &IdentityArgs) -> Policy {
    let base_role_arn = filled(args.base_role_arn).and_then(|text| match text.parse() {
        Ok(base) => Some(base),
        Err(error) => {
            checked.mistake("--base-role-arn", format!("{text:?}"), error_text(&error));
            None
        }
    });
    if args.compose_role_arn && base_role_arn.is_none() {
        checked.warnings.push(
            "--compose-role-arn: the node's metadata is not asked here, so bare role names are not completed; \
             give the account and the partition by --base-role-arn, such as arn:aws:iam::111122223333:role/"
                .to_owned(),
        );
    }
    let prefix = Some(args.compatibility_prefix).filter(|prefix| !prefix.is_empty());
    if let Some(prefix) = &prefix {
        checked.that(
            is_dns_name(prefix),
            "--compatibility-prefix",
            prefix,
            "an annotation's prefix is a DNS name, such as eks.amazonaws.com; empty for none",
        );
        checked.that(
            prefix != annotation::PREFIX,
            "--compatibility-prefix",
            prefix,
            "this prefix counts in any case; leave the flag empty for no other",
        );
    }
    let audience = |checked: &mut Checked, flag, audience: &str, example: &str| {
        let is_word =
            !audience.is_empty() && !audience.contains(|c: char| c.is_whitespace() || c.is_control());
        checked.that(is_word, flag, audience, &format!("give the audience of the tokens, usually {example}"));
    };
    audience(checked, "--audience", &args.audience, "sts.amazonaws.com");
    let directory = |checked: &mut Checked, flag, path: &str| {
        checked.that(
            path.starts_with('/') && !path.contains(':'),
            flag,
            path,
            "give an absolute path in the containers, without a colon",
        );
    };
    directory(checked, "--token-mount-path", &args.token_mount_path);
    if args.token_expiration < SHORTEST_TOKEN {
        checked.warnings.push(format!(
            "--token-expiration {}: the API server gives no token for less than {SHORTEST_TOKEN} s; \
             {SHORTEST_TOKEN} s are asked for",
            args.token_expiration
        ));
    }
    checked.that(
        args.endpoint_address == endpoint::ADDRESS_V4 || args.endpoint_address == endpoint::ADDRESS_V6,
        "--endpoint-address",
        args.endpoint_address,
        "SDKs accept 169.254.170.23 and fd00:ec2::23; give one of these",
    );
    let session_name = filled(args.session_name).and_then(|text| match text.parse::<SessionName>() {
        Ok(template) => Some(template),
        Err(error) => {
            checked.mistake("--session-name", format!("{text:?}"), error_text(&error));
            None
        }
    });
    if args.allow_pod_role_annotation {
        checked.warnings.push(
            "--allow-pod-role-annotation: whoever may create pods in a namespace chooses among the roles that \
             trust its ServiceAccounts"
                .to_owned(),
        );
    }
    audience(
        checked,
        "--container-credentials-audience",
        &identities.container_credentials_audience,
        "pods.eks.amazonaws.com",
    );
    directory(
        checked,
        "--container-credentials-token-mount-path",
        &identities.container_credentials_token_mount_path,
    );
    Policy {
        default_mode: args.default_mode,
        compatibility_prefix: prefix,
        audience: args.audience,
        token_mount_path: args.token_mount_path,
        token_expiration: args.token_expiration.max(SHORTEST_TOKEN),
        region: filled(args.region),
        sts_regional_endpoints: args.sts_regional_endpoint,
        base_role_arn,
        pod_role_annotation_allowed: args.allow_pod_role_annotation,
        take_over_irsa: args.take_over_irsa,
        endpoint_address: args.endpoint_address,
        node_selectors_without_daemon: args
            .no_daemon_node_selector
            .into_iter()
            .map(|selector| (selector.key, selector.value))
            .collect(),
        session_name,
        container_credentials: ContainerCredentials {
            audience: identities.container_credentials_audience.clone(),
            mount_path: identities.container_credentials_token_mount_path.clone(),
            volume_name: identities.container_credentials_token_volume_name.clone(),
            token_path: identities.container_credentials_token_path.clone(),
            full_uri: identities.container_credentials_full_uri.clone(),
        },
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
        checked.name("--namespace", namespace);
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

fn check_tls(checked: &mut Checked, args: &CertificateArgs) -> server::tls::Config {
    if args.tls_min_version == TlsVersion::Insecure {
        checked.warnings.push(
            "--tls-min-version: TLS 1.0 and 1.1 are insecure and not spoken here; the lowest is 1.2"
                .to_owned(),
        );
    }
    let asked: Vec<String> = args.tls_cipher_suites.iter().filter(|name| !name.is_empty()).cloned().collect();
    let (known, unknown): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|name| server::tls::is_known_suite(name));
    if !unknown.is_empty() {
        checked.warnings.push(format!(
            "--tls-cipher-suites: left out, because insecure or not known here: {}",
            unknown.join(", ")
        ));
    }
    server::tls::Config { only_v13: args.tls_min_version == TlsVersion::V13, cipher_suites: known }
}

fn check_certificate(checked: &mut Checked, args: CertificateArgs) -> CertificateConfig {
    let in_files = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let (certificate, key) = (in_files(&args.tls_cert), in_files(&args.tls_key));
    let has_files = certificate.is_some() || key.is_some();
    let by_in_cluster = args.in_cluster.map(|in_cluster| match in_cluster {
        true => CertificateMode::SelfManaged,
        false => CertificateMode::Files,
    });
    let mode = match (args.certificate, by_in_cluster) {
        (Some(mode), Some(other)) if mode != other => {
            checked.mistake(
                "--in-cluster",
                format!("{:?}", args.in_cluster.unwrap_or_default()),
                "it contradicts --certificate; give one of the two",
            );
            mode
        }
        (Some(mode), _) => mode,
        (None, Some(CertificateMode::SelfManaged)) if has_files => CertificateMode::Files,
        (None, Some(mode)) => mode,
        (None, None) if has_files => CertificateMode::Files,
        (None, None) => CertificateMode::SelfManaged,
    };
    match mode {
        CertificateMode::Files => CertificateConfig::Files(FilesConfig {
            certificate: certificate.unwrap_or_else(|| CERTIFICATE_FILE.into()),
            key: key.unwrap_or_else(|| KEY_FILE.into()),
        }),
        CertificateMode::SelfManaged => {
            let webhook_configuration =
                filled(args.webhook_configuration).unwrap_or_else(|| args.service_name.clone());
            for (flag, path) in [("--tls-cert", &certificate), ("--tls-key", &key)] {
                if let Some(path) = path {
                    checked.mistake(
                        flag,
                        format!("{path:?}"),
                        "no files are read in this mode; give --certificate=files, or leave this flag out",
                    );
                }
            }
            for (flag, name) in [
                ("--tls-secret", &args.tls_secret),
                ("--service-name", &args.service_name),
                ("--webhook-configuration", &webhook_configuration),
            ] {
                checked.name(flag, name);
            }
            let other_names: Vec<String> =
                args.certificate_name.into_iter().filter(|name| !name.is_empty()).collect();
            for name in &other_names {
                checked.that(
                    name.parse::<std::net::IpAddr>().is_ok() || is_dns_name(name),
                    "--certificate-name",
                    name,
                    "give a DNS name in lower case or an IP address",
                );
            }
            CertificateConfig::SelfManaged {
                secret: args.tls_secret,
                service: args.service_name,
                webhook_configuration,
                other_names,
                lifetimes: Lifetimes::default(),
            }
        }
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

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}
