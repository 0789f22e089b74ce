//! Who is asking: the security decision of the daemon, alone in its file.
//!
//! There are two witnesses, the peer address and the token. [`decide`] weighs what they say; it is a pure function
//! and holds the whole table. [`Callers`] asks the witnesses, and asks again while the answer may still change.

mod memory;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_contract::TokenRule;
use tokio::time::{Instant, timeout_at};

use self::memory::Basis;
pub use self::memory::Memory;
use super::refusal::Refusal;
use crate::{
    identity::{PodIdentity, PodUid},
    node::NodeAddresses,
    pods::{AddressOwner, Pod, PodTable, UidLookup},
    token::verify::{Proof, TokenFault, Verified, Verifier},
};
use rolecall_process::time::Clock;

/// Which witnesses are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// Both; the token must not contradict the address.
    TokenAndAddress,
    /// The token alone, for networks that do not keep the pod's source address. Whoever holds a pod's token gets
    /// its credentials.
    Token,
}

/// How callers are found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub witness: Witness,
    /// How long an undecided request waits for the watch.
    pub wait: Duration,
}

/// What the peer address says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSays {
    Pod(Arc<Pod>),
    Several(Vec<Arc<Pod>>),
    /// Nobody lives there any more, and nobody else is known to.
    Finished,
    Nobody,
    /// It is an address of the node: a pod on the host network, or a process of the node itself.
    Node,
}

/// What the token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSays {
    Absent,
    /// Authentic and meant for us, of a live pod.
    Good {
        pod: Arc<Pod>,
        expired: bool,
    },
    Bad(TokenFault),
    /// Its pod has finished, or was deleted.
    Finished,
    /// Authentic and meant for us, of a pod that the watch has not shown yet.
    Stranger,
    /// Not proven either way: the cluster's keys are not known yet.
    Open,
}

/// What is known when the decision is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testimony {
    pub witness: Witness,
    /// Whether the table holds all pods of the node.
    pub synced: bool,
    pub address: AddressSays,
    pub token: TokenSays,
    /// Whether the kubelet still keeps a token on disk for the pod at the address.
    pub kubelet_keeps: bool,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Caller(Arc<Pod>),
    /// Undecided: wait for the watch, and if nothing comes, refuse like this.
    Wait(Refusal),
    Refuse(Refusal),
}

/// Weighs the witnesses. An unverified claim never selects credentials, and ambiguity is never resolved by a guess.
pub fn decide(testimony: Testimony) -> Decision {
    let Testimony { witness, synced, address, token, kubelet_keeps } = testimony;
    match token {
        TokenSays::Bad(fault) => Decision::Refuse(Refusal::TokenInvalid(fault)),
        TokenSays::Finished => Decision::Refuse(Refusal::PodFinished),
        TokenSays::Open => Decision::Wait(Refusal::NotReady),
        TokenSays::Stranger if synced => Decision::Wait(Refusal::PodUnknown),
        TokenSays::Stranger => Decision::Wait(Refusal::NotReady),
        TokenSays::Good { pod, expired } => match witness {
            Witness::Token => fresh_or_refused(pod, expired),
            Witness::TokenAndAddress => decide_with_token(pod, expired, &address),
        },
        TokenSays::Absent => match witness {
            Witness::Token => Decision::Refuse(Refusal::TokenRequired),
            Witness::TokenAndAddress => decide_by_address(synced, address, kubelet_keeps),
        },
    }
}

fn decide_with_token(pod: Arc<Pod>, expired: bool, address: &AddressSays) -> Decision {
    match address {
        // Its own address, shared with nobody, makes up for the age of the token: the AWS CLI reads the file once
        // per process.
        AddressSays::Pod(at) if at.uid() == pod.uid() => Decision::Caller(pod),
        AddressSays::Pod(_) => Decision::Refuse(Refusal::WrongPod),
        AddressSays::Several(all) if all.iter().any(|at| at.uid() == pod.uid()) => {
            fresh_or_refused(pod, expired)
        }
        AddressSays::Several(_) => Decision::Refuse(Refusal::WrongPod),
        AddressSays::Node if pod.on_host_network => fresh_or_refused(pod, expired),
        AddressSays::Node => Decision::Refuse(Refusal::WrongPod),
        AddressSays::Nobody | AddressSays::Finished if pod.on_host_network => {
            Decision::Refuse(Refusal::WrongPod)
        }
        AddressSays::Nobody | AddressSays::Finished if pod.addresses.is_empty() => {
            fresh_or_refused(pod, expired)
        }
        // The pod is known elsewhere. After a reboot of the node its sandbox has a new address before the watch
        // says so; a thief has to outwait the watch, and is refused then.
        AddressSays::Nobody | AddressSays::Finished => Decision::Wait(Refusal::WrongPod),
    }
}

fn decide_by_address(synced: bool, address: AddressSays, kubelet_keeps: bool) -> Decision {
    match address {
        AddressSays::Node => Decision::Refuse(Refusal::HostNetworkNeedsToken),
        _ if !synced => Decision::Wait(Refusal::NotReady),
        AddressSays::Pod(pod) if pod.binding.token == TokenRule::Required => {
            Decision::Refuse(Refusal::TokenRequired)
        }
        // With a silent watch the address may have passed on; the kubelet takes the token away with the pod. A pod
        // that has no token at all gets no credentials either way, and may as well be told why.
        AddressSays::Pod(pod) if kubelet_keeps || pod.token_volumes.is_empty() => Decision::Caller(pod),
        AddressSays::Pod(_) | AddressSays::Nobody => Decision::Wait(Refusal::PodUnknown),
        // Another pod may have taken the address over already.
        AddressSays::Finished => Decision::Wait(Refusal::PodFinished),
        AddressSays::Several(_) => Decision::Wait(Refusal::AddressAmbiguous),
    }
}

fn fresh_or_refused(pod: Arc<Pod>, expired: bool) -> Decision {
    if expired { Decision::Refuse(Refusal::TokenExpired) } else { Decision::Caller(pod) }
}

/// Asks the witnesses. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Callers {
    config: Config,
    table: PodTable,
    verifier: Verifier,
    node: NodeAddresses,
    clock: Clock,
    wrong_pod: Counter,
}

/// Whom a refused request points at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspects {
    pub at_address: Option<PodIdentity>,
    pub of_token: Option<PodIdentity>,
    /// Whether it carries a token at all.
    pub sent_token: bool,
}

/// Where a request comes from and what it carries.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub peer: IpAddr,
    pub token: Option<&'a str>,
}

impl Callers {
    pub fn new(
        config: Config,
        table: PodTable,
        verifier: Verifier,
        node: NodeAddresses,
        clock: Clock,
        registry: &mut Registry,
    ) -> Self {
        let wrong_pod = Counter::default();
        registry.register(
            "wrong_pod_requests",
            "Good tokens that came from a place that is not their pod's: stolen, most likely",
            wrong_pod.clone(),
        );
        let callers = Self { config, table, verifier, node, clock, wrong_pod };
        registry.register_collector(Box::new(WitnessInfo(config.witness)));
        callers
    }

    /// Finds out who asks. An undecided request waits, in silence, until the watch decides it or the wait, counted
    /// from `arrived`, is over.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn identify(
        &self,
        request: Request<'_>,
        memory: &Memory,
        arrived: Instant,
    ) -> Result<Arc<Pod>, Refusal> {
        match self.recall(request, memory) {
            Some(pod) => Ok(pod),
            // Boxed, for it is large and rare.
            None => Box::pin(self.find_out(request, arrived)).await,
        }
    }

    /// Asks again whether `request`, which was found to be `pod`'s, still is, before credentials that were waited for
    /// are handed out: the address may have changed hands meanwhile. It may wait, as any request does.
    ///
    /// # Errors
    /// What speaks against it now.
    pub async fn confirm(&self, request: Request<'_>, pod: &Pod) -> Result<(), Refusal> {
        let now = self.identify(request, &Memory::default(), Instant::now()).await?;
        if now.uid() == pod.uid() {
            return Ok(());
        }
        // Without a token nobody has presented another's: the address has changed hands.
        Err(if request.token.is_some() { self.count(Refusal::WrongPod) } else { Refusal::WrongPod })
    }

    /// Whether a pod is known to have `address`, finished or not.
    pub(super) fn is_known(&self, address: IpAddr) -> bool {
        self.table.by_address(address) != AddressOwner::Nobody
    }

    /// Whom a refused request points at, for the log and for Events alone: the pod that is known at its address, and the one whose
    /// proven token it carries.
    pub fn suspects(&self, request: Request<'_>) -> Suspects {
        let at_address = match self.look_up(request.peer) {
            AddressSays::Pod(pod) => Some(pod.identity.clone()),
            _ => None,
        };
        let verified = request.token.and_then(|token| self.verifier.recall(token));
        let of_token = verified.and_then(|verified| match self.table.by_uid(&verified.uid) {
            UidLookup::Live(pod) => Some(pod.identity.clone()),
            _ => None,
        });
        Suspects { at_address, of_token, sent_token: request.token.is_some() }
    }

    /// The caller that `memory` tells, where nothing has changed for it: the path of nearly every request on a connection
    /// that is kept alive.
    pub(super) fn remembered(&self, token: &[u8], memory: &Memory, now: SystemTime) -> Option<Arc<Pod>> {
        memory.recall(token, self.basis(), now)
    }

    /// The caller, where its token was proven before: nothing is waited for.
    pub(super) fn recall(&self, request: Request<'_>, memory: &Memory) -> Option<Arc<Pod>> {
        let token = request.token?;
        // Taken before anything is looked at, so that what changes meanwhile is looked at again the next time.
        let basis = self.basis();
        let now = self.clock.now();
        if let Some(pod) = memory.recall(token.as_bytes(), basis, now) {
            return Some(pod);
        }
        let verified = self.verifier.recall(token)?;
        let address = self.look_up(request.peer);
        // What is remembered elsewhere would not be forgotten with the pod.
        let is_at_home = match &address {
            AddressSays::Pod(at) => *at.uid() == verified.uid,
            AddressSays::Node => true,
            AddressSays::Several(_) | AddressSays::Finished | AddressSays::Nobody => false,
        };
        match decide(self.testimony(self.weigh(&verified), address, false)) {
            Decision::Caller(pod) => {
                if is_at_home {
                    let until = (now < verified.expires_at).then_some(verified.expires_at);
                    memory.remember(token, basis, until, &pod);
                }
                Some(pod)
            }
            Decision::Wait(_) | Decision::Refuse(_) => None,
        }
    }

    fn basis(&self) -> Basis {
        Basis { pods: self.table.version(), node: self.node.version() }
    }

    /// The same where it could not be recalled.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(super) async fn find_out(&self, request: Request<'_>, arrived: Instant) -> Result<Arc<Pod>, Refusal> {
        let deadline = arrived + self.config.wait;
        let mut undecided = Refusal::NotReady;
        let mut wanted = None;
        loop {
            // Subscribed before looking, so that no change falls in between.
            let (mut pods, mut node) = (self.table.changes(), self.node.changes());
            let changed = async {
                tokio::select! {
                    _ = pods.changed() => {}
                    _ = node.changed() => {}
                }
            };
            let look = async {
                // The proof of a token may itself have to wait for the cluster's keys; a change meanwhile may
                // make it superfluous, and is looked at anew.
                let decision = decide(self.hear(request, arrived).await);
                let Decision::Wait(refusal) = decision else { return Some(decision) };
                // The watch does not bring the cluster's keys, which is what a known node waits for.
                if refusal != Refusal::NotReady || !self.table.synced() {
                    wanted.get_or_insert_with(|| self.table.want_news());
                }
                undecided = refusal;
                std::future::pending().await
            };
            let decided = timeout_at(deadline, async {
                tokio::select! {
                    biased;
                    decision = look => decision,
                    () = changed => None,
                }
            })
            .await;
            match decided {
                Ok(Some(Decision::Caller(pod))) => return Ok(pod),
                Ok(Some(Decision::Refuse(refusal) | Decision::Wait(refusal))) => {
                    return Err(self.count(refusal));
                }
                Ok(None) => {}
                Err(_) => return Err(self.count(undecided)),
            }
        }
    }

    async fn hear(&self, request: Request<'_>, arrived: Instant) -> Testimony {
        let token = match request.token {
            None => TokenSays::Absent,
            Some(token) => self.examine(token, arrived).await,
        };
        let address = self.look_up(request.peer);
        let kubelet_keeps = match (&token, &address) {
            (TokenSays::Absent, AddressSays::Pod(pod)) if pod.binding.token == TokenRule::Optional => {
                // The address may have passed on while the disk was asked; then that says nothing of its new owner,
                // and the change has the request looked at anew.
                self.verifier.kubelet_keeps(pod.uid(), &pod.token_volumes).await
                    && self.look_up(request.peer) == address
            }
            _ => false,
        };
        self.testimony(token, address, kubelet_keeps)
    }

    fn testimony(&self, token: TokenSays, address: AddressSays, kubelet_keeps: bool) -> Testimony {
        Testimony { witness: self.config.witness, synced: self.table.synced(), address, token, kubelet_keeps }
    }

    fn look_up(&self, peer: IpAddr) -> AddressSays {
        if self.node.contains(peer) {
            return AddressSays::Node;
        }
        match self.table.by_address(peer) {
            AddressOwner::One(pod) => AddressSays::Pod(pod),
            AddressOwner::Several(pods) => AddressSays::Several(pods),
            AddressOwner::Finished => AddressSays::Finished,
            AddressOwner::Nobody => AddressSays::Nobody,
        }
    }

    async fn examine(&self, token: &str, arrived: Instant) -> TokenSays {
        if let Some(verified) = self.verifier.recall(token) {
            return self.weigh(&verified);
        }
        let claims = match self.verifier.read(token) {
            Ok(claims) => claims,
            Err(fault) => return TokenSays::Bad(fault),
        };
        let Ok(uid) = claims.pod.uid.parse::<PodUid>() else {
            return TokenSays::Bad(TokenFault::NotAuthentic);
        };
        let proof = match self.table.by_uid(&uid) {
            // To refuse, an unproven claim is enough.
            UidLookup::Finished | UidLookup::Departed => return TokenSays::Finished,
            UidLookup::Live(pod) => {
                self.verifier.prove(token, &claims, &uid, &pod.token_volumes, arrived).await
            }
            UidLookup::Unknown => self.verifier.prove(token, &claims, &uid, &[], arrived).await,
        };
        match proof {
            Proof::Good(verified) => self.weigh(&verified),
            Proof::Bad(fault) => TokenSays::Bad(fault),
            Proof::Open => TokenSays::Open,
        }
    }

    fn weigh(&self, verified: &Verified) -> TokenSays {
        match self.table.by_uid(&verified.uid) {
            UidLookup::Live(pod) => {
                let identity = &pod.identity;
                if *identity.namespace != verified.namespace || *identity.name != verified.pod {
                    return TokenSays::Bad(TokenFault::Misnamed);
                }
                let expired = verified.expires_at <= self.clock.now();
                TokenSays::Good { pod, expired }
            }
            UidLookup::Finished | UidLookup::Departed => TokenSays::Finished,
            UidLookup::Unknown => TokenSays::Stranger,
        }
    }

    fn count(&self, refusal: Refusal) -> Refusal {
        if refusal == Refusal::WrongPod {
            self.wrong_pod.inc();
        }
        refusal
    }
}

/// `rolecall_witness_info`: an operator sees which nodes hear the token alone.
#[derive(Debug)]
struct WitnessInfo(Witness);

impl prometheus_client::collector::Collector for WitnessInfo {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeMetric;
        let witness = match self.0 {
            Witness::TokenAndAddress => "token+address",
            Witness::Token => "token",
        };
        let info = prometheus_client::metrics::info::Info::new(vec![("witness", witness)]);
        let encoder =
            encoder.encode_descriptor("witness", "Which witnesses are heard", None, info.metric_type())?;
        info.encode(encoder)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod witnesses;
