//! `caller`: telling who asks, by a token that is remembered, by one that has to be proven, and by the address.

use std::{hint::black_box, time::Duration};

use anyhow::{Result, ensure};
use criterion::Criterion;
use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use rolecall_daemon::{
    identity::PodUid,
    node::NodeAddresses,
    server::caller::{Callers, Config, Memory, Request, Witness},
    token::{
        keys::{Documents, Fetcher, KeySet},
        verify::{self, Verifier},
        volume::TokenSource,
    },
};
use rolecall_process::time::Clock;
use rolecall_sandbox::{Algorithm, Issuer, KubeletDir, TokenClaims};
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    cpu_time::CpuTime,
    pods::{self, AUDIENCE, NODE, address, builder, uid},
};

/// Pods on the node.
const PODS: usize = 110;

pub(crate) fn run(criterion: &mut Criterion<CpuTime>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut group = criterion.benchmark_group("caller");
    let node = Node::new(&runtime, Algorithm::Es256)?;
    let token = node.written()?;

    let memory = Memory::default();
    // Accepted, and remembered from its second request on.
    node.identify_anew(&runtime, &token);
    for _ in 0..2 {
        node.recall(&token, &memory);
    }
    group.bench_function("by a token that its address remembers", |bencher| {
        bencher.iter(|| node.recall(black_box(&token), &memory));
    });
    group.bench_function("by a token that was proven before, but not remembered", |bencher| {
        bencher.iter(|| node.recall(black_box(&token), &Memory::default()));
    });
    group.bench_function("by a new token, as the kubelet keeps it", |bencher| {
        bencher.iter(|| node.identify_anew(&runtime, black_box(&token)));
    });
    group.bench_function("by the address alone", |bencher| {
        bencher.iter(|| node.identify(&runtime, None, &Memory::default()));
    });
    for (name, algorithm) in [("ES256", Algorithm::Es256), ("RS256", Algorithm::Rs256)] {
        let node = Node::new(&runtime, algorithm)?;
        // Rotated since: only its signature proves it.
        let token = node.issuer.mint(&claims());
        node.written()?;
        group.bench_function(format!("by a new token, signed with {name}"), |bencher| {
            bencher.iter(|| node.identify_anew(&runtime, black_box(&token)));
        });
    }
    group.finish();
    Ok(())
}

/// What is asked who asks, and the first pod of the node, which asks.
struct Node {
    issuer: Issuer,
    kubelet: KubeletDir,
    verifier: Verifier,
    callers: Callers,
    pod: PodUid,
}

impl Node {
    /// One that knows the cluster's keys.
    fn new(runtime: &Runtime, algorithm: Algorithm) -> Result<Self> {
        let issuer = Issuer::new("https://kubernetes.default.svc", algorithm);
        let kubelet = KubeletDir::new()?;
        let (keys, fetcher) = keys(&issuer);
        let config =
            verify::Config { audience: AUDIENCE.to_owned(), issuers: Vec::new(), node_name: NODE.to_owned() };
        let verifier = Verifier::new(config, keys, TokenSource::new(kubelet.path().to_owned()));
        let callers = Callers::new(
            Config { witness: Witness::TokenAndAddress, wait: Duration::from_secs(5) },
            pods::table(PODS)?,
            verifier.clone(),
            NodeAddresses::fixed(["127.0.0.0/8".parse()?]),
            Clock::system(),
            &mut Registry::default(),
        );
        let node = Self { issuer, kubelet, verifier, callers, pod: uid(0).parse()? };
        // The first token whose signature is asked for has the keys fetched, which stay known from then on.
        let token = node.issuer.mint(&claims());
        let memory = Memory::default();
        let known = runtime.block_on(async {
            tokio::select! {
                () = fetcher.run() => false,
                is_caller = node.ask(Some(&token), &memory) => is_caller,
            }
        });
        ensure!(known, "a signed token is not taken for its pod's");
        Ok(node)
    }

    /// The pod's token, which the kubelet writes.
    fn written(&self) -> Result<String> {
        let token = self.issuer.mint(&claims());
        let pod = builder(0);
        if let Some(volume) = pod.get_token_volume() {
            self.kubelet.write_token(pod.get_uid(), &volume.name, &volume.path, &token)?;
        }
        Ok(token)
    }

    /// Asks who asks, which is known without waiting for anything.
    fn recall(&self, token: &str, memory: &Memory) {
        assert_eq!(self.ask(Some(token), memory).now_or_never(), Some(true), "the pod is not known at once");
    }

    /// Asks who asks, with a token that was not seen before as far as the node knows.
    fn identify_anew(&self, runtime: &Runtime, token: &str) {
        self.verifier.forget(&self.pod);
        self.identify(runtime, Some(token), &Memory::default());
    }

    fn identify(&self, runtime: &Runtime, token: Option<&str>, memory: &Memory) {
        assert!(runtime.block_on(self.ask(token, memory)), "the pod is not the caller");
    }

    /// Whether the pod is found to be the caller.
    async fn ask(&self, token: Option<&str>, memory: &Memory) -> bool {
        let request = Request { peer: address(0), token };
        let caller = self.callers.identify(request, memory, Instant::now()).await;
        caller.is_ok_and(|pod| *pod.uid() == self.pod)
    }
}

fn claims() -> TokenClaims {
    TokenClaims::new("bench", "bench", "bench-0").pod_uid(&uid(0)).node(NODE)
}

fn keys(issuer: &Issuer) -> (KeySet, Fetcher) {
    let published = issuer.clone();
    KeySet::new(Box::new(move || {
        let documents = Documents { issuer: published.url().to_owned(), jwks: published.jwks() };
        std::future::ready(Ok(documents)).boxed()
    }))
}
