//! The metrics that alerts and documentation name are those that the programs have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use crate::manifests::{REGION, deploy, helm, text_of};
use kube::{Client, Config};
use rolecall_e2e::{Process, Scratch, binary, free_port};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn every_metric_that_is_named_is_there() {
    let pages = pages().await;
    let (mut known, mut samples) = (BTreeSet::new(), Vec::new());
    for line in pages.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap();
            known.insert(if kind == "counter" { format!("{name}_total") } else { name.to_owned() });
        } else if !line.starts_with('#') {
            known.insert(line.split(['{', ' ']).next().unwrap().to_owned());
            samples.push(line);
        }
    }

    let rule = helm(&[REGION, "metrics.alerts=true"]).remove("PrometheusRule rolecall").unwrap();
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let alerts = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let operations = document("operations.md");
    for alert in alerts {
        let (name, expression) = (text_of(&alert["alert"]), text_of(&alert["expr"]));
        assert!(operations.contains(&format!("`{name}`")), "{name} is not in the documentation");
        assert!(!names(expression).is_empty(), "{name} asks nothing of us");
        for (metric, labels) in selectors(expression) {
            // Before its first sample `increase` sees no increase, so each has to be there from the start.
            assert!(samples.iter().any(|line| is_sample_of(line, metric)), "{name}: {metric} has no sample");
            for (label, values) in labels {
                for value in values.split('|') {
                    let sought = format!("{label}=\"{value}\"");
                    let found =
                        samples.iter().any(|line| is_sample_of(line, metric) && line.contains(&sought));
                    assert!(found, "{name}: {metric} has no {sought}");
                }
            }
        }
    }
    for file in ["operations.md", "shim.md", "security.md"] {
        for name in names(&document(file)) {
            assert!(known.contains(name), "{file}: there is no {name}");
        }
    }
}

/// What both programs show of themselves beside an API server that is away.
async fn pages() -> String {
    let scratch = Scratch::new("metrics").unwrap();
    let nowhere = format!("https://127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST).unwrap());
    let kubeconfig = scratch.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": nowhere}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let identities = scratch.path().join("identities");
    std::fs::write(&identities, r#"{"identities":[]}"#).unwrap();
    let endpoint = format!("127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST).unwrap());
    let daemon = [
        "--node-name=node-1",
        "--region=us-east-1",
        "--metadata-firewall=off",
        "--manage-addresses=off",
        "--startup-taint=rolecall.dev/agent-not-ready",
        &format!("--listen={endpoint}"),
    ];
    let shim = [
        "--namespace=default",
        "--watch-config-map",
        &format!("--watch-container-credentials-config={}", identities.display()),
        &format!("--listen=127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST).unwrap()),
    ];
    // The codes of refusals show only with the first refusal of each.
    let refused = async || assert!(get(&endpoint, "/nothing").await.is_err());
    let first = page(&scratch, "rolecall-daemon", &daemon, &kubeconfig, refused).await;
    first + &page(&scratch, "rolecall-shim", &shim, &kubeconfig, async || {}).await
}

/// The metrics of a program after something was done to it.
async fn page(
    scratch: &Scratch,
    program: &str,
    flags: &[&str],
    kubeconfig: &Path,
    act: impl AsyncFnOnce(),
) -> String {
    let address = format!("127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST).unwrap());
    let mut command = Process::command(binary(program).unwrap());
    command.args(flags).args(["--admin-listen=off", "--metrics-listen", &address]);
    command.arg("--kubeconfig").arg(kubeconfig);
    command.arg("--admin-socket").arg(scratch.path().join(format!("{program}.sock")));
    let process = Process::spawn(program, command, scratch.path()).unwrap();
    process.wait_until_ready(LIMIT, async || get(&address, "/metrics").await.is_ok()).await.unwrap();
    act().await;
    get(&address, "/metrics").await.unwrap()
}

/// The body of a successful answer.
async fn get(address: &str, path: &str) -> kube::Result<String> {
    let mut config = Config::new(format!("http://{address}").parse().unwrap());
    config.proxy_url = None;
    Client::try_from(config)?.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await
}

fn document(file: &str) -> String {
    std::fs::read_to_string(deploy("../docs").join(file)).unwrap()
}

/// Every name of a metric of ours in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    // The crates are named alike.
    let crates = ["rolecall_daemon", "rolecall_shim"];
    words.filter(|word| word.starts_with("rolecall_") && !crates.contains(word)).collect()
}

/// Each metric of an expression with the labels that it selects by.
fn selectors(expression: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let found = names(expression).into_iter().flat_map(|name| {
        expression.match_indices(name).map(move |(at, _)| (name, &expression[at + name.len()..]))
    });
    let selectors = found.map(|(name, rest)| {
        let inside = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let labels = inside.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (label, value) = label.split_once('=').unwrap();
            (label, value.trim_start_matches('~').trim_matches('"'))
        });
        (name, labels.collect())
    });
    selectors.collect()
}

fn is_sample_of(line: &str, metric: &str) -> bool {
    line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
}
