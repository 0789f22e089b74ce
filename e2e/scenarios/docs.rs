//! What a run has shown, written into the documentation.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use rolecall_e2e::tool;

use crate::report::Report;

const E2E: &str = "\
# Proof on a real cluster

This page is written by `make e2e`; its words are in `e2e/scenarios/docs.rs`.

One command starts a real cluster on one machine, installs Rolecall from `deploy/` and looks at it as operators and pods do:

```sh
make e2e                  # as root; everything, and this page
make e2e SCENARIO=race    # one scenario
make e2e-up               # the cluster with Rolecall, to look around
make e2e-down             # ends every such cluster, and removes what a killed one has left
```

| part | what it is |
|---|---|
| control plane | etcd, kube-apiserver, kube-controller-manager, kube-scheduler |
| two nodes | containerd, runc, kubelet and kube-proxy, in namespaces of their own for network, mounts, processes and IPC; a bridge for the pods, IPv4 and IPv6 |
| Rolecall | the images of `make image` and the manifests of `deploy/kustomize`, with the overlay `e2e/cluster/install` |
| STS | the sandbox's, which checks every token's signature, audience, issuer and subject against the role's trust policy, and every call's signature |
| pods | a probe that asks in its first instruction, once, and gives up after a second without a connection, or after one without a byte on it; and unmodified SDKs ([sdks.md](sdks.md)), of which four race beside the probes while STS takes 10 s |

Each race has all its pods at each latency of STS; a daemon that is late, and an update, meet about a quarter of the pods for each latency.
Pods that are there before the daemon wait in their container until it listens: the probes ask then, and the SDKs start then.
An SDK *had asked* if the kernel of its node had counted a connection of its pod by the time that STS answered; one that asks later finds its credentials there.

Kubernetes, etcd, containerd and the CNI plug-ins are built from pinned Go modules, once; runc is the distribution's; nothing is pulled from a registry of images.
The machine's own network, firewall, mounts and kernel settings are not touched: all of it lives in namespaces, which the kernel takes away with the first process in them, however that ends.
After this page is written, `make e2e` kills a cluster of one node, and another one together with what cleans up after it, and fails unless processes, mounts, networks, control groups, files and kernel settings of the machine are as before.

CI runs `make e2e-ci`: {ci}, with fewer pods.
";

const SDKS: &str = "\
# SDKs

This page is written by `make e2e`; its words are in `e2e/scenarios/docs.rs`.

Each SDK runs unmodified in a pod of its own, with its own defaults for timeouts, retries and caches, and is told where to ask by what the shim injects.
*What is injected* is what the API server says of its pod.
It calls `GetCallerIdentity`, and STS says that it is the role of its pod.
Arrow, in which the SDK for C++ is, calls nothing but S3: it lists the buckets of an S3 that names them after the caller.
The first call is made while STS takes 10 s to hand out credentials.
The clients start five seconds apart; loading what they need, as the classes of the JVM, is part of their time.
*Timeouts met* says how often the client gave a connection up and began another before STS had handed out the credentials, as the kernel of its node counts connections.
The relative URI is for SDKs that are too old to know the address of the full URI, or to read the token from a file.
The AWS CLI v2, Ruby and PHP are those of Debian 12.
.NET and AWS's own SDK for PHP are not among them: nothing here installs from the registries that have them.
Sessions last 150 s, and the daemon says 60 s less; the same client goes on calling for 180 s, beyond the expiry of its first credentials, which STS refuses by then.
It is *renewed* when no call fails and STS has seen calls that were signed with other credentials than the first.
A command line is a process for each call; it is called again after those 180 s.

";

/// Writes the page about the run.
pub(crate) fn write_e2e(folder: &Path, report: &Report, machine: &str) -> Result<()> {
    let page = E2E.replace("{ci}", &in_ci()?);
    let text = format!(
        "{page}\n## The last run\n\n{machine}\n\n{}\n{} scenarios took {:.0} minutes, the start of the cluster included.\n",
        report.table(),
        report.scenarios(),
        report.elapsed().as_secs_f64() / 60.0
    );
    write(&folder.join("e2e.md"), &text)
}

/// Writes the page about SDKs, with the table of a run.
pub(crate) fn write_sdks(folder: &Path, table: &str, machine: &str) -> Result<()> {
    write(&folder.join("sdks.md"), &format!("{SDKS}{table}\n{machine}\n"))
}

/// The scenarios that the Makefile has CI run.
fn in_ci() -> Result<String> {
    let makefile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Makefile"))?;
    let names = makefile.lines().find_map(|line| line.strip_prefix("E2E_CI := ")).context("find E2E_CI")?;
    Ok(names.split_whitespace().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
}

/// The machine, the commit that `folder` is a part of and what the cluster is made of, in a paragraph. To be asked before
/// the run: others may commit meanwhile.
pub(crate) fn machine(folder: &Path) -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or_default();
    let gibibytes = memory / (1024 * 1024);
    let kernel = read("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or_default().to_owned();
    let date = said(&["date", "--utc", "+%-d %B %Y"])?;
    let commit = commit(folder)?;
    let version = |tool_name: &str, program: &str| -> Result<String> {
        said(&[&tool(tool_name)?.join(program).display().to_string(), "--version"])
    };
    let word = |text: &str, index: usize| -> Result<String> {
        Ok(text
            .split_whitespace()
            .nth(index)
            .with_context(|| format!("find a version in {text}"))?
            .to_owned())
    };
    let kubernetes = word(&version("kubernetes", "kubelet")?, 1)?;
    let containerd = word(&version("containerd", "containerd")?, 2)?;
    let etcd = word(&said(&[&tool("etcd")?.display().to_string(), "--version"])?, 2)?;
    // What a plug-in writes to the standard output belongs to its protocol.
    let bridge = run(&[&tool("cni")?.join("bridge").display().to_string(), "--version"])?;
    let cni = word(&String::from_utf8_lossy(&bridge.stderr), 3)?;
    let runc = word(&said(&["runc", "--version"])?, 2)?;
    Ok(format!(
        "On {date}, at commit {commit}, on a machine with {processors} processors, {gibibytes} GiB and Linux {kernel}.\n\
         Kubernetes {kubernetes}, etcd {etcd}, containerd {containerd}, CNI plug-ins {cni}, runc {runc}."
    ))
}

/// The commit of the sources, and whether they have changed since. They have to be in one work tree with `folder`: a
/// page says what the commit has shown that it is a part of.
fn commit(folder: &Path) -> Result<String> {
    let sources = env!("CARGO_MANIFEST_DIR");
    let folder = folder.to_str().context("the folder's path is text")?;
    let [tree, other] =
        [sources, folder].map(|path| said(&["git", "-C", path, "rev-parse", "--show-toplevel"]));
    let (tree, other) = (tree?, other?);
    ensure!(tree == other, "the pages would be written into {other}, and the sources are in {tree}");
    let commit = said(&["git", "-C", sources, "rev-parse", "--short=12", "HEAD"])?;
    // The pages of the run before are no change.
    let pages = [":/", ":!/docs/e2e.md", ":!/docs/sdks.md"];
    let status = ["git", "-C", sources, "--no-optional-locks", "status", "--porcelain", "--"];
    let is_changed = !run(&[&status[..], &pages[..]].concat())?.stdout.is_empty();
    Ok(if is_changed { format!("{commit} with changes") } else { commit })
}

/// What a program writes, which has to be something.
fn said(words: &[&str]) -> Result<String> {
    let said = String::from_utf8_lossy(&run(words)?.stdout).trim().to_owned();
    ensure!(!said.is_empty(), "{} says nothing", words.join(" "));
    Ok(said)
}

fn run(words: &[&str]) -> Result<Output> {
    let described = words.join(" ");
    let ended =
        Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("run {described}"))?;
    ensure!(ended.status.success(), "{described}: {}", String::from_utf8_lossy(&ended.stderr).trim());
    Ok(ended)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_outside_of_the_work_tree_has_no_commit() {
        assert!(commit(Path::new("/")).is_err());
    }
}
