//! The wrong pod never gets credentials: not with a stolen token, a reused address, the node's or a forged one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::pods::{Answer, address, probe};
use crate::report::{Figure, Report};
use crate::world::{NAMESPACE, World, counted};

const TOKEN_FILE: &str = "/var/run/secrets/rolecall.dev/serviceaccount/token";

/// How often an address is given to another pod right after its pod was deleted.
const REUSES: usize = 10;

pub(crate) async fn run(world: &World, report: &mut Report) -> Result<()> {
    for name in ["victim", "thief"] {
        world.service_account(NAMESPACE, name).await?;
    }
    stolen_token(world, report).await?;
    host_network(world, report).await?;
    forged_address(world, report).await?;
    reused_address(world, report).await?;
    world.pods(NAMESPACE).clear().await
}

/// The token of a pod, presented by a pod of the same node and by a pod of the other node.
async fn stolen_token(world: &World, report: &mut Report) -> Result<()> {
    let token = start_victim(world).await?;
    // Once it has its credentials, nobody has a reason to show its token to STS.
    let own = ask(world, "victim", &[])?;
    ensure!(own.is_success(), "the victim does not get its own credentials: {own:?}");
    let shown = shown_to_sts(world, "victim");
    let mut refused = Vec::new();
    // The daemon of the other node refuses a token of another node before it looks whose it is.
    for (name, node, code, counter) in [
        ("thief", 0, "wrong_pod", "rolecall_wrong_pod_requests_total"),
        ("far-thief", 1, "token_invalid", r#"rolecall_refusals_total{code="token_invalid"}"#),
    ] {
        let node = &world.cluster.nodes()[node];
        start(world, name, "thief", node.name()).await?;
        let own = ask(world, name, &[])?;
        ensure!(own.is_success(), "{name} does not get its own credentials: {own:?}");
        let before = counted(node, counter)?;
        let answer = ask(world, name, &["--token", &token])?;
        ensure!(answer.status == 403 && answer.code == code, "{name} used a stolen token: {answer:?}");
        ensure!(before < counted(node, counter)?, "{} does not count the stolen token", node.name());
        ensure!(shown_to_sts(world, "victim") == shown, "STS was shown the token that {name} has stolen");
        refused.push(format!("{} {}", answer.status, answer.code));
        let answer = ask(world, name, &["--token-file", "/none", "--token", "none"])?;
        ensure!(answer.code == "token_invalid", "{name} used a false token: {answer:?}");
    }
    report.add(Figure::new(
        "a stolen token, from another pod of the node and from the other node",
        refused.join(", "),
    ));
    Ok(())
}

/// Pods on the host network share the node's address: nothing but their token says who they are.
async fn host_network(world: &World, report: &mut Report) -> Result<()> {
    let token = start_victim(world).await?;
    let mut pod = on("node-1", probe("host", "thief", &["wait"]));
    pod["spec"]["hostNetwork"] = json!(true);
    replace(world, "host", &pod).await?;
    let own = ask(world, "host", &[])?;
    let without = ask(world, "host", &["--token-file", ""])?;
    let stolen = ask(world, "host", &["--token", &token])?;
    ensure!(own.is_success(), "a pod on the host network does not get its own: {own:?}");
    ensure!(without.code == "host_network_needs_token", "without a token: {without:?}");
    ensure!(stolen.code == "wrong_pod", "with a stolen token: {stolen:?}");
    report.add(Figure::new(
        "a pod on the host network: its own token, none, a stolen one",
        format!("{}, {}, {}", own.code, without.code, stolen.code),
    ));
    Ok(())
}

/// A pod that takes its neighbour's address on the bridge, and is believed by it.
async fn forged_address(world: &World, report: &mut Report) -> Result<()> {
    start_victim(world).await?;
    let victim = address(&world.pods(NAMESPACE).running("victim").await?)?;
    let mut pod = on("node-1", probe("forger", "thief", &["wait"]));
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}});
    replace(world, "forger", &pod).await?;

    // Both believe to have it, and the bridge believes who spoke last.
    let _forging =
        world.spawn_kubectl(&["exec", "-n", NAMESPACE, "forger", "--", "/probe", "forge", &victim])?;
    let without = persist(world, "forger", &["--source", &victim, "--token-file", ""]).await?;
    let own = persist(world, "forger", &["--source", &victim]).await?;
    ensure!(without.code == "token_required", "as the victim, without a token: {without:?}");
    ensure!(own.code == "wrong_pod", "as the victim, with its own token: {own:?}");
    report.add(Figure::new(
        "a pod that forges its neighbour's address: without a token, with its own",
        format!("{}, {}", without.code, own.code),
    ));
    Ok(())
}

/// Pods that get the address of one that was deleted without grace: every other one asks in its first instruction,
/// after a pod whose container still lived.
async fn reused_address(world: &World, report: &mut Report) -> Result<()> {
    let pods = world.pods(NAMESPACE);
    pods.clear().await?;
    let mut wrong = Vec::new();
    let mut reused = 0;
    let mut last = String::new();
    for round in 0..REUSES {
        // Each with a role of its own, so that the key says whose it is.
        let lives_on = round % 2 == 0;
        let (service_account, name, does) = match lives_on {
            true => ("victim", format!("even-{round}"), "wait"),
            false => ("thief", format!("odd-{round}"), "once"),
        };
        pods.create(&on("node-1", probe(&name, service_account, &[does]))).await?;
        let answer: Answer = if lives_on {
            pods.running(&name).await?;
            ask(world, &name, &[])?
        } else {
            pods.outcome(&name).await?
        };
        let address = address(&pods.api().get(&name).await?)?;
        reused += usize::from(address == last);
        last = address;
        let session = world.sts.session(&answer.access_key_id).map(|session| session.session_name);
        if session.as_deref() != Some(&format!("{NAMESPACE}.{name}")) {
            wrong.push(format!("{name}: {answer:?}"));
        }
        pods.delete(&name, 0).await?;
        release(world, &last).await?;
    }
    ensure!(0 < reused, "no address was given to another pod: this shows nothing");
    ensure!(wrong.is_empty(), "pods without their own credentials: {}", wrong.join("; "));
    report.add(Figure::new(
        "pods one after the other, each deleted with grace 0, every other one while it runs",
        format!("{REUSES} of {REUSES} got their own credentials; {reused} had the address of the one before"),
    ));
    Ok(())
}

/// How often STS was shown a token of this ServiceAccount.
fn shown_to_sts(world: &World, service_account: &str) -> usize {
    let subject = format!("system:serviceaccount:{NAMESPACE}:{service_account}");
    world.sts.calls().iter().filter(|call| call.subject.as_ref() == Some(&subject)).count()
}

/// Waits until an address is free, and makes it the next that the first node gives away.
async fn release(world: &World, address: &str) -> Result<()> {
    let leases = "/var/lib/cni/networks/pods";
    let released = format!("test ! -e {leases}/{address} && rm -f {leases}/last_reserved_ip.*");
    let node = &world.cluster.nodes()[0];
    let waiting = async {
        while node.run(["sh", "-c", &released]).is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.context("the address is not released")
}

/// Starts the pod whose token is stolen, and steals it.
async fn start_victim(world: &World) -> Result<String> {
    start(world, "victim", "victim", "node-1").await?;
    let pod = world.pods(NAMESPACE).api().get("victim").await?;
    let uid = pod.metadata.uid.context("the pod has a uid")?;
    let path = format!(
        "/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/rolecall-token/{}",
        TOKEN_FILE.rsplit('/').next().unwrap_or_default()
    );
    Ok(world.cluster.nodes()[0].run(["cat", &path])?.trim().to_owned())
}

/// Starts a pod that waits for orders, unless it is there.
async fn start(world: &World, name: &str, service_account: &str, node: &str) -> Result<()> {
    replace(world, name, &on(node, probe(name, service_account, &["wait"]))).await
}

async fn replace(world: &World, name: &str, pod: &Value) -> Result<()> {
    let pods = world.pods(NAMESPACE);
    if pods.api().get_opt(name).await?.is_none() {
        pods.create(pod).await?;
    }
    pods.running(name).await.map(drop)
}

fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

/// What a pod that waits gets when it asks like this.
pub(crate) fn ask(world: &World, name: &str, arguments: &[&str]) -> Result<Answer> {
    let mut words = vec!["exec", "-n", NAMESPACE, name, "--", "/probe", "once", "--patience", "6s"];
    words.extend(arguments);
    let text = world.kubectl(&words)?;
    serde_json::from_str(text.trim()).with_context(|| format!("read what {name} says: {text}"))
}

/// Asks again while nothing comes back: the network may believe the true owner of the address.
async fn persist(world: &World, name: &str, arguments: &[&str]) -> Result<Answer> {
    let asking = async {
        loop {
            let answer = ask(world, name, arguments)?;
            if answer.status != 0 {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), asking).await.context("the forged address got no reply")?
}
