//! The instance metadata service is out of reach for pods, and in reach for the node and for exempt pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rolecall_e2e::cluster::underlay::{METADATA, METADATA6};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::pods::{Answer, probe};
use crate::report::{Figure, Report};
use crate::world::{NAMESPACE, World};

/// The namespace that the overlay of the installation exempts.
const EXEMPT: &str = "monitoring";

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\nnode's role";

pub(crate) async fn run(world: &World, report: &mut Report) -> Result<()> {
    let service = Service::start().await?;
    let urls = [format!("http://{METADATA}/latest/"), format!("http://[{METADATA6}]/latest/")];
    world.make_namespace(EXEMPT).await?;
    for url in &urls {
        let family = if url.contains('[') { "IPv6" } else { "IPv4" };
        let mut longest = 0.0_f64;
        for node in world.cluster.nodes() {
            let name = node.name();
            let before = service.requests();
            let pod = one(world, NAMESPACE, name, url, |_| true).await?;
            ensure!(service.requests() == before && pod.status == 0, "a pod of {name} reached it: {pod:?}");
            ensure!(pod.error.contains("connection refused"), "a pod of {name} was left to wait: {pod:?}");
            longest = longest.max(pod.seconds);

            let reached =
                node.run(["curl", "--globoff", "--silent", "--show-error", "--fail", "--max-time", "5", url]);
            ensure!(reached.is_ok(), "{name} does not reach it: {reached:?}");

            // It is let pass once the API server shows its address, so an exempt pod may have to try again.
            let exempt = one(world, EXEMPT, name, url, |answer| answer.status == 200).await?;
            ensure!(exempt.status == 200, "an exempt pod of {name} does not reach it: {exempt:?}");
        }
        report.add(Figure::new(
            &format!("the metadata service, {family}, on both nodes: a pod, the node, an exempt pod"),
            format!("refused after {:.0} ms, reached, reached", longest * 1e3),
        ));
    }
    Ok(())
}

/// What a pod of the node gets from the URL, asking again until the answer is right or half a minute is over.
async fn one(
    world: &World,
    namespace: &str,
    node: &str,
    url: &str,
    right: impl Fn(&Answer) -> bool,
) -> Result<Answer> {
    let pods = world.pods(namespace);
    let mut pod = probe("curious", "default", &["wait"]);
    pod["spec"]["nodeName"] = json!(node);
    pods.create(&pod).await?;
    pods.running("curious").await?;
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    let answer = loop {
        let text = world.kubectl(&["exec", "-n", namespace, "curious", "--", "/probe", "get", url])?;
        let answer: Answer = serde_json::from_str(text.trim()).with_context(|| text.clone())?;
        if right(&answer) || until < tokio::time::Instant::now() {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    pods.clear().await?;
    Ok(answer)
}

/// A stand-in for the metadata service. Dropping it ends it.
struct Service {
    requests: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Service {
    async fn start() -> Result<Self> {
        let requests = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for address in [METADATA.into(), METADATA6.into()] {
            let address: std::net::IpAddr = address;
            let listener =
                TcpListener::bind((address, 80)).await.with_context(|| format!("bind {address}"))?;
            tasks.spawn(serve(listener, requests.clone()));
        }
        Ok(Self { requests, tasks })
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn serve(listener: TcpListener, requests: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        requests.fetch_add(1, Ordering::SeqCst);
        let mut head = [0; 1024];
        // Who hangs up has its reasons.
        let _read = stream.read(&mut head).await;
        let _written = stream.write_all(ANSWER.as_bytes()).await;
    }
}
