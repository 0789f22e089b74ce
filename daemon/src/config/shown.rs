//! The settings in force, written as the flags that would bring them about.

use std::net::SocketAddr;

use clap::ValueEnum;

use super::Config;

/// Flag and value, in the order of the help. What is not set is left out; the variables without a flag come last.
pub(super) fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let Config {
        pods,
        tokens,
        credentials,
        sts,
        server,
        admin,
        log,
        drain_deadline,
    } = config;
    let (timing, limits) = (server.timing, server.limits);
    let rows: [(&'static str, Option<String>); 39] = [
        ("--node-name", Some(pods.node_name.clone())),
        (
            "--kubeconfig",
            pods.kubeconfig.as_ref().map(|path| path.display().to_string()),
        ),
        ("--pods-dir", Some(tokens.pods_dir.display().to_string())),
        ("--audience", Some(tokens.audience.clone())),
        ("--token-issuer", joined(tokens.issuers.iter().cloned())),
        ("--witness", Some(name_of(&server.witness))),
        ("--region", sts.region.clone()),
        ("--sts-endpoint", sts.endpoint.as_ref().map(ToString::to_string)),
        ("--sts-fips", Some(sts.fips.to_string())),
        ("--sts-dual-stack", Some(sts.dual_stack.to_string())),
        ("--sts-concurrency", Some(credentials.concurrency.to_string())),
        (
            "--sts-connect-timeout",
            Some(format!("{:?}", sts.connect_timeout)),
        ),
        (
            "--sts-attempt-timeout",
            Some(format!("{:?}", sts.attempt_timeout)),
        ),
        (
            "--sts-hedge-after",
            Some(format!("{:?}", credentials.hedge_after)),
        ),
        (
            "--session-duration",
            Some(format!("{:?}", credentials.session_duration.as_duration())),
        ),
        ("--session-name", Some(credentials.session_name.clone())),
        ("--cluster-name", credentials.cluster_name.clone()),
        (
            "--max-roles-per-pod",
            Some(credentials.max_roles_per_pod.to_string()),
        ),
        ("--listen", joined(server.listen.iter().map(ToString::to_string))),
        ("--role-in-path", Some(name_of(&server.role_in_path))),
        ("--hold", Some(format!("{:?}", timing.hold))),
        ("--slow-answer", Some(name_of(&server.slow_answer))),
        ("--drip-interval", Some(format!("{:?}", timing.drip_interval))),
        ("--give-up-after", Some(format!("{:?}", timing.give_up_after))),
        ("--caller-wait", Some(format!("{:?}", timing.caller_wait))),
        ("--header-timeout", Some(format!("{:?}", timing.header_timeout))),
        (
            "--max-requests-per-second-per-pod",
            Some(limits.requests_per_second_per_pod.to_string()),
        ),
        (
            "--max-connections-per-pod",
            Some(limits.connections_per_pod.to_string()),
        ),
        ("--max-waiting-per-pod", Some(limits.waiting_per_pod.to_string())),
        ("--max-connections", Some(limits.connections.to_string())),
        ("--admin-listen", Some(address_or_off(admin.listen))),
        ("--admin-socket", Some(admin.socket.display().to_string())),
        ("--metrics-listen", Some(address_or_off(admin.metrics_listen))),
        ("--drain-deadline", Some(format!("{drain_deadline:?}"))),
        ("--log-format", Some(name_of(&log.format))),
        ("--log-level", Some(log.filter.to_string())),
        ("HTTPS_PROXY", sts.proxy.https.as_ref().map(ToString::to_string)),
        ("HTTP_PROXY", sts.proxy.http.as_ref().map(ToString::to_string)),
        ("NO_PROXY", sts.proxy.no_proxy.clone()),
    ];
    rows.into_iter()
        .filter_map(|(flag, value)| Some((flag, value?)))
        .collect()
}

fn joined(values: impl Iterator<Item = String>) -> Option<String> {
    let values: Vec<String> = values.collect();
    if values.is_empty() {
        None
    } else {
        Some(values.join(","))
    }
}

fn address_or_off(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// The value as it is typed.
fn name_of(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
