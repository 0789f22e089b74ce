//! The settings, valid together: one plain value per part, which takes it by value.

mod check;
mod shown;

use std::{fmt, path::PathBuf, time::Duration};

use rolecall_process::{
    admin,
    program::Settings,
    setting::{self, Mistake},
    telemetry,
};

use crate::{
    args::RunArgs,
    cache,
    certificate::{FilesConfig, Lifetimes},
    kubernetes::KubernetesConfig,
    policy::Policy,
    server,
};

/// Every part's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub policy: Policy,
    pub sources: SourcesConfig,
    pub kubernetes: KubernetesConfig,
    pub certificate: CertificateConfig,
    /// The name of the MutatingWebhookConfiguration that has the API server call.
    pub webhook_configuration: String,
    pub tls: server::tls::Config,
    pub server: server::Config,
    /// Whether pods are told that they were not injected.
    pub missed_injection: bool,
    pub admin: admin::Config,
    pub log: telemetry::Config,
    /// How long calls are still taken once the drain has begun.
    pub drain_delay: Duration,
    /// How long calls under way may take to end.
    pub drain_deadline: Duration,
    /// What is allowed but should be known, to be logged at the start.
    pub warnings: Vec<String>,
}

/// Where roles are learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcesConfig {
    pub service_accounts: cache::lookup::Config,
    /// Whether the ConfigMap is watched.
    pub config_map: bool,
    /// The container-credentials file of the EKS webhook.
    pub identities: Option<PathBuf>,
}

/// Where the serving certificate is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateConfig {
    /// Made here; the namespace is the shim's.
    SelfManaged {
        secret: String,
        service: String,
        /// Names and addresses beside those of the Service.
        other_names: Vec<String>,
        lifetimes: Lifetimes,
    },
    Files(FilesConfig),
}

impl TryFrom<RunArgs> for Config {
    type Error = Vec<Mistake>;

    /// Gives all the mistakes at once, in the order of the help.
    fn try_from(args: RunArgs) -> Result<Self, Vec<Mistake>> {
        check::config(args)
    }
}

/// The settings in force as flags, one per line, to be logged.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        setting::write(f, &shown::settings(self))
    }
}

impl Settings for Config {
    fn log(&self) -> &telemetry::Config {
        &self.log
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args, policy::Mode};

    fn parse(line: &str) -> Result<Config, Vec<Mistake>> {
        let words = std::iter::once("rolecall-shim").chain(line.split_whitespace());
        let args = args::parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        Config::try_from(args.run)
    }

    #[track_caller]
    fn good(line: &str) -> Config {
        parse(line).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    /// That `line` has one mistake, whose message is of these parts in this order.
    #[track_caller]
    fn check_mistake(line: &str, parts: &[&str]) {
        let mistakes = parse(line).expect_err(line);
        let [mistake] = &mistakes[..] else { panic!("{line}: {mistakes:?}") };
        let message = mistake.to_string();
        let mut rest = message.as_str();
        for part in parts {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not there in turn: {message}"));
            rest = &rest[at + part.len()..];
        }
    }

    #[track_caller]
    fn check_warning(line: &str, parts: &[&str]) {
        let warnings = good(line).warnings;
        let [warning] = &warnings[..] else { panic!("{line}: {warnings:?}") };
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }

    #[test]
    fn without_flags_pods_get_what_the_policy_has_by_default() {
        let config = good("");
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.warnings, [""; 0]);
        assert!(matches!(config.certificate, CertificateConfig::SelfManaged { .. }));
    }

    #[test]
    fn the_command_line_of_the_eks_webhook_is_accepted_as_it_stands() {
        let config = good(
            "--in-cluster=false --namespace=default --service-name=pod-identity-webhook \
             --annotation-prefix=eks.amazonaws.com --token-audience=sts.amazonaws.com --logtostderr",
        );
        let files = FilesConfig {
            certificate: "/etc/webhook/certs/tls.crt".into(),
            key: "/etc/webhook/certs/tls.key".into(),
        };
        assert_eq!(config.certificate, CertificateConfig::Files(files));
        assert_eq!(config.policy, Policy::default());
        assert_eq!((config.server.listen.port(), config.admin.metrics_listen.unwrap().port()), (443, 9999));
        assert_eq!(config.kubernetes.namespace.as_deref(), Some("default"));
        let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        assert!(warning.starts_with("--logtostderr has no effect: "), "{warning}");
    }

    #[test]
    fn every_flag_of_the_eks_webhook_is_known_in_every_form_of_go() {
        let config = good(
            "-in-cluster=true --port 8443 -metrics-port=9998 --kubeconfig= --kube-api= --tls-key= --tls-cert= \
             --tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 --tls-min-version=VersionTLS12 \
             --tls-secret=pod-identity-webhook --annotation-prefix= --token-mount-path=/tokens \
             --token-expiration=300 --aws-default-region=eu-west-1 --sts-regional-endpoint \
             --watch-config-map=T --compose-role-arn=false --watch-container-credentials-config=/etc/c.json \
             --container-credentials-audience=a --container-credentials-token-mount-path=/b/ \
             --container-credentials-token-volume-name=c --container-credentials-token-path=d \
             --container-credentials-full-uri=http://[fd00:ec2::23]/v1/credentials \
             --service-account-lookup-grace-period=100ms --resync-period=1m0s --enable-debugging-handlers=false \
             -v=4 --logtostderr=true -alsologtostderr --stderrthreshold=2 --vmodule x=1 --log_dir /tmp \
             --log_file=x --log_file_max_size 1800 --add_dir_header --skip_headers --skip_log_headers \
             --one_output --log_backtrace_at=x:1 --token-audience=first --token-audience=last",
        );
        let policy = &config.policy;
        assert_eq!((config.server.listen.port(), config.admin.metrics_listen.unwrap().port()), (8443, 9998));
        assert_eq!((policy.audience.as_str(), policy.compatibility_prefix.as_deref()), ("last", None));
        assert_eq!((policy.token_expiration, policy.token_mount_path.as_str()), (600, "/tokens"));
        assert_eq!((policy.region.as_deref(), policy.sts_regional_endpoints), (Some("eu-west-1"), true));
        assert_eq!(policy.container_credentials.volume_name, "c");
        assert_eq!(config.sources.service_accounts.grace, Duration::from_millis(100));
        assert!(config.sources.config_map && config.sources.identities.is_some());
        assert_eq!(config.log.filter.as_str(), "debug");
        assert_eq!(config.warnings.iter().filter(|warning| warning.contains("has no effect")).count(), 14);
    }

    #[test]
    fn what_cannot_work_is_a_mistake_with_its_remedy() {
        check_mistake(
            "--base-role-arn=orders",
            &["--base-role-arn \"orders\": ", "arn:aws:iam::<account>:role/"],
        );
        check_mistake("--audience=", &["--audience \"\": ", "sts.amazonaws.com"]);
        check_mistake("--token-mount-path=tokens", &["--token-mount-path \"tokens\": ", "absolute"]);
        check_mistake("--token-mount-path=/", &["--token-mount-path \"/\": ", "below the root"]);
        check_mistake("--token-expiration=4294967297", &["--token-expiration 4294967297: ", "600 to"]);
        check_mistake("--region=eu/central", &["--region \"eu/central\": ", "eu-central-1"]);
        check_mistake("--namespace=a.b", &["--namespace \"a.b\": ", "63"]);
        for (flag, value, remedy) in [
            ("--container-credentials-audience", "", "pods.eks.amazonaws.com"),
            ("--container-credentials-token-mount-path", "tokens", "absolute"),
            ("--container-credentials-token-volume-name", "Token_1", "63 lower-case"),
            ("--container-credentials-token-path", "../token", "name of a file"),
            ("--container-credentials-full-uri", "169.254.170.23", "http://169.254.170.23/v1/credentials"),
        ] {
            check_mistake(&format!("{flag}={value}"), &[flag, &format!(" {value:?}: "), remedy]);
        }
        check_mistake("--session-name={x}", &["--session-name \"{x}\": ", "{pod}"]);
        check_mistake("--endpoint-address=10.0.0.1", &["--endpoint-address 10.0.0.1: ", "169.254.170.23"]);
        check_mistake(
            "--compatibility-prefix=a/b",
            &["--compatibility-prefix \"a/b\": ", "eks.amazonaws.com"],
        );
        check_mistake("--compatibility-prefix=rolecall.dev", &["--compatibility-prefix", "empty"]);
        check_mistake("--tls-secret=A", &["--tls-secret \"A\": ", "lower-case"]);
        check_mistake("--certificate=self-managed --tls-cert=/x", &["--tls-cert", "--certificate=files"]);
        check_mistake("--certificate=files --in-cluster", &["--in-cluster", "--certificate"]);
        check_mistake("--admin-listen=0.0.0.0:9910", &["--admin-listen 0.0.0.0:9910: ", "loopback"]);
        check_mistake("--service-account-lookup-grace-period=30s", &["grace-period 30s: ", "8s"]);
        check_mistake(
            "--metrics-listen=[::]:443",
            &["--metrics-listen [::]:443: ", "--listen", "each its own"],
        );
        check_mistake("--drain-delay=2h", &["--drain-delay 7200s: ", "terminationGracePeriodSeconds"]);
        let mistakes = parse("--audience= --session-name=").unwrap_err();
        assert_eq!(mistakes.len(), 1, "an empty optional value counts as absent: {mistakes:?}");
    }

    #[test]
    fn what_is_corrected_or_weak_is_said_at_the_start() {
        check_warning("--token-expiration=60", &["--token-expiration 60", "600"]);
        for line in ["--token-expiration=-1", "--token-expiration -1"] {
            check_warning(line, &["--token-expiration -1", "600"]);
            assert_eq!(good(line).policy.token_expiration, 600);
        }
        check_warning("--container-credentials-full-uri=http://10.0.0.1/x", &["http://10.0.0.1/x", "https"]);
        check_warning("--tls-min-version=1.0", &["--tls-min-version", "1.2"]);
        check_warning("--tls-cipher-suites=TLS_RSA_WITH_RC4_128_SHA", &["TLS_RSA_WITH_RC4_128_SHA"]);
        check_warning("--compose-role-arn", &["--base-role-arn"]);
        check_warning("--allow-pod-role-annotation", &["--allow-pod-role-annotation"]);
    }

    #[test]
    fn the_settings_that_are_shown_bring_about_the_same_settings() {
        for line in [
            "",
            "--default-mode=irsa --base-role-arn=arn:aws:iam::111122223333:role --no-daemon-node-selector=a=b,c= \
             --certificate=files --tls-min-version=1.3 --session-name={pod} --admin-listen=off --missed-injection=off",
        ] {
            let config = good(line);
            assert_eq!(parse(&config.to_string()), Ok(config), "{line}");
        }
        assert_eq!(good("--default-mode=irsa").policy.default_mode, Mode::Irsa);
    }
}
