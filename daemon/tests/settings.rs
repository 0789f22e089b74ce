//! Flags, variables and exit codes of the real binary.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::{Command, Output};

use rolecall_daemon::args;

/// Every flag with a value that is not its default, in the order of the help, and how it is shown.
const ALL: [(&str, &str, &str); 45] = [
    ("node-name", "node-1.example", "node-1.example"),
    ("kubeconfig", "/etc/kubeconfig", "/etc/kubeconfig"),
    ("pods-dir", "/data/pods", "/data/pods"),
    ("events", "off", "off"),
    ("startup-taint", "example.com/not-ready", "example.com/not-ready"),
    ("audience", "aws.example", "aws.example"),
    ("token-issuer", "https://old.example,https://new.example", "https://old.example,https://new.example"),
    ("witness", "token", "token"),
    ("region", "eu-west-1", "eu-west-1"),
    // Beside the choices of a region's endpoint, so it is shown to be read by itself.
    ("sts-endpoint", "", ""),
    ("sts-fips", "true", "true"),
    ("sts-dual-stack", "yes", "true"),
    ("sts-concurrency", "3", "3"),
    ("sts-burst", "2", "2"),
    ("sts-connect-timeout", "2s", "2s"),
    ("sts-attempt-timeout", "9s", "9s"),
    ("sts-hedge-after", "4s", "4s"),
    ("session-duration", "1h30m", "5400s"),
    ("session-name", "x-{pod}", "x-{pod}"),
    ("cluster-name", "blue", "blue"),
    ("max-roles-per-pod", "5", "5"),
    ("listen", "127.0.0.1:8080,[::1]:8081", "127.0.0.1:8080,[::1]:8081"),
    ("manage-addresses", "off", "off"),
    ("role-in-path", "refuse", "refuse"),
    ("hold", "600ms", "600ms"),
    ("slow-answer", "hold", "hold"),
    ("drip-interval", "300ms", "300ms"),
    ("give-up-after", "19s", "19s"),
    ("caller-wait", "6s", "6s"),
    ("header-timeout", "7s", "7s"),
    ("max-requests-per-second-per-pod", "11", "11"),
    ("max-connections-per-pod", "12", "12"),
    ("max-waiting-per-pod", "8", "8"),
    ("max-connections", "1000", "1000"),
    ("metadata-firewall", "iptables", "iptables"),
    ("metadata-exempt", "kube-system/aws-*,*/agent", "kube-system/aws-*,*/agent"),
    ("nft", "/sbin/nft", "/sbin/nft"),
    ("iptables", "iptables-legacy", "iptables-legacy"),
    ("admin-listen", "[::1]:1", "[::1]:1"),
    ("admin-socket", "/tmp/a.sock", "/tmp/a.sock"),
    ("metrics-listen", "off", "off"),
    ("handover-socket", "/tmp/h.sock", "/tmp/h.sock"),
    ("drain-deadline", "10s", "10s"),
    ("log-format", "json", "json"),
    ("log-level", "debug,kube=off", "debug,kube=off"),
];

const DEFAULTS: &str = "\
--node-name=n
--pods-dir=/var/lib/kubelet/pods
--events=on
--audience=sts.amazonaws.com
--witness=token+address
--region=eu-west-1
--sts-fips=false
--sts-dual-stack=false
--sts-concurrency=512
--sts-burst=16
--sts-connect-timeout=1s
--sts-attempt-timeout=20s
--sts-hedge-after=3s
--session-duration=3600s
--session-name={namespace}.{pod}
--max-roles-per-pod=16
--listen=169.254.170.23:80,[fd00:ec2::23]:80
--manage-addresses=on
--role-in-path=allow
--hold=500ms
--slow-answer=drip
--drip-interval=400ms
--give-up-after=20s
--caller-wait=5s
--header-timeout=10s
--max-requests-per-second-per-pod=100
--max-connections-per-pod=128
--max-waiting-per-pod=128
--max-connections=16384
--metadata-firewall=nftables
--nft=nft
--iptables=iptables
--admin-listen=127.0.0.1:9910
--admin-socket=/run/rolecall/admin.sock
--metrics-listen=127.0.0.1:9911
--drain-deadline=25s
--log-format=text
--log-level=info
";

/// The binary with nothing but the given environment.
fn daemon<'a>(flags: impl IntoIterator<Item = &'a str>, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rolecall-daemon"))
        .args(flags)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn variable(flag: &str) -> String {
    format!("ROLECALL_{}", flag.to_uppercase().replace('-', "_"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// That the daemon ends with `EX_USAGE` and a message that has all of `parts`.
#[track_caller]
fn check_usage_error(flags: &[&str], variables: &[(&str, &str)], parts: &[&str]) {
    let output = daemon(flags.iter().copied(), variables);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(64), "{message}");
    assert_eq!(stdout(&output), "");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
}

#[test]
fn every_flag_is_in_the_table() {
    let listed: Vec<&str> = ALL.iter().map(|(flag, ..)| *flag).collect();
    let command = args::command();
    let mut flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    flags.retain(|flag| *flag != "check-config");
    assert_eq!(listed, flags);
}

#[test]
fn a_flag_and_its_variable_say_the_same() {
    let given = || ALL.iter().filter(|(_, value, _)| !value.is_empty());
    let expect: String = given().map(|(flag, _, shown)| format!("--{flag}={shown}\n")).collect();

    let flags: Vec<String> = given().map(|(flag, value, _)| format!("--{flag}={value}")).collect();
    let by_flag = daemon(flags.iter().map(String::as_str).chain(["--check-config"]), &[]);
    assert_eq!(stdout(&by_flag), expect, "{}", stderr(&by_flag));

    let names: Vec<String> = given().map(|(flag, ..)| variable(flag)).collect();
    let mut variables: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(given().map(|(_, value, _)| *value)).collect();
    variables.push(("ROLECALL_CHECK_CONFIG", "true"));
    let by_variable = daemon([], &variables);
    assert_eq!(stdout(&by_variable), expect, "{}", stderr(&by_variable));

    for (flags, variables) in [
        (&["--check-config", "--node-name=n", "--sts-endpoint=http://127.0.0.1:1"][..], &[][..]),
        (&["--check-config", "--node-name=n"][..], &[("ROLECALL_STS_ENDPOINT", "http://127.0.0.1:1")][..]),
    ] {
        let output = daemon(flags.iter().copied(), variables);
        assert!(stdout(&output).contains("--sts-endpoint=http://127.0.0.1:1/\n"), "{}", stderr(&output));
    }
}

#[test]
fn a_flag_wins_over_its_variable() {
    let variables = [("ROLECALL_NODE_NAME", "n"), ("ROLECALL_REGION", "x"), ("ROLECALL_STS_FIPS", "true")];
    let output = daemon(["--check-config", "--region=y", "--sts-fips=false"], &variables);
    assert!(stdout(&output).contains("--region=y\n--sts-fips=false\n"), "{}", stderr(&output));
}

#[test]
fn the_defaults_are_these() {
    let output = daemon(["--check-config"], &[("ROLECALL_NODE_NAME", "n"), ("AWS_REGION", "eu-west-1")]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), DEFAULTS));
    assert_eq!(stderr(&output), "");
}

#[test]
fn proxies_come_from_the_environment_and_keep_their_password() {
    let variables = [
        ("AWS_REGION", "eu-west-1"),
        ("https_proxy", "http://joe:hunter2@proxy.example:3128"),
        ("NO_PROXY", "10.0.0.0/8,.svc"),
    ];
    let output = daemon(["--check-config", "--node-name=n"], &variables);
    assert!(
        stdout(&output).ends_with("HTTPS_PROXY=http://…@proxy.example:3128\nNO_PROXY=10.0.0.0/8,.svc\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn a_bad_value_exits_64_naming_flag_value_and_remedy() {
    let enough = [("ROLECALL_NODE_NAME", "n"), ("AWS_REGION", "eu-west-1")];
    // Found by the parser of the flag.
    check_usage_error(&["--hold=soon"], &enough, &["--hold", "soon", "700ms"]);
    check_usage_error(&[], &[("ROLECALL_MAX_CONNECTIONS", "many")], &["--max-connections", "many"]);
    check_usage_error(&["--no-such-flag"], &enough, &["--no-such-flag"]);
    // Found by comparing it with what it means.
    check_usage_error(
        &["--hold=1200ms"],
        &enough,
        &["error: --hold 1.2s: ", "less, such as 500ms", "--help"],
    );
    check_usage_error(
        &[],
        &[("ROLECALL_REGION", "x")],
        &["error: --node-name is missing: ", "spec.nodeName"],
    );
    // Of a command.
    check_usage_error(&["log-level", "inof"], &[], &["inof", "write a level"]);
    check_usage_error(&["probe", "well"], &[], &["well", "live"]);
    // Both at once, and a check alone.
    check_usage_error(&["--hold=1200ms", "--check-config"], &[], &["--hold 1.2s", "--node-name", "--region"]);
}

#[test]
fn help_and_version_are_no_errors() {
    for (flag, part) in
        [("--help", "Usage: rolecall-daemon"), ("-h", "--node-name"), ("--version", "rolecall-daemon 0.")]
    {
        let output = daemon([flag], &[]);
        assert_eq!(output.status.code(), Some(0), "{flag}");
        assert!(stdout(&output).contains(part), "{flag}: {}", stdout(&output));
    }
}
