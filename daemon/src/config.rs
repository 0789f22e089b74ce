//! The settings, valid together: one plain value per part, which takes it by value.

mod check;
mod proxy;
mod shown;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use url::Url;

pub use self::proxy::{ProxyConfig, ProxyUrl};
use crate::{
    args::{FirewallProgramArgs, HandoverArgs, ListenArgs, RunArgs},
    credentials,
    exemptions::Exemption,
    node::{cleanup, firewall, taint::TaintKey},
    server::{self, caller::Witness},
    sessions, token,
};
use rolecall_process::{
    admin,
    program::Settings,
    setting::{self, Mistake},
    telemetry,
};

/// Every part's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub kubernetes: KubernetesConfig,
    pub tokens: TokensConfig,
    pub sessions: sessions::Config,
    pub credentials: credentials::Config,
    pub sts: StsConfig,
    pub server: ServerConfig,
    pub node: NodeConfig,
    pub admin: admin::Config,
    /// Where daemons of this node hand over; `None` for nowhere.
    pub handover_socket: Option<PathBuf>,
    pub log: telemetry::Config,
    /// How long requests under way may take to end.
    pub drain_deadline: Duration,
}

/// Where the pods of this node are learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    pub node_name: String,
    /// `None` for the ServiceAccount of the daemon's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Whether Events are written on pods.
    pub events: bool,
}

/// Where tokens lie, and what a good one says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokensConfig {
    /// The kubelet's directory of pods.
    pub pods_dir: PathBuf,
    pub verify: token::verify::Config,
}

/// How STS is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StsConfig {
    /// `None` only beside an endpoint.
    pub region: Option<String>,
    pub endpoint: Option<Url>,
    pub fips: bool,
    pub dual_stack: bool,
    pub connect_timeout: Duration,
    pub attempt_timeout: Duration,
    pub proxy: ProxyConfig,
}

/// How pods are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    pub listen: Vec<SocketAddr>,
    pub callers: server::caller::Config,
    pub endpoint: server::endpoint::Config,
    pub limits: server::limits::Config,
    pub listener: server::listener::Config,
}

/// What the daemon does to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Whether addresses to listen on are put on the node.
    pub manage_addresses: bool,
    pub firewall: firewall::Config,
    /// Whose pods may reach the metadata service.
    pub exemptions: Vec<Exemption>,
    /// What is taken off the node once the daemon is ready.
    pub startup_taint: Option<TaintKey>,
}

impl TryFrom<RunArgs> for Config {
    type Error = Vec<Mistake>;

    /// Gives all the mistakes at once, in the order of the help.
    fn try_from(args: RunArgs) -> Result<Self, Vec<Mistake>> {
        check::config(args)
    }
}

/// What `cleanup` looks for.
#[must_use]
pub fn cleanup(
    listen: &ListenArgs,
    handover: HandoverArgs,
    programs: FirewallProgramArgs,
) -> cleanup::Config {
    cleanup::Config {
        addresses: check::addresses_to_put(&listen.listen),
        handover_socket: check::handover_socket(handover),
        programs: check::programs(programs),
    }
}

impl Config {
    /// The addresses that belong on the node's loopback interface.
    #[must_use]
    pub fn addresses_to_put(&self) -> Vec<IpAddr> {
        if self.node.manage_addresses { check::addresses_to_put(&self.server.listen) } else { Vec::new() }
    }
}

impl Settings for Config {
    fn log(&self) -> &telemetry::Config {
        &self.log
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.server.callers.witness == Witness::Token {
            warnings.push(
                "--witness token: a token that was stolen from a pod works from every pod of this node"
                    .to_owned(),
            );
        }
        if let Some(endpoint) = self.sts.endpoint.as_ref()
            && endpoint.scheme() == "http"
            && !check::is_loopback(endpoint)
        {
            warnings.push(format!(
                "--sts-endpoint {endpoint}: tokens and credentials travel unencrypted; use https"
            ));
        }
        if let Some(everybody) = self.node.exemptions.iter().find(|exemption| exemption.is_everybody()) {
            warnings.push(format!(
                "--metadata-exempt {everybody}: every pod may take the node's own role; name the ServiceAccounts that \
                 need it"
            ));
        }
        warnings
    }
}

/// The settings in force as flags, one per line, to be logged; a proxy's password is left out.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        setting::write(f, &shown::settings(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        args::{self, Environment},
        server::slow::Mode,
    };

    const ENOUGH: &str = "--node-name=node-1 --region=eu-west-1";

    fn parse(line: &str, environment: Environment) -> Result<Config, Vec<Mistake>> {
        let words = std::iter::once("rolecall-daemon").chain(line.split_whitespace());
        let mut args = args::parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        args.run.environment = environment;
        Config::try_from(args.run)
    }

    #[track_caller]
    fn good(line: &str) -> Config {
        parse(&format!("{ENOUGH} {line}"), Environment::default())
            .unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    /// That `line`, beside what is enough, has one mistake, whose message is of these parts in this order.
    #[track_caller]
    fn check_mistake(line: &str, parts: &[&str]) {
        let mistakes = parse(&format!("{ENOUGH} {line}"), Environment::default()).expect_err(line);
        let [mistake] = &mistakes[..] else { panic!("{line}: {mistakes:?}") };
        check_parts(mistake, parts);
    }

    #[track_caller]
    fn check_parts(mistake: &Mistake, parts: &[&str]) {
        let message = mistake.to_string();
        let mut rest = message.as_str();
        for part in parts {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not there in turn: {message}"));
            rest = &rest[at + part.len()..];
        }
    }

    #[test]
    fn a_time_that_an_sdk_would_not_bear_is_refused() {
        check_mistake("--hold=1s", &["--hold 1s: ", "give up after 1s", "500ms"]);
        check_mistake("--hold=700", &["--hold 700s: ", "500ms"]);
        check_mistake("--drip-interval=1s", &["--drip-interval 1s: ", "100ms to 900ms"]);
        check_mistake("--drip-interval=0", &["--drip-interval 0ns: ", "100ms to 900ms"]);
        check_mistake(
            "--give-up-after=1100ms --caller-wait=1s",
            &["--give-up-after 1.1s: ", "more than 1.1s"],
        );
        check_mistake("--give-up-after=22s", &["--give-up-after 22s: ", "21s", "21.6s"]);
        check_mistake("--give-up-after=61s --slow-answer=hold", &["--give-up-after 61s: ", "60s"]);
        check_mistake("--caller-wait=21s", &["--caller-wait 21s: ", "--give-up-after"]);
        check_mistake("--header-timeout=0", &["--header-timeout 0ns: ", "10s"]);
        check_mistake("--drain-deadline=2h", &["--drain-deadline 7200s: ", "terminationGracePeriodSeconds"]);
        let timing = good("--hold=999ms --drip-interval=900ms --give-up-after=21s --caller-wait=21s")
            .server
            .endpoint
            .timing;
        assert_eq!(timing.give_up_after, Duration::from_secs(21));
        assert_eq!(good("--give-up-after=60s --slow-answer=hold").server.endpoint.timing.mode, Mode::Hold);
        assert_eq!(good("--hold=0").server.endpoint.timing.hold, Duration::ZERO);
    }

    #[test]
    fn a_session_is_as_long_as_sts_allows() {
        check_mistake("--session-duration=14m59s", &["--session-duration 899s: ", "15m", "12h", "1h suits"]);
        check_mistake("--session-duration=43201", &["--session-duration 43201s: "]);
        check_mistake("--session-duration=3600.5s", &["--session-duration 3600.5s: ", "whole seconds"]);
        for (value, seconds) in [("15m", 900), ("3600", 3600), ("1h", 3600), ("12h", 43_200)] {
            let config = good(&format!("--session-duration={value}"));
            assert_eq!(config.sessions.duration.as_seconds(), seconds, "{value}");
        }
    }

    #[test]
    fn two_listeners_on_one_port_are_refused() {
        check_mistake(
            "--listen=127.0.0.1:9910",
            &["--admin-listen 127.0.0.1:9910: ", "--listen 127.0.0.1:9910 has this port", "each its own"],
        );
        check_mistake(
            "--metrics-listen=0.0.0.0:80",
            &["--metrics-listen 0.0.0.0:80: ", "--listen 169.254.170.23:80"],
        );
        check_mistake(
            "--metrics-listen=[::]:9910",
            &["--metrics-listen [::]:9910: ", "--admin-listen 127.0.0.1"],
        );
        check_mistake(
            "--listen=127.0.0.1:80,127.0.0.1:80",
            &["--listen 127.0.0.1:80: ", "--listen 127.0.0.1:80 has"],
        );
        good("--listen=127.0.0.1:0 --admin-listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0");
        good("--listen=127.0.0.1:9910 --admin-listen=off");
        good("--metrics-listen=10.0.0.1:9910");
    }

    #[test]
    fn a_place_that_cannot_be_meant_is_refused() {
        check_mistake(
            "--admin-listen=0.0.0.0:9910",
            &["--admin-listen 0.0.0.0:9910: ", "loopback", "or off"],
        );
        check_mistake("--admin-socket=admin.sock", &["--admin-socket \"admin.sock\": ", "absolute path"]);
        check_mistake(&format!("--admin-socket=/{}", "x".repeat(96)), &["--admin-socket", "96 bytes"]);
        check_mistake("--handover-socket=h.sock", &["--handover-socket \"h.sock\": ", "absolute path"]);
        check_mistake(
            "--handover-socket=/run/rolecall/admin.sock",
            &["--handover-socket \"/run/rolecall/admin.sock\": ", "--admin-socket"],
        );
        check_mistake(
            "--pods-dir=pods",
            &["--pods-dir \"pods\": ", "absolute path", "/var/lib/kubelet/pods"],
        );
        check_mistake("--audience=", &["--audience \"\": ", "sts.amazonaws.com"]);
        check_mistake(
            "--token-issuer=https://a,b\u{1}",
            &["--token-issuer \"b\\u{1}\": ", "leave the flag out"],
        );
        check_mistake("--session-name=", &["--session-name \"\": ", "{namespace}.{pod}"]);
    }

    #[test]
    fn only_addresses_of_our_own_kind_are_put_on_the_node() {
        let put = |line| good(line).addresses_to_put();
        let both: [IpAddr; 2] = ["169.254.170.23".parse().unwrap(), "fd00:ec2::23".parse().unwrap()];
        assert_eq!(put(""), both);
        assert_eq!(put("--manage-addresses=off"), [] as [IpAddr; 0]);
        assert_eq!(put("--listen=127.0.0.1:0,[::1]:0,0.0.0.0:1,10.0.0.1:2"), [] as [IpAddr; 0]);
        assert_eq!(put("--listen=169.254.170.23:80,169.254.170.23:81"), both[..1]);
    }

    #[test]
    fn an_exemption_that_can_have_no_effect_is_refused() {
        check_mistake(
            "--metadata-firewall=off --metadata-exempt=a/b",
            &["--metadata-exempt a/b: ", "--metadata-firewall is off"],
        );
        check_mistake(
            "--iptables=/usr/sbin/xtables",
            &["--iptables \"/usr/sbin/xtables\": ", "iptables-legacy"],
        );
    }

    #[test]
    fn a_taint_is_named_by_its_key_alone() {
        check_mistake(
            "--startup-taint=rolecall.dev/agent-not-ready:NoSchedule",
            &[
                "--startup-taint \"rolecall.dev/agent-not-ready:NoSchedule\": ",
                "key",
                "rolecall.dev/agent-not-ready",
            ],
        );
        assert_eq!(good("").node.startup_taint, None);
    }

    #[test]
    fn an_empty_optional_value_counts_as_absent() {
        let config = good(
            "--token-issuer= --sts-endpoint= --cluster-name= --metadata-exempt= --startup-taint= --handover-socket=",
        );
        assert_eq!(config, good(""));
    }

    #[test]
    fn a_node_name_is_one_and_is_there() {
        let mistakes = parse("--region=eu-west-1", Environment::default()).unwrap_err();
        check_parts(&mistakes[0], &["--node-name is missing: ", "spec.nodeName", "ROLECALL_NODE_NAME"]);
        for bad in ["Node", "a,spec.nodeName=b", "a/b", &"n".repeat(254)] {
            let mistakes =
                parse(&format!("--region=x --node-name={bad}"), Environment::default()).unwrap_err();
            check_parts(&mistakes[0], &["--node-name", bad, "kubectl get nodes"]);
        }
    }

    #[test]
    fn sts_is_reached_by_region_or_endpoint() {
        let missing = parse("--node-name=n", Environment::default()).unwrap_err();
        check_parts(&missing[0], &["--region is missing: ", "ROLECALL_REGION", "AWS_REGION"]);
        for bad in ["EU-WEST-1", "eu.evil", "eu/", "-eu", &"e".repeat(64)] {
            let mistakes =
                parse(&format!("--node-name=n --region={bad}"), Environment::default()).unwrap_err();
            check_parts(&mistakes[0], &["--region", bad, "eu-west-1"]);
        }
    }

    #[test]
    fn the_region_is_the_flags_before_aws_region() {
        let environment = Environment { aws_region: Some("us-east-1".to_owned()), ..Environment::default() };
        let region = |line| parse(line, environment.clone()).unwrap().sts.region;
        assert_eq!(region("--node-name=n").as_deref(), Some("us-east-1"));
        assert_eq!(region("--node-name=n --region=").as_deref(), Some("us-east-1"));
        assert_eq!(region(ENOUGH).as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn an_sts_endpoint_is_a_plain_url() {
        check_mistake(
            "--sts-endpoint=sts.local",
            &["--sts-endpoint \"sts.local\": ", "relative URL", "https://sts."],
        );
        check_mistake("--sts-endpoint=ftp://sts", &["--sts-endpoint \"ftp://sts\": ", "https://sts."]);
        check_mistake("--sts-endpoint=https://sts/?a=b", &["--sts-endpoint", "https://sts."]);
        check_mistake(
            "--sts-endpoint=https://sts --sts-fips",
            &["--sts-fips true: ", "drop it or --sts-endpoint"],
        );
        check_mistake("--sts-endpoint=https://sts --sts-dual-stack", &["--sts-dual-stack true: "]);
        check_mistake("--sts-connect-timeout=21s", &["--sts-connect-timeout 21s: ", "--sts-attempt-timeout"]);
        check_mistake("--sts-attempt-timeout=3m", &["--sts-attempt-timeout 180s: ", "1s to 2m"]);
        check_mistake("--sts-hedge-after=0", &["--sts-hedge-after 0ns: ", "3s"]);
        let alone =
            parse("--node-name=n --sts-endpoint=http://127.0.0.1:4566", Environment::default()).unwrap();
        assert_eq!(alone.sts.region, None);
    }

    #[test]
    fn a_limit_that_defeats_another_is_refused() {
        check_mistake("--max-connections=100 --max-waiting-per-pod=9", &["--max-connections-per-pod 128: "]);
        check_mistake(
            "--max-waiting-per-pod=129",
            &["--max-waiting-per-pod 129: ", "--max-connections-per-pod"],
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes =
            parse("--hold=2s --pods-dir=x --session-duration=1s", Environment::default()).unwrap_err();
        let flags: Vec<&str> = mistakes.iter().map(|mistake| mistake.flag).collect();
        assert_eq!(flags, ["--node-name", "--pods-dir", "--session-duration", "--region", "--hold"]);
    }

    #[test]
    fn a_password_is_in_no_message_and_in_no_setting() {
        let secret = "hunter2";
        let environment =
            |url: &str| Environment { https_proxy: Some(url.to_owned()), ..Environment::default() };
        let config = parse(ENOUGH, environment("http://joe:hunter2@proxy.example:3128")).unwrap();
        let proxy = config.sts.proxy.https.as_ref().unwrap();
        assert_eq!(proxy.expose().password(), Some(secret));
        assert_eq!(proxy.to_string(), "http://…@proxy.example:3128");
        for shown in
            [format!("{config}"), format!("{config:?}"), format!("{:?}", environment("http://j:hunter2@p"))]
        {
            assert!(!shown.contains(secret), "{shown}");
        }
        let mistakes = parse(ENOUGH, environment("socks5://joe:hunter2@proxy.example")).unwrap_err();
        check_parts(&mistakes[0], &["HTTPS_PROXY \"proxy.example\": ", "http://proxy.example:3128", "unset"]);
        check_mistake(
            "--sts-endpoint=https://joe:hunter2@sts",
            &["--sts-endpoint with a user name: ", "before the @"],
        );
    }

    #[test]
    fn a_proxy_without_a_scheme_is_an_http_proxy() {
        let environment = Environment { http_proxy: Some("proxy:3128".to_owned()), ..Environment::default() };
        let config = parse(ENOUGH, environment).unwrap();
        assert_eq!(config.sts.proxy.http.unwrap().expose().as_str(), "http://proxy:3128/");
    }

    #[test]
    fn what_weakens_the_daemon_is_said_at_the_start() {
        assert_eq!(good("").warnings(), [""; 0]);
        assert_eq!(good("--sts-endpoint=http://[::1]:4566").warnings(), [""; 0]);
        assert!(good("--witness=token").warnings()[0].starts_with("--witness token: "));
        assert!(good("--metadata-exempt=a/*,*/*").warnings()[0].starts_with("--metadata-exempt */*: "));
        assert!(good("--sts-endpoint=http://10.0.0.1").warnings()[0].contains("unencrypted"));
    }

    #[test]
    fn the_settings_that_are_shown_bring_about_the_same_settings() {
        for line in [
            "",
            "--hold=0 --session-duration=90m --admin-listen=off --sts-fips --token-issuer=a,b --handover-socket=/h/h",
            "--events=off --startup-taint=rolecall.dev/agent-not-ready",
            "--manage-addresses=off --metadata-firewall=iptables --metadata-exempt=a/*,b/c --iptables=/x/iptables-nft",
        ] {
            let config = good(line);
            assert_eq!(parse(&config.to_string(), Environment::default()), Ok(config), "{line}");
        }
    }
}
