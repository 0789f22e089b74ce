//! The node that is measured: the daemon, what is around it, and its pods.

use std::time::Duration;

use anyhow::{Context, Result};
use rolecall_sandbox::{
    Algorithm,
    cluster::pod::PodBuilder,
    world::{World, WorldPod},
};
use tokio::task::{JoinSet, block_in_place};

use crate::{
    client::{self, Asker},
    network::pod_address,
    process::{Daemon, Wrapper},
};

/// Longer than anything takes that is to come.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Exchanges with STS that run at a time. It is the daemon's default, and given all the same where it decides how long
/// many of them take: what is said of that stays true when the default changes.
pub(crate) const STS_BURST: usize = 16;

/// A node with its daemon.
pub(crate) struct Node {
    pub(crate) world: World,
    pub(crate) daemon: Daemon,
    pub(crate) pods: Vec<WorldPod>,
}

/// Whether a request carries its pod's token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Sent,
    Absent,
}

impl Node {
    /// One without pods, whose daemon has these flags.
    pub(crate) async fn start(flags: &[&str], wrapper: &Wrapper) -> Result<Self> {
        // What clusters sign with unless told otherwise.
        let world = World::with_tls(Algorithm::Rs256).await?;
        let daemon = block_in_place(|| Daemon::start(&world, flags, wrapper))?;
        Ok(Self { world, daemon, pods: Vec::new() })
    }

    /// Has `count` pods on the node and waits until the daemon serves each of them.
    pub(crate) async fn add_pods(&mut self, count: usize) -> Result<()> {
        let from = self.pods.len();
        for index in from..count {
            self.pods.push(self.world.pod(pod(index))?);
        }
        self.ask_all(from).await
    }

    /// Waits until every pod from this one on has had an answer.
    pub(crate) async fn ask_all(&self, from: usize) -> Result<()> {
        let mut asked = JoinSet::new();
        for index in from..self.pods.len() {
            let (server, asker) = (self.daemon.address, self.asker(index, Token::Sent)?);
            asked.spawn(async move { client::answer(server, &asker, LIMIT).await });
        }
        while let Some(answer) = asked.join_next().await {
            answer?.context("a pod's first request")?;
        }
        Ok(())
    }

    pub(crate) fn asker(&self, index: usize, token: Token) -> Result<Asker> {
        let token = match token {
            Token::Sent => Some(self.pods[index].token()?),
            Token::Absent => None,
        };
        Ok(Asker::new(pod_address(index), token.as_deref()))
    }

    /// The first `count` pods' askers.
    pub(crate) fn askers(&self, count: usize, token: Token) -> Result<Vec<Asker>> {
        (0..count).map(|index| self.asker(index, token)).collect()
    }

    /// What the first pod is answered.
    pub(crate) async fn first_answer(&self) -> Result<Vec<u8>> {
        client::answer(self.daemon.address, &self.asker(0, Token::Sent)?, LIMIT).await
    }
}

/// The `index`-th pod, of one of 16 ServiceAccounts with a role each, at its address; it may go without its token.
pub(crate) fn pod(index: usize) -> PodBuilder {
    pod_without_address(index).ip(&address(index))
}

/// The same before the kubelet has reported its address.
pub(crate) fn pod_without_address(index: usize) -> PodBuilder {
    let account = service_account(index);
    PodBuilder::new("bench", &format!("bench-{index}"))
        .service_account(&account)
        .role(&format!("arn:aws:iam::111122223333:role/{account}"))
        .token_optional()
}

/// The flag for [`STS_BURST`].
pub(crate) fn sts_burst() -> String {
    format!("--sts-burst={STS_BURST}")
}

pub(crate) fn service_account(index: usize) -> String {
    // All of one length, so that the answers are too.
    format!("bench-{:02}", index % 16)
}

/// The pod's address as the API server has it.
pub(crate) fn address(index: usize) -> String {
    pod_address(index).map(|part| part.to_string()).join(".")
}
