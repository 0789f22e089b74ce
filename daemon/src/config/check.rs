//! From what was typed to what is valid; each rule is here, with its remedy.

mod sts;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use rolecall_contract::SessionDuration;

use self::sts::check_sts;
pub(super) use self::sts::is_loopback;
use super::{Config, KubernetesConfig, NodeConfig, ServerConfig, TokensConfig};
use crate::{
    args::{
        EndpointArgs, FirewallProgramArgs, HandoverArgs, LimitArgs, ManageAddresses, MetadataArgs,
        MetadataFirewall, PodArgs, ProcessArgs, RolesInPath, RunArgs, SessionArgs, SlowAnswer, StsArgs,
        TokenArgs, Witness, WriteEvents,
    },
    credentials::{self, SessionNameTemplate},
    exemptions::Exemption,
    node::{firewall, loopback, taint::TaintKey},
    server::{caller, endpoint, limits, listener, slow},
    sessions, token,
};
use rolecall_process::{
    setting::{Checked, Mistake},
    telemetry,
};

/// Most SDKs give up on a server that is silent for this long.
const SDK_PATIENCE: Duration = Duration::from_secs(1);

/// A drip must come before the shortest read timeout of an SDK, [`SDK_PATIENCE`], with room for a slow moment.
const DRIP_INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(900));

/// A reset of a younger request is taken by PHP's SDK for a final answer.
const GIVE_UP_ABOVE: Duration = Duration::from_millis(1100);

/// The newest Rust SDK gives up on a begun answer after 21.6 s.
const GIVE_UP_DRIPPING: Duration = Duration::from_secs(21);

/// Nobody waits in silence for longer.
const GIVE_UP_HOLDING: Duration = Duration::from_secs(60);

pub(super) fn config(args: RunArgs) -> Result<Config, Vec<Mistake>> {
    let RunArgs { pods, tokens, sts, sessions, endpoint, limits, metadata, process, log, environment } = args;
    let mut checked = Checked::default();
    check_listeners(&mut checked, &endpoint, &process);
    let node_name = check_node_name(&mut checked, &pods);
    let startup_taint = check_startup_taint(&mut checked, pods.startup_taint.as_deref());
    let config = Config {
        tokens: check_tokens(&mut checked, &pods, &tokens, node_name.clone()),
        sessions: check_sessions(&mut checked, &sessions, node_name.clone()),
        kubernetes: KubernetesConfig {
            node_name,
            kubeconfig: pods.kubeconfig,
            events: pods.events == WriteEvents::On,
        },
        credentials: check_credentials(&mut checked, &sts, &sessions),
        sts: check_sts(&mut checked, sts, environment),
        server: ServerConfig {
            callers: caller::Config {
                witness: match tokens.witness {
                    Witness::TokenAndAddress => caller::Witness::TokenAndAddress,
                    Witness::Token => caller::Witness::Token,
                },
                wait: endpoint.caller_wait,
            },
            endpoint: endpoint::Config {
                timing: check_timing(&mut checked, &endpoint),
                role_in_path: endpoint.role_in_path == RolesInPath::Allow,
            },
            limits: check_limits(&mut checked, &limits),
            listener: listener::Config {
                max_connections: as_usize(limits.max_connections),
                header_timeout: endpoint.header_timeout,
            },
            listen: endpoint.listen.listen,
        },
        node: check_node(&mut checked, endpoint.manage_addresses, metadata, startup_taint),
        handover_socket: check_handover(&mut checked, &process),
        drain_deadline: checked.drain(
            "--drain-deadline",
            process.drain_deadline,
            "choose up to 1h, below the pod's terminationGracePeriodSeconds",
        ),
        admin: checked.admin(
            process.admin_listen,
            process.admin_socket.admin_socket,
            process.metrics_listen.address(),
        ),
        log: telemetry::Config { format: log.log_format, filter: log.log_level },
    };
    if checked.mistakes.is_empty() { Ok(config) } else { Err(checked.mistakes) }
}

fn check_node_name(checked: &mut Checked, args: &PodArgs) -> String {
    let name = args.node_name.clone().unwrap_or_default();
    if name.is_empty() {
        checked.mistake(
            "--node-name",
            "is missing".to_owned(),
            "give the spec.nodeName of the daemon's own pod, by ROLECALL_NODE_NAME from a fieldRef",
        );
        return name;
    }
    // The name goes into a field selector, where a comma would begin another condition.
    let is_name = name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    checked.that(
        is_name,
        "--node-name",
        &name,
        "a node's name has 1 to 253 lower-case letters, digits, dashes and dots; give the one of kubectl get nodes",
    );
    name
}

fn check_tokens(checked: &mut Checked, pods: &PodArgs, args: &TokenArgs, node_name: String) -> TokensConfig {
    checked.that(
        pods.pods_dir.is_absolute(),
        "--pods-dir",
        &pods.pods_dir,
        "give an absolute path, such as /var/lib/kubelet/pods",
    );
    checked.that(
        is_one_word(&args.audience),
        "--audience",
        &args.audience,
        "give the audience of the pods' tokens, usually sts.amazonaws.com",
    );
    // A chart that sets every variable leaves this one empty.
    let issuers: Vec<String> =
        args.token_issuer.iter().filter(|issuer| !issuer.is_empty()).cloned().collect();
    for issuer in &issuers {
        checked.that(
            is_one_word(issuer),
            "--token-issuer",
            issuer,
            "give the issuer as tokens spell it in their claim iss, or leave the flag out",
        );
    }
    TokensConfig {
        pods_dir: pods.pods_dir.clone(),
        verify: token::verify::Config { audience: args.audience.clone(), issuers, node_name },
    }
}

fn check_sessions(checked: &mut Checked, args: &SessionArgs, node: String) -> sessions::Config {
    let duration = whole_seconds(args.session_duration)
        .and_then(|seconds| SessionDuration::from_seconds(seconds).ok())
        .unwrap_or_else(|| {
            checked.mistake(
                "--session-duration",
                format!("{:?}", args.session_duration),
                "STS takes whole seconds from 15m (900) to 12h (43200); 1h suits every role",
            );
            SessionDuration::MIN
        });
    let name = args.session_name.parse::<SessionNameTemplate>().unwrap_or_else(|error| {
        checked.mistake("--session-name", format!("{:?}", args.session_name), error.to_string());
        SessionNameTemplate::default()
    });
    let cluster = args.cluster_name.clone().unwrap_or_default();
    checked.that(
        !(args.session_name.contains("{cluster}") && cluster.is_empty()),
        "--session-name",
        &args.session_name,
        "{cluster} stands for --cluster-name, which is not given; give it",
    );
    sessions::Config { name, duration, cluster, node }
}

fn check_credentials(checked: &mut Checked, sts: &StsArgs, args: &SessionArgs) -> credentials::Config {
    checked.that(
        !sts.sts_hedge_after.is_zero(),
        "--sts-hedge-after",
        sts.sts_hedge_after,
        "every exchange would be made twice; choose 3s, or the value of --sts-attempt-timeout for never",
    );
    credentials::Config {
        concurrency: as_usize(sts.sts_concurrency),
        burst: as_usize(sts.sts_burst),
        hedge_after: sts.sts_hedge_after,
        roles_per_pod: as_usize(args.max_roles_per_pod),
    }
}

fn check_timing(checked: &mut Checked, args: &EndpointArgs) -> slow::Timing {
    checked.that(
        args.hold < SDK_PATIENCE,
        "--hold",
        args.hold,
        "most SDKs give up after 1s of silence; choose less, such as 500ms",
    );
    checked.that(
        DRIP_INTERVALS.0 <= args.drip_interval && args.drip_interval <= DRIP_INTERVALS.1,
        "--drip-interval",
        args.drip_interval,
        "choose 100ms to 900ms: the white space has to come before an SDK's read timeout of 1s",
    );
    let (longest, remedy) = match args.slow_answer {
        SlowAnswer::Drip => (
            GIVE_UP_DRIPPING,
            "choose more than 1.1s, before which PHP's SDK would not ask again, and no more than 21s: the newest \
             Rust SDK gives up at 21.6s",
        ),
        SlowAnswer::Hold => (GIVE_UP_HOLDING, "choose more than 1.1s and no more than 60s"),
    };
    checked.that(
        GIVE_UP_ABOVE < args.give_up_after && args.give_up_after <= longest,
        "--give-up-after",
        args.give_up_after,
        remedy,
    );
    checked.that(
        args.caller_wait <= args.give_up_after,
        "--caller-wait",
        args.caller_wait,
        "a request is given up before; choose no more than --give-up-after",
    );
    checked.that(
        Duration::from_millis(100) <= args.header_timeout && args.header_timeout <= Duration::from_secs(300),
        "--header-timeout",
        args.header_timeout,
        "choose 100ms to 5m; an SDK sends its request at once, so 10s suits all",
    );
    slow::Timing {
        hold: args.hold,
        interval: args.drip_interval,
        give_up_after: args.give_up_after,
        mode: match args.slow_answer {
            SlowAnswer::Drip => slow::Mode::Drip,
            SlowAnswer::Hold => slow::Mode::Hold,
        },
    }
}

fn check_limits(checked: &mut Checked, args: &LimitArgs) -> limits::Config {
    checked.that(
        args.max_connections_per_pod <= args.max_connections,
        "--max-connections-per-pod",
        args.max_connections_per_pod,
        "one pod could take every connection; choose less than --max-connections",
    );
    checked.that(
        args.max_waiting_per_pod <= args.max_connections_per_pod,
        "--max-waiting-per-pod",
        args.max_waiting_per_pod,
        "each waiting request has a connection; choose no more than --max-connections-per-pod",
    );
    limits::Config {
        requests_per_second: args.max_requests_per_second_per_pod,
        waiting: as_usize(args.max_waiting_per_pod),
        connections: as_usize(args.max_connections_per_pod),
    }
}

/// A chart that sets every variable leaves this one empty.
fn check_startup_taint(checked: &mut Checked, key: Option<&str>) -> Option<TaintKey> {
    let key = key.filter(|key| !key.is_empty())?;
    key.parse()
        .inspect_err(|error| checked.mistake("--startup-taint", format!("{key:?}"), format!("{error}")))
        .ok()
}

fn check_node(
    checked: &mut Checked,
    manage: ManageAddresses,
    args: MetadataArgs,
    startup_taint: Option<TaintKey>,
) -> NodeConfig {
    let exemptions: Vec<Exemption> = args.metadata_exempt.into_iter().flatten().collect();
    if let (MetadataFirewall::Off, Some(exemption)) = (args.metadata_firewall, exemptions.first()) {
        checked.mistake(
            "--metadata-exempt",
            exemption.to_string(),
            "--metadata-firewall is off, so nobody is kept from the metadata service; drop one of the two",
        );
    }
    checked.that(
        args.programs.iptables.file_name().is_some_and(|name| name.to_string_lossy().starts_with("iptables")),
        "--iptables",
        &args.programs.iptables,
        "the programs for saving, restoring and IPv6 are named after it; give iptables, iptables-nft or iptables-legacy, \
         with or without a path",
    );
    NodeConfig {
        manage_addresses: manage == ManageAddresses::On,
        firewall: firewall::Config {
            mode: match args.metadata_firewall {
                MetadataFirewall::Nftables => firewall::Mode::Nftables,
                MetadataFirewall::Iptables => firewall::Mode::Iptables,
                MetadataFirewall::Off => firewall::Mode::Off,
            },
            programs: programs(args.programs),
        },
        exemptions,
        startup_taint,
    }
}

pub(super) fn programs(args: FirewallProgramArgs) -> firewall::Programs {
    firewall::Programs { nft: args.nft, iptables: args.iptables }
}

/// Those of `listen` that the daemon may put on the node, once each.
pub(super) fn addresses_to_put(listen: &[SocketAddr]) -> Vec<IpAddr> {
    let addresses: BTreeSet<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
    addresses.into_iter().filter(|address| loopback::is_ours_to_put(*address)).collect()
}

/// A chart that sets every variable leaves this one empty.
pub(super) fn handover_socket(args: HandoverArgs) -> Option<PathBuf> {
    args.handover_socket.filter(|path| !path.as_os_str().is_empty())
}

fn check_handover(checked: &mut Checked, args: &ProcessArgs) -> Option<PathBuf> {
    let socket = handover_socket(args.handover.clone())?;
    checked.socket("--handover-socket", &socket, "/run/rolecall-handover/handover.sock");
    checked.that(
        socket != args.admin_socket.admin_socket,
        "--handover-socket",
        &socket,
        "--admin-socket is there, which each daemon has for itself; give another path, which all daemons of the node share",
    );
    Some(socket)
}

/// Checks that no two listeners want one port.
fn check_listeners(checked: &mut Checked, endpoint: &EndpointArgs, process: &ProcessArgs) {
    checked.that(
        !endpoint.listen.listen.is_empty(),
        "--listen",
        "",
        "give the addresses that pods ask, such as 169.254.170.23:80",
    );
    let all = endpoint.listen.listen.iter().map(|address| ("--listen", *address)).chain(
        [("--admin-listen", process.admin_listen), ("--metrics-listen", process.metrics_listen)]
            .into_iter()
            .filter_map(|(flag, listen)| Some((flag, listen.address()?))),
    );
    checked.listeners(all);
}

fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn whole_seconds(duration: Duration) -> Option<u32> {
    if duration.subsec_nanos() == 0 { u32::try_from(duration.as_secs()).ok() } else { None }
}

fn as_usize(count: u32) -> usize {
    usize::try_from(count).expect("a pointer has 32 bits or more on every node")
}
