//! The settings in force, written as the flags that would bring them about.

use rolecall_process::setting::{address_or_off, joined, name_of};

use super::{CertificateConfig, Config};
use crate::session_name::{Part, SessionName};

/// Flag and value, in the order of the help. What is not set is left out.
pub(super) fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let Config {
        policy,
        sources,
        kubernetes,
        certificate,
        webhook_configuration,
        tls,
        server,
        missed_injection,
        admin,
        log,
        drain_delay,
        drain_deadline,
        warnings: _,
    } = config;
    let eks = &policy.container_credentials;
    let selectors = policy.node_selectors_without_daemon.iter().map(|(key, value)| format!("{key}={value}"));
    let mut rows: Vec<(&'static str, Option<String>)> = vec![
        ("--default-mode", Some(policy.default_mode.to_string())),
        ("--base-role-arn", policy.base_role_arn.as_ref().map(ToString::to_string)),
        ("--compatibility-prefix", Some(policy.compatibility_prefix.clone().unwrap_or_default())),
        ("--allow-pod-role-annotation", Some(policy.pod_role_annotation_allowed.to_string())),
        ("--take-over-irsa", Some(policy.take_over_irsa.to_string())),
        ("--audience", Some(policy.audience.clone())),
        ("--token-mount-path", Some(policy.token_mount_path.clone())),
        ("--token-expiration", Some(policy.token_expiration.to_string())),
        ("--region", policy.region.clone()),
        ("--sts-regional-endpoint", Some(policy.sts_regional_endpoints.to_string())),
        ("--endpoint-address", Some(policy.endpoint_address.to_string())),
        ("--no-daemon-node-selector", joined(selectors)),
        ("--session-name", policy.session_name.as_ref().map(template)),
        ("--service-account-lookup-grace-period", Some(format!("{:?}", sources.service_accounts.grace))),
        ("--watch-config-map", Some(sources.config_map.to_string())),
        (
            "--watch-container-credentials-config",
            sources.identities.as_ref().map(|path| path.display().to_string()),
        ),
        ("--container-credentials-audience", Some(eks.audience.clone())),
        ("--container-credentials-token-mount-path", Some(eks.mount_path.clone())),
        ("--container-credentials-token-volume-name", Some(eks.volume_name.clone())),
        ("--container-credentials-token-path", Some(eks.token_path.clone())),
        ("--container-credentials-full-uri", Some(eks.full_uri.clone())),
        ("--kubeconfig", kubernetes.kubeconfig.as_ref().map(|path| path.display().to_string())),
        ("--kube-api", kubernetes.api.as_ref().map(ToString::to_string)),
        ("--namespace", kubernetes.namespace.clone()),
    ];
    let webhook_configuration = ("--webhook-configuration", Some(webhook_configuration.clone()));
    rows.extend(match certificate {
        CertificateConfig::SelfManaged { secret, service, other_names, lifetimes: _ } => {
            vec![
                ("--certificate", Some("self-managed".to_owned())),
                ("--tls-secret", Some(secret.clone())),
                ("--service-name", Some(service.clone())),
                webhook_configuration,
                ("--certificate-name", joined(other_names.iter().cloned())),
            ]
        }
        CertificateConfig::Files(files) => vec![
            ("--certificate", Some("files".to_owned())),
            webhook_configuration,
            ("--tls-cert", Some(files.certificate.display().to_string())),
            ("--tls-key", Some(files.key.display().to_string())),
        ],
    });
    rows.extend([
        ("--tls-min-version", Some(if tls.only_v13 { "1.3" } else { "1.2" }.to_owned())),
        ("--tls-cipher-suites", joined(tls.cipher_suites.iter().cloned())),
        ("--listen", Some(server.listen.to_string())),
        ("--max-connections", Some(server.max_connections.to_string())),
        ("--missed-injection", Some(if *missed_injection { "on" } else { "off" }.to_owned())),
        ("--admin-listen", Some(address_or_off(admin.listen))),
        ("--admin-socket", Some(admin.socket.display().to_string())),
        ("--metrics-listen", Some(address_or_off(admin.metrics_listen))),
        ("--drain-delay", Some(format!("{drain_delay:?}"))),
        ("--drain-deadline", Some(format!("{drain_deadline:?}"))),
        ("--log-format", Some(name_of(&log.format))),
        ("--log-level", Some(log.filter.to_string())),
    ]);
    rows.into_iter().filter_map(|(flag, value)| Some((flag, value?))).collect()
}

fn template(name: &SessionName) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Namespace => "{namespace}".to_owned(),
        Part::ServiceAccount => "{serviceAccount}".to_owned(),
        Part::Pod => "{pod}".to_owned(),
    };
    name.parts().iter().map(part).collect()
}
