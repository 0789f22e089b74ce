//! What an operator can choose beside the defaults.

use std::future;

use rolecall_daemon::{
    app::App,
    args,
    config::Config,
    node::{Netlink, NodeAddresses},
};
use rolecall_process::telemetry::{self, chain};
use rolecall_sandbox::world::World;

use super::{
    app::{TestApp, pod},
    client::Client,
};

const OWN: &str = "/v1/credentials";

#[tokio::test]
async fn with_the_token_as_the_only_witness_the_address_says_nothing() {
    let app = TestApp::with(World::start().await.unwrap(), "--witness=token").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    let free = app.world.pod(pod("free").token_optional().ip("127.0.0.3")).unwrap();
    let token = orders.token().unwrap();
    for from in ["127.0.0.2", "127.0.0.3", "127.0.0.9", "127.0.0.1"] {
        assert_eq!(app.get(from, OWN, Some(&token)).await.outcome(), "200 orders", "{from}");
    }
    assert_eq!(app.get("127.0.0.3", OWN, None).await.outcome(), "401 token_required");
    let expired = app.world.issuer.mint(&free.claims().expired());
    assert_eq!(app.get("127.0.0.3", OWN, Some(&expired)).await.outcome(), "403 token_expired");
    assert_eq!(app.metric("rolecall_witness_info{witness=\"token\"}").await, 1.0);
}

#[tokio::test]
async fn every_listen_address_serves() {
    let world = World::start().await.unwrap();
    let app = TestApp::with(world, "--listen=127.0.0.1:0 --listen=[::1]:0").await;
    let orders = app.world.pod(pod("orders").ip("127.0.0.2").ip("::1")).unwrap();
    let token = orders.token().unwrap();
    let [.., v6] = app.app.endpoint_addresses[..] else { panic!("no address") };
    assert!(v6.is_ipv6());
    assert_eq!(Client::connect("::1", v6).await.get(OWN, Some(&token)).await.outcome(), "200 orders");
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

#[tokio::test]
async fn a_family_that_the_node_does_not_have_is_left_out() {
    let world = World::start().await.unwrap();
    // A documentation address is on no node.
    let app = TestApp::with(world, "--listen=[2001:db8::1]:80").await;
    assert_eq!(app.app.endpoint_addresses.len(), 1);
    let orders = app.world.pod(pod("orders").ip("127.0.0.2")).unwrap();
    assert_eq!(app.ask("127.0.0.2", &orders).await, "200 orders");
}

async fn start_error(listen: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let kubeconfig = scratch.path().join("kubeconfig");
    std::fs::write(&kubeconfig, World::start().await.unwrap().cluster.kubeconfig()).unwrap();
    let line = format!(
        "rolecall-daemon --node-name=n --region=eu-west-1 --listen={listen} --kubeconfig={} --admin-socket={} \
         --admin-listen=off --metrics-listen=off --metadata-firewall=off",
        kubeconfig.display(),
        scratch.path().join("admin.sock").display(),
    );
    let args = args::parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
    let config = Config::try_from(args.run).unwrap();
    let (_, log) = telemetry::with_writer(&config.log, std::io::sink);
    match App::start(config, Netlink::start().unwrap(), NodeAddresses::fixed([]), future::pending(), log)
        .await
    {
        Ok(_) => panic!("it started"),
        Err(error) => chain(&error).to_string(),
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_what_to_do() {
    let none = start_error("192.0.2.1:80").await;
    assert!(none.contains("--listen 192.0.2.1:80") && none.contains("on an interface of the node"), "{none}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let error = start_error(&taken.to_string()).await;
    assert!(error.contains(&taken.to_string()) && error.contains("EKS Pod Identity Agent"), "{error}");
    drop(holder);
}
