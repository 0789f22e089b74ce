//! Uninstalling leaves nothing: not in the API, and after the daemon's cleanup not on a node.

use anyhow::{Context, Result, ensure};
use rolecall_e2e::cluster::Node;
use serde_json::json;

use crate::pods::probe;
use crate::report::{Figure, Report};
use crate::world::{DAEMON, World};

/// Where nothing of Rolecall's is left that could be in the way.
const NAMESPACE: &str = "default";

pub(crate) async fn run(world: &World, report: &mut Report) -> Result<()> {
    for node in world.cluster.nodes() {
        ensure!(
            !traces(node)?.is_empty(),
            "{} has nothing of Rolecall: this would show nothing",
            node.name()
        );
    }
    world.uninstall()?;
    let left = world.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,daemonsets,deployments,pods,services,secrets",
        "--all-namespaces",
        "--output=name",
    ])?;
    let left: Vec<&str> = left.lines().filter(|name| name.contains("rolecall")).collect();
    ensure!(left.is_empty(), "the API still has {}", left.join(", "));

    let pods = world.pods(NAMESPACE);
    for node in world.cluster.nodes() {
        let name = format!("cleanup-{}", node.name());
        let mut pod = probe(&name, "default", &[]);
        pod["spec"]["nodeName"] = json!(node.name());
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["containers"][0] = json!({
            "name": "cleanup",
            "image": DAEMON,
            "imagePullPolicy": "Never",
            "command": ["rolecall-daemon", "cleanup"],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}},
        });
        pods.create(&pod).await?;
        let ended = pods.ended(&name).await?;
        ensure!(ended.exit_code == 0, "cleanup on {}: {:?}", node.name(), ended.message);
        let left = traces(node)?;
        ensure!(left.is_empty(), "{} still has {}", node.name(), left.join("; "));
    }
    pods.clear().await?;
    report.add(Figure::new(
        "uninstalled and cleaned up",
        "no object in the API; no address, rule, file or process on either node",
    ));
    Ok(())
}

/// Everything on a node that is Rolecall's.
fn traces(node: &Node) -> Result<Vec<String>> {
    const LOOK: &str = "nft list ruleset | grep -i rolecall; ip -o addr show | grep -E '169\\.254\\.170|fd00:ec2::23'; \
         ls -d /run/rolecall* /var/lib/rolecall*; pgrep -l rolecall";
    let script = format!("({LOOK}) 2>/dev/null; true");
    let found = node.run(["sh", "-c", &script]).context("look for traces")?;
    Ok(found.lines().map(|line| line.trim().to_owned()).collect())
}
