//! Uninstalling as the documentation has it leaves nothing: not on a node, and not in the API.

use anyhow::{Context, Result, ensure};
use rolecall_e2e::cluster::Node;
use serde_json::Value;

use crate::report::{Figure, Report};
use crate::world::{ROLECALL, World};

/// What a node may have of Rolecall afterwards: what the kubelet made for the cleanup itself, without content.
const EMPTY_FOLDER: &str = "/run/rolecall-handover";

pub(crate) async fn run(world: &World, report: &mut Report) -> Result<()> {
    for node in world.cluster.nodes() {
        let found = traces(node)?;
        for part in ["nft", "ip", "file", "process"] {
            ensure!(
                found.iter().any(|line| line.starts_with(part)),
                "{} has no {part} of Rolecall, so this would show nothing: {found:?}",
                node.name()
            );
        }
    }

    world.kubectl(&["delete", "mutatingwebhookconfiguration", "rolecall-shim"])?;
    world.clean_up_nodes().await?;
    for node in world.cluster.nodes() {
        let mut left = traces(node)?;
        // The cleanup itself, which waits to be deleted.
        left.retain(|line| !line.starts_with("process"));
        ensure!(left.is_empty(), "{} still has {}", node.name(), left.join("; "));
    }

    world.uninstall()?;
    let kinds = world.kubectl(&["api-resources", "--verbs=list", "--output=name"])?;
    // Events tell of what has been; the API server drops them after an hour.
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let left = world.kubectl(&["get", &kinds.join(","), "--all-namespaces", "--output=name"])?;
    let left: Vec<&str> = left.lines().filter(|name| name.contains(ROLECALL)).collect();
    ensure!(left.is_empty(), "the API still has {}", left.join(", "));
    let nodes: Value = serde_json::from_str(&world.kubectl(&["get", "nodes", "--output=json"])?)?;
    for node in nodes["items"].as_array().context("a list of nodes")? {
        // What it is and is to be; its status has the names of images, which the kubelet removes in its own time.
        for part in ["metadata", "spec"] {
            let text = node[part].to_string();
            ensure!(
                !text.contains("rolecall"),
                "a Node still has something of Rolecall in its {part}: {text}"
            );
        }
    }
    for node in world.cluster.nodes() {
        let left = traces(node)?;
        ensure!(left.is_empty(), "{} still has {}", node.name(), left.join("; "));
    }
    report.add(Figure::new(
        "uninstalled, with `deploy/kustomize/cleanup`",
        format!(
            "no object in the API; no address, rule, file or process on either node (`{EMPTY_FOLDER}` is empty)"
        ),
    ));
    Ok(())
}

/// Everything on a node that is Rolecall's, each line with its kind.
fn traces(node: &Node) -> Result<Vec<String>> {
    const LOOK: &str = "nft list ruleset | grep -iE 'rolecall|169\\.254\\.169\\.254' | sed 's/^/nft /'; \
         ip -o addr show | grep -E '169\\.254\\.170|fd00:ec2::23' | sed 's/^/ip /'; \
         find /run/rolecall* /var/lib/rolecall* -mindepth 1 | sed 's/^/file /'; \
         pgrep -l rolecall | sed 's/^/process /'";
    let script = format!("({LOOK}) 2>/dev/null; true");
    let found = node.run(["sh", "-c", &script]).context("look for traces")?;
    Ok(found.lines().map(|line| line.trim().to_owned()).collect())
}
