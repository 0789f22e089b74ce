//! Every metric of the documentation moves, and no other is there.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use rolecall_contract::annotation;
use serde_json::json;
use tokio::net::TcpSocket;

use super::harness::{Deployed, ROLE, Shim, Volume, fail, until};

/// Connections that the shim is allowed.
const PLACES: usize = 16;

const DOCUMENTATION: &str = include_str!("../../../docs/shim.md");

/// The metrics that the documentation's table names.
fn documented() -> BTreeSet<&'static str> {
    let (_, section) = DOCUMENTATION.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split([',', '`', ' ', '{']));
    names.filter(|name| name.starts_with("rolecall_shim_")).collect()
}

/// The metrics of a page that are not zero; of a histogram, its name.
fn moved(page: &str) -> BTreeSet<&str> {
    let sample = |line: &'_ str| -> bool {
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).is_some_and(|value| value != 0.0)
    };
    let lines = page.lines().filter(|line| !line.starts_with('#') && sample(line));
    let names = lines.filter_map(|line| line.split(['{', ' ']).next());
    names.map(|name| name.strip_suffix("_count").unwrap_or(name)).collect()
}

#[tokio::test]
async fn every_metric_of_the_documentation_moves_and_no_other_is_there() {
    let deployed = Deployed::new("measured").await;
    let identities = json!({"identities": [{"namespace": "elsewhere", "serviceAccount": "x"}]}).to_string();
    let mut volume = Volume::with(&[("config.json", &identities)]);
    let folder = tempfile::tempdir().unwrap();
    let (relay, kubeconfig) = deployed.relay(folder.path());
    let flags = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--watch-container-credentials-config={}", volume.path("config.json").display()),
        format!("--max-connections={PLACES}"),
    ];
    deployed.account_with("mapped", json!({})).await;
    let map = json!({"measured/mapped": {"RoleARN": ROLE}, "measured/wrong": {"RoleARN": 7}});
    deployed.bind(&map.to_string()).await;
    // Asked to nobody yet, so it runs without what the ConfigMap gives it.
    deployed.create("mapped").await.unwrap();
    let shim = Shim::start_with(&deployed, &[&flags[0], &flags[1], &flags[2]]).await;
    deployed.configure(&[shim.url()], fail).await;
    shim.ready().await;
    deployed.in_effect().await;
    let moves = async |name: &'static str| {
        until(&format!("{name} moves"), async || {
            shim.metrics().await.is_some_and(|page| moved(&page).contains(name))
        })
        .await;
    };
    moves("rolecall_shim_pods_not_injected").await;

    // A caller without TLS, and a configuration that leads to another page.
    let mut plain = TcpStream::connect(shim.socket()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // How it ends is its own affair.
    let _ = plain.read_to_end(&mut Vec::new());
    moves("rolecall_shim_handshake_errors_total").await;
    deployed.configure(&[shim.url().replace("/mutate", "/elsewhere")], fail).await;
    until("the API server asks for another page", async || deployed.try_out("orders").await.is_err()).await;
    moves("rolecall_shim_calls_unanswered_total").await;
    deployed.configure(&[shim.url()], fail).await;
    deployed.in_effect().await;

    // The API server is silent: a ServiceAccount stays unknown.
    relay.pause();
    deployed.account_with("late", json!({annotation::ROLE_ARN: ROLE})).await;
    deployed.try_out("late").await.unwrap();
    relay.resume();
    moves("rolecall_shim_service_accounts_missing_total").await;
    // Then it is away: every watch ends.
    relay.lead_to(&[]);
    relay.cut();
    for name in [
        "rolecall_shim_service_account_watch_errors_total",
        "rolecall_shim_config_map_watch_errors_total",
        "rolecall_shim_certificate_errors_total",
        "rolecall_shim_missed_injection_errors_total",
    ] {
        moves(name).await;
    }
    // The file of identities is wrong.
    volume.fill(&[("config.json", "{\"identities\":[{")]);
    moves("rolecall_shim_identities_errors_total").await;

    // No file descriptor is left, for as long as it takes to say so.
    let limit = |soft: &str| {
        let pid = shim.process.id().to_string();
        let limit = format!("--nofile={soft}:");
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap();
        assert!(status.success());
    };
    limit("3");
    let waiting = TcpStream::connect(shim.socket()).unwrap();
    until("nothing can be accepted", async || shim.has_logged("cannot accept a connection")).await;
    limit("256");
    moves("rolecall_shim_accept_errors_total").await;
    drop(waiting);
    // The API server calls again, by a connection that stays open.
    deployed.try_out("orders").await.unwrap();

    // One peer wants more connections than there are, and another is not kept out.
    let _greedy: Vec<_> = (0..=PLACES).map(|_| TcpStream::connect(shim.socket()).unwrap()).collect();
    moves("rolecall_shim_connections_refused_total").await;
    let other = TcpSocket::new_v4().unwrap();
    other.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let _other = other.connect(shim.socket()).await.unwrap();
    moves("rolecall_shim_connections_displaced_total").await;

    let page = shim.metrics().await.unwrap();
    let documented = documented();
    let still: Vec<_> = documented.difference(&moved(&page)).copied().collect();
    assert_eq!(still, [""; 0], "of {} metrics, these have not moved:\n{page}", documented.len());
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE rolecall_shim_"));
    for kind in kinds {
        let (name, kind) = kind.split_once(' ').unwrap();
        let name = format!("rolecall_shim_{name}{}", if kind == "counter" { "_total" } else { "" });
        assert!(documented.contains(name.as_str()), "{name} is not in docs/shim.md");
    }
}
