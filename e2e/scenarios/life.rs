//! What a cluster goes through while pods go on asking: changed roles, rebooted nodes, everything away for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use rolecall_e2e::cluster::wait_for;
use rolecall_e2e::control_plane::ISSUER;
use rolecall_sandbox::sts::TrustPolicy;
use serde_json::{Value, json};

use crate::pods::{Answer, Summary, probe};
use crate::report::{Figure, Report};
use crate::world::{NAMESPACE, ROLECALL, World, counted};
use crate::wrong_pod::ask;

/// How long the API server is away: beyond half of a [`SESSION`], when the daemon renews.
const API_OUTAGE: Duration = Duration::from_secs(120);

/// Sessions that are nearly over when STS comes back. The daemon says a minute less.
const SESSION: Duration = Duration::from_secs(180);

/// For how long of that STS is away, at the least: the daemon renews from half on.
const STS_OUTAGE: Duration = Duration::from_secs(100);

/// By when a trust policy that was mended is noticed: the daemon remembers a denial for 30 s at most
/// (docs/operations.md), and to ask by `kubectl exec`, again and again, takes its time on a busy machine.
const MENDED_WITHIN: Duration = Duration::from_secs(30 + 5);

/// How often the daemon is killed. The kubelet waits longer each time.
const KILLS: usize = 3;

/// A pod that asks again and again, on the first node, and counts what it gets.
const ASKER: &str = "asker";
const ASKER_ROLE: &str = "arn:aws:iam::111122223333:role/asker";

pub(crate) async fn run(world: &mut World, report: &mut Report) -> Result<()> {
    world.service_account(NAMESPACE, ASKER).await?;
    changed_annotation(world, report).await?;
    fixed_trust(world, report).await?;
    webhook_down(world, report).await?;
    agents_restarted(world, report).await?;
    api_server_away(world, report).await?;
    sts_away(world, report).await?;
    daemon_killed(world, report).await?;
    node_rebooted(world, report).await?;
    world.pods(NAMESPACE).clear().await
}

/// Pods that run keep their role; pods that come get the new one.
async fn changed_annotation(world: &World, report: &mut Report) -> Result<()> {
    world.service_account(NAMESPACE, "moving").await?;
    let pods = world.pods(NAMESPACE);
    pods.create(&probe("before", "moving", &["wait"])).await?;
    pods.running("before").await?;
    let moved = "arn:aws:iam::111122223333:role/moved";
    world.sts.trust(moved, TrustPolicy::service_account(ISSUER, NAMESPACE, "moving"));
    let annotation = format!("rolecall.dev/role-arn={moved}");
    world.kubectl(&["annotate", "--overwrite", "-n", NAMESPACE, "serviceaccount", "moving", &annotation])?;
    // The webhook learns of it by its watch.
    let role = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            pods.create(&probe("after", "moving", &["once"])).await?;
            let answer: Answer = pods.outcome("after").await?;
            pods.delete("after", 0).await?;
            let role = world.sts.session(&answer.access_key_id).map(|session| session.role_arn);
            if role.as_deref() == Some(moved) {
                return anyhow::Ok(role);
            }
        }
    })
    .await
    .context("new pods do not get the new role")??;
    let before = ask(world, "before", &[])?;
    let kept = world.sts.session(&before.access_key_id).map(|session| session.role_arn);
    ensure!(kept.as_deref() == Some("arn:aws:iam::111122223333:role/moving"), "the old pod has {kept:?}");
    report.add(Figure::new(
        "a ServiceAccount's annotation changed",
        format!(
            "new pods get {}, running ones keep theirs",
            role.unwrap_or_default().rsplit('/').next().unwrap_or_default()
        ),
    ));
    pods.clear().await
}

/// A role that denies the pod, until its trust policy is mended.
async fn fixed_trust(world: &World, report: &mut Report) -> Result<()> {
    let role = world.service_account(NAMESPACE, "denied").await?;
    world.sts.trust(&role, TrustPolicy::nobody());
    let pods = world.pods(NAMESPACE);
    pods.create(&probe("denied", "denied", &["wait"])).await?;
    pods.running("denied").await?;
    let answer = ask(world, "denied", &[])?;
    ensure!(answer.code == "sts_denied", "a denied pod is told {answer:?}");
    world.sts.trust(&role, TrustPolicy::service_account(ISSUER, NAMESPACE, "denied"));
    let fixed = Instant::now();
    tokio::time::timeout(MENDED_WITHIN, async {
        while !ask(world, "denied", &[])?.is_success() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(())
    })
    .await
    .context("a mended trust policy is not noticed")??;
    report.add(Figure::new(
        "a trust policy mended after a denial",
        format!("sts_denied, then credentials {:.0} s after the mending", fixed.elapsed().as_secs_f64()),
    ));
    pods.clear().await
}

/// Pods are created while nobody answers for the webhook.
async fn webhook_down(world: &World, report: &mut Report) -> Result<()> {
    let pods = world.pods(NAMESPACE);
    let scale = |replicas: &str| {
        world.kubectl(&[
            "scale",
            "-n",
            ROLECALL,
            "deployment/rolecall-shim",
            &format!("--replicas={replicas}"),
        ])
    };
    scale("0")?;
    world.kubectl(&[
        "wait",
        "-n",
        ROLECALL,
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=rolecall-shim",
        "--timeout=120s",
    ])?;
    pods.create(&probe("missed", ASKER, &["wait"])).await.context("create a pod without the webhook")?;
    let missed = pods.running("missed").await?;
    ensure!(variable(&missed, "AWS_CONTAINER_CREDENTIALS_FULL_URI").is_none(), "somebody injected the pod");
    scale("2")?;
    world.wait_for_rollout().await?;
    let selector = "involvedObject.name=missed";
    let event = tokio::time::timeout(Duration::from_secs(120), async {
        loop {
            let events = world.kubectl(&[
                "get",
                "events",
                "-n",
                NAMESPACE,
                "--field-selector",
                selector,
                "-o",
                "json",
            ])?;
            let events: Value = serde_json::from_str(&events)?;
            let ours = |event: &&Value| {
                event["reportingComponent"].as_str().is_some_and(|name| name.contains("rolecall"))
            };
            if let Some(event) = events["items"].as_array().into_iter().flatten().find(ours) {
                return anyhow::Ok(event["reason"].as_str().unwrap_or_default().to_owned());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
    .context("a pod that was missed is not told")??;
    ensure!(event == "RolecallNotInjected", "a pod that was missed is told {event}");
    pods.delete("missed", 0).await?;
    pods.create(&probe("again", ASKER, &["once"])).await?;
    let answer: Answer = pods.outcome("again").await?;
    ensure!(answer.is_success(), "after the webhook came back: {answer:?}");
    report.add(Figure::new(
        "the webhook down and back",
        format!("pods start without it and are told by the Event {event}; new ones get credentials"),
    ));
    pods.clear().await
}

/// containerd and the kubelet killed and started: containers, and what they are served, go on.
async fn agents_restarted(world: &mut World, report: &mut Report) -> Result<()> {
    start_asker(world).await?;
    world.cluster.node_mut(0).kill_agents()?;
    world.cluster.node_mut(0).start_agents().await?;
    world.cluster.wait_until_ready(&world.cluster.nodes()[0]).await?;
    let name = "newcomer";
    let pods = world.pods(NAMESPACE);
    pods.create(&on_first_node(probe(name, ASKER, &["once"]))).await?;
    let answer: Answer = pods.outcome(name).await?;
    ensure!(answer.is_success(), "a pod after the restart of the kubelet: {answer:?}");
    let seen = end_asker(world).await?;
    report.add(Figure::new("kubelet and containerd killed and started", seen.all_answered()?));
    Ok(())
}

/// The API server away for minutes: what is known is served.
async fn api_server_away(world: &World, report: &mut Report) -> Result<()> {
    // Of this role alone: other pods' sessions are to outlive what follows.
    world.sts.set_role_session_seconds(ASKER_ROLE, Some(SESSION.as_secs()));
    start_asker(world).await?;
    let before = granted(world);
    world.cluster.control_plane().stop_api_server()?;
    tokio::time::sleep(API_OUTAGE).await;
    ensure!(before < granted(world), "the pod's credentials were not renewed meanwhile");
    world.sts.set_role_session_seconds(ASKER_ROLE, None);
    world.cluster.control_plane().start_api_server().await?;
    let seen = end_asker(world).await?;
    let claim = format!("the API server away for {} s, sessions renewed meanwhile", API_OUTAGE.as_secs());
    report.add(Figure::new(&claim, seen.all_answered()?));
    Ok(())
}

/// STS away from before the daemon would renew until shortly before the sessions end.
async fn sts_away(world: &World, report: &mut Report) -> Result<()> {
    world.sts.set_role_session_seconds(ASKER_ROLE, Some(SESSION.as_secs()));
    start_asker(world).await?;
    let before = unreachable(world)?;
    world.sts.set_outage(true).await?;
    let begun = Instant::now();
    tokio::time::sleep(STS_OUTAGE).await;
    // It renews at some time between half and seven twelfths.
    let mut failed = unreachable(world)?.checked_sub(before).context("the daemon is another one")?;
    while failed == 0 && begun.elapsed() < SESSION * 7 / 12 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        failed = unreachable(world)?.checked_sub(before).context("the daemon is another one")?;
    }
    ensure!(failed != 0, "the daemon did not notice that STS was away");
    // Another key is the sign that it has recovered; the one of before is taken while STS cannot give it.
    let first = ask(world, ASKER, &[])?.access_key_id;
    world.sts.set_outage(false).await?;
    let away = begun.elapsed().as_secs();
    tokio::time::timeout(SESSION, async {
        while ask(world, ASKER, &[])?.access_key_id == first {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    })
    .await
    .context("sessions are not renewed after STS came back")??;
    world.sts.set_role_session_seconds(ASKER_ROLE, None);
    let seen = end_asker(world).await?;
    ensure!(1 < seen.keys.len(), "the pod never got other credentials: {seen:?}");
    let claim =
        format!("STS away for {away} s of sessions of {} s, {failed} attempts in vain", SESSION.as_secs());
    report.add(Figure::new(&claim, seen.all_answered()?));
    Ok(())
}

/// The only daemon of a node killed, again and again.
async fn daemon_killed(world: &World, report: &mut Report) -> Result<()> {
    start_asker(world).await?;
    let node = &world.cluster.nodes()[0];
    let pod = daemon(world, node.name()).await?;
    let mut restarts = status(&pod).map_or(0, |status| status.restart_count);
    let mut longest = 0.0_f64;
    for _ in 0..KILLS {
        node.run(["pkill", "-KILL", "-x", "rolecall-daemon"])?;
        // It serves again before the API server knows.
        let answer = tokio::time::timeout(Duration::from_secs(240), async {
            loop {
                let answer = ask(world, ASKER, &[])?;
                if answer.is_success() {
                    return anyhow::Ok(answer);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .context("the daemon does not come back")??;
        let started_at;
        (restarts, started_at) = started_again(world, &pod, restarts).await?;
        longest = longest.max(answer.started_at + answer.seconds - started_at);
    }
    world.wait_for_rollout().await?;
    let seen = end_asker(world).await?;
    ensure!(seen.refusals.is_empty(), "requests were refused rather than not answered: {:?}", seen.refusals);
    report.add(Figure::new(
        &format!("the daemon killed {KILLS} times"),
        format!(
            "serves again each time, within {:.0} s of its container's start; longest gap {:.1} s, the rest of it the \
             kubelet's",
            // The start is told in whole seconds that have passed.
            longest.ceil(),
            seen.longest_gap_seconds
        ),
    ));
    Ok(())
}

/// The node loses its power and gets it back.
async fn node_rebooted(world: &mut World, report: &mut Report) -> Result<()> {
    let pods = world.pods(NAMESPACE);
    let mut pod = on_first_node(probe("survivor", ASKER, &["once"]));
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["containers"][0]["args"] = json!(["wait"]);
    pods.create(&pod).await?;
    pods.running("survivor").await?;
    let before = ask(world, "survivor", &[])?;
    ensure!(before.is_success(), "before the reboot: {before:?}");

    world.cluster.node_mut(0).power_off();
    world.cluster.power_on(0).await?;
    let started = Instant::now();
    let restarted = |pod: Option<&Pod>| pod.and_then(status).is_some_and(|status| 0 < status.restart_count);
    wait_for(pods.api(), "survivor", restarted).await?;
    pods.running("survivor").await?;
    world.wait_for_rollout().await?;
    let after = ask(world, "survivor", &[])?;
    ensure!(after.is_success(), "after the reboot: {after:?}");
    report.add(Figure::new(
        "a node loses its power and gets it back",
        format!("its pod has credentials again {:.0} s after", started.elapsed().as_secs_f64()),
    ));
    pods.clear().await
}

/// How often STS has handed out credentials of the asking pod's role.
fn granted(world: &World) -> usize {
    let is_of_asker = |role: &Option<String>| role.as_deref() == Some(ASKER_ROLE);
    let calls = world.sts.calls();
    calls.iter().filter(|call| call.outcome.is_granted() && is_of_asker(&call.role_arn)).count()
}

/// How often the daemon of the first node has not reached STS.
fn unreachable(world: &World) -> Result<u64> {
    counted(&world.cluster.nodes()[0], r#"rolecall_sts_requests_total{outcome="unreachable"}"#)
}

/// The pod of a node's daemon.
async fn daemon(world: &World, node: &str) -> Result<Pod> {
    let of_node = ListParams::default()
        .labels("app.kubernetes.io/name=rolecall-daemon")
        .fields(&format!("spec.nodeName={node}"));
    let pods = world.pods(ROLECALL).api().list(&of_node).await?;
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    pods.items.into_iter().find(stays).with_context(|| format!("{node} has no daemon"))
}

/// Waits until the API server knows that a pod's container runs that was restarted more than `before` times, and
/// returns how often it was and when it was started, in seconds since 1970.
async fn started_again(world: &World, pod: &Pod, before: i32) -> Result<(i32, f64)> {
    let pods = world.pods(ROLECALL);
    let name = pod.metadata.name.as_deref().context("the pod has a name")?;
    let start = |pod: &Pod| {
        let status = status(pod).filter(|status| before < status.restart_count)?;
        let started_at = status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
        Some((status.restart_count, started_at.0.as_duration().as_secs_f64()))
    };
    wait_for(pods.api(), name, |pod: Option<&Pod>| pod.and_then(start).is_some()).await?;
    start(&pods.api().get(name).await?).context("the container runs")
}

async fn start_asker(world: &World) -> Result<()> {
    let pods = world.pods(NAMESPACE);
    pods.create(&on_first_node(probe(ASKER, ASKER, &["loop"]))).await?;
    pods.running(ASKER).await?;
    let answer = ask(world, ASKER, &[])?;
    ensure!(answer.is_success(), "before anything happens: {answer:?}");
    Ok(())
}

/// Ends the pod that asks, and returns what it has seen.
async fn end_asker(world: &World) -> Result<Summary> {
    // Deleted, the pod would be gone with its message; told by a signal, it stays.
    world.kubectl(&["exec", "-n", NAMESPACE, ASKER, "--", "/probe", "end"])?;
    let pods = world.pods(NAMESPACE);
    let seen: Summary = pods.outcome(ASKER).await?;
    seen.ensure_own(&world.sts, NAMESPACE, ASKER)?;
    pods.clear().await?;
    Ok(seen)
}

fn on_first_node(mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!("node-1");
    pod
}

/// What is known of the first container.
fn status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn variable<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let container = pod.spec.as_ref()?.containers.first()?;
    container.env.as_ref()?.iter().find(|variable| variable.name == name)?.value.as_deref()
}
