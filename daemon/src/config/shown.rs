//! The settings in force, written as the flags that would bring them about.

use rolecall_process::setting::{address_or_off, joined, name_of};

use super::Config;
use crate::{
    args::{self, ManageAddresses, MetadataFirewall, RolesInPath, SlowAnswer, WriteEvents},
    node::firewall,
    server::{caller::Witness, slow::Mode},
};

/// Flag and value, in the order of the help. What is not set is left out; the variables without a flag come last.
pub(super) fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let Config {
        kubernetes,
        tokens,
        sessions,
        credentials,
        sts,
        server,
        node,
        admin,
        handover_socket,
        log,
        drain_deadline,
    } = config;
    let (timing, limits) = (server.endpoint.timing, server.limits);
    let witness = match server.callers.witness {
        Witness::TokenAndAddress => args::Witness::TokenAndAddress,
        Witness::Token => args::Witness::Token,
    };
    let role_in_path = if server.endpoint.role_in_path { RolesInPath::Allow } else { RolesInPath::Refuse };
    let slow_answer = match timing.mode {
        Mode::Drip => SlowAnswer::Drip,
        Mode::Hold => SlowAnswer::Hold,
    };
    let manage_addresses = if node.manage_addresses { ManageAddresses::On } else { ManageAddresses::Off };
    let metadata_firewall = match node.firewall.mode {
        firewall::Mode::Nftables => MetadataFirewall::Nftables,
        firewall::Mode::Iptables => MetadataFirewall::Iptables,
        firewall::Mode::Off => MetadataFirewall::Off,
    };
    let events = if kubernetes.events { WriteEvents::On } else { WriteEvents::Off };
    let programs = &node.firewall.programs;
    let rows: [(&'static str, Option<String>); 48] = [
        ("--node-name", Some(kubernetes.node_name.clone())),
        ("--kubeconfig", kubernetes.kubeconfig.as_ref().map(|path| path.display().to_string())),
        ("--pods-dir", Some(tokens.pods_dir.display().to_string())),
        ("--events", Some(name_of(&events))),
        ("--startup-taint", node.startup_taint.as_ref().map(ToString::to_string)),
        ("--audience", Some(tokens.verify.audience.clone())),
        ("--token-issuer", joined(tokens.verify.issuers.iter().cloned())),
        ("--witness", Some(name_of(&witness))),
        ("--region", sts.region.clone()),
        ("--sts-endpoint", sts.endpoint.as_ref().map(ToString::to_string)),
        ("--sts-fips", Some(sts.fips.to_string())),
        ("--sts-dual-stack", Some(sts.dual_stack.to_string())),
        ("--sts-concurrency", Some(credentials.concurrency.to_string())),
        ("--sts-burst", Some(credentials.burst.to_string())),
        ("--sts-connect-timeout", Some(format!("{:?}", sts.connect_timeout))),
        ("--sts-attempt-timeout", Some(format!("{:?}", sts.attempt_timeout))),
        ("--sts-hedge-after", Some(format!("{:?}", credentials.hedge_after))),
        ("--session-duration", Some(format!("{:?}", sessions.duration.as_duration()))),
        ("--session-name", Some(sessions.name.to_string())),
        ("--cluster-name", (!sessions.cluster.is_empty()).then(|| sessions.cluster.clone())),
        ("--max-roles-per-pod", Some(credentials.roles_per_pod.to_string())),
        ("--listen", joined(server.listen.iter().map(ToString::to_string))),
        ("--manage-addresses", Some(name_of(&manage_addresses))),
        ("--role-in-path", Some(name_of(&role_in_path))),
        ("--hold", Some(format!("{:?}", timing.hold))),
        ("--slow-answer", Some(name_of(&slow_answer))),
        ("--drip-interval", Some(format!("{:?}", timing.interval))),
        ("--give-up-after", Some(format!("{:?}", timing.give_up_after))),
        ("--caller-wait", Some(format!("{:?}", server.callers.wait))),
        ("--header-timeout", Some(format!("{:?}", server.listener.header_timeout))),
        ("--max-requests-per-second-per-pod", Some(limits.requests_per_second.to_string())),
        ("--max-connections-per-pod", Some(limits.connections.to_string())),
        ("--max-waiting-per-pod", Some(limits.waiting.to_string())),
        ("--max-connections", Some(server.listener.max_connections.to_string())),
        ("--metadata-firewall", Some(name_of(&metadata_firewall))),
        ("--metadata-exempt", joined(node.exemptions.iter().map(ToString::to_string))),
        ("--nft", Some(programs.nft.display().to_string())),
        ("--iptables", Some(programs.iptables.display().to_string())),
        ("--admin-listen", Some(address_or_off(admin.listen))),
        ("--admin-socket", Some(admin.socket.display().to_string())),
        ("--metrics-listen", Some(address_or_off(admin.metrics_listen))),
        ("--handover-socket", handover_socket.as_ref().map(|path| path.display().to_string())),
        ("--drain-deadline", Some(format!("{drain_deadline:?}"))),
        ("--log-format", Some(name_of(&log.format))),
        ("--log-level", Some(log.filter.to_string())),
        ("HTTPS_PROXY", sts.proxy.https.as_ref().map(ToString::to_string)),
        ("HTTP_PROXY", sts.proxy.http.as_ref().map(ToString::to_string)),
        ("NO_PROXY", sts.proxy.no_proxy.clone()),
    ];
    rows.into_iter().filter_map(|(flag, value)| Some((flag, value?))).collect()
}
