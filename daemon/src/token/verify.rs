//! Whether to believe a token: authentic, and meant for us.
//!
//! Which pod may then be served, and from where, is decided by the caller's table, not here.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
    time::SystemTime,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use foldhash::HashMap;
use tokio::time::Instant;

use super::{
    claims::{Claims, ClaimsError},
    keys::{KeyLookup, KeySet},
    volume::{TokenSource, TokenVolume},
};
use crate::identity::PodUid;

/// Most pods whose tokens are remembered; a node runs a few hundred.
const MAX_PODS: usize = 4096;

/// Most accepted tokens that are remembered of one pod. A pod has one file and few processes that hold older ones.
const MAX_ACCEPTED_PER_POD: usize = 32;

/// What a token must say to be meant for this daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The audience of our tokens.
    pub audience: String,
    /// The issuers to accept; none to accept the one that the API server publishes.
    pub issuers: Vec<String>,
    /// The node of this daemon.
    pub node_name: String,
}

/// Judges tokens. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Verifier {
    config: Arc<Config>,
    keys: KeySet,
    source: TokenSource,
    accepted: Arc<RwLock<Accepted>>,
}

/// A token that is authentic and meant for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub uid: PodUid,
    pub namespace: String,
    pub pod: String,
    pub expires_at: SystemTime,
}

/// Why a token is not good, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    #[error(transparent)]
    Form(#[from] ClaimsError),
    #[error("its audience is not {0}")]
    Audience(String),
    #[error("its issuer is not this cluster's")]
    Issuer,
    #[error("it belongs to a pod of another node")]
    OtherNode,
    #[error("it is neither the token that the kubelet keeps for its pod nor signed by a key of this cluster")]
    NotAuthentic,
    #[error("it belongs to another pod of this node than it says")]
    Misnamed,
}

/// The outcome of an attempt to prove a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    Good(Arc<Verified>),
    Bad(TokenFault),
    /// It is not in the kubelet's file, and the API server did not tell its keys.
    Open,
}

type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// Digests of the tokens that were accepted, so that each is verified once. A miss costs a verification, never an
/// answer, and a hit admits nobody by itself: whether the pod still lives is looked up each time.
#[derive(Debug, Default)]
struct Accepted {
    by_digest: HashMap<Digest, Arc<Verified>>,
    /// The digests of each pod, oldest first.
    by_pod: HashMap<PodUid, VecDeque<Digest>>,
    /// The pods, in the order in which their first token was accepted.
    pods: VecDeque<PodUid>,
}

impl Verifier {
    pub fn new(config: Config, keys: KeySet, source: TokenSource) -> Self {
        Self { config: Arc::new(config), keys, source, accepted: Arc::default() }
    }

    /// The token was accepted before.
    pub fn recall(&self, token: &str) -> Option<Arc<Verified>> {
        let digest = sha256(token);
        let accepted = self.accepted.read().unwrap_or_else(PoisonError::into_inner);
        accepted.by_digest.get(&digest).cloned()
    }

    /// Reads a token's claims and refuses at once what is not meant for us, authentic or not.
    ///
    /// # Errors
    /// [`TokenFault`] of the form, the audience or the node.
    pub fn read(&self, token: &str) -> Result<Claims, TokenFault> {
        let claims = Claims::read(token)?;
        if !claims.audiences.contains(&self.config.audience) {
            return Err(TokenFault::Audience(self.config.audience.clone()));
        }
        if claims.node.as_ref().is_some_and(|node| node.name != self.config.node_name) {
            return Err(TokenFault::OtherNode);
        }
        Ok(claims)
    }

    /// Proves that `token` is authentic: it is in one of `volumes`, where the kubelet keeps the tokens of the pod
    /// it names, or a key of the cluster has signed it.
    ///
    /// The file comes first, for it needs no API server. What the kubelet keeps was issued by this cluster,
    /// whatever its issuer is called today, so the issuer is asked of signed tokens only.
    ///
    /// A key that the API server did not know when it was asked after `since` is not asked for again.
    pub async fn prove(
        &self,
        token: &str,
        claims: &Claims,
        uid: &PodUid,
        volumes: &[TokenVolume],
        since: Instant,
    ) -> Proof {
        if !self.is_in_kubelets_file(token, uid, volumes).await {
            let Some(key_id) = &claims.key_id else { return Proof::Bad(TokenFault::NotAuthentic) };
            match self.keys.find(key_id, since).await {
                KeyLookup::Unreachable => return Proof::Open,
                KeyLookup::Unknown => return Proof::Bad(TokenFault::NotAuthentic),
                KeyLookup::Known { key, .. } if !key.signed(token) => {
                    return Proof::Bad(TokenFault::NotAuthentic);
                }
                KeyLookup::Known { issuer, .. } if !self.is_our_issuer(&claims.issuer, &issuer) => {
                    return Proof::Bad(TokenFault::Issuer);
                }
                KeyLookup::Known { .. } => {}
            }
        }
        let verified = Arc::new(Verified {
            uid: uid.clone(),
            namespace: claims.namespace.clone(),
            pod: claims.pod.name.clone(),
            expires_at: claims.expires_at,
        });
        self.accepted_mut().insert(sha256(token), verified.clone());
        Proof::Good(verified)
    }

    /// Whether the kubelet still keeps a token for the pod.
    pub async fn kubelet_keeps(&self, uid: &PodUid, volumes: &[TokenVolume]) -> bool {
        self.source.read(uid, volumes).await.is_ok()
    }

    /// Forgets the tokens of a pod that has left.
    pub fn forget(&self, uid: &PodUid) {
        self.accepted_mut().forget(uid);
    }

    fn accepted_mut(&self) -> RwLockWriteGuard<'_, Accepted> {
        self.accepted.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn is_in_kubelets_file(&self, token: &str, uid: &PodUid, volumes: &[TokenVolume]) -> bool {
        for volume in volumes {
            let kept = self.source.read(uid, std::slice::from_ref(volume)).await;
            if kept.is_ok_and(|kept| is_the_same(kept.expose(), token)) {
                return true;
            }
        }
        false
    }

    /// Completes once the cluster has been asked for its keys; before, a token that is not the one on disk, as the AWS
    /// CLI v2 presents it, has to wait.
    pub async fn keys_asked_for(&self) {
        self.keys.asked().await;
    }

    /// The issuer that the operator has chosen first, or else the cluster's, once it is known.
    pub fn issuer(&self) -> Option<String> {
        let chosen = self.config.issuers.first().cloned();
        chosen.or_else(|| self.keys.issuer().map(|issuer| issuer.to_string()))
    }

    fn is_our_issuer(&self, claimed: &str, published: &str) -> bool {
        if self.config.issuers.is_empty() {
            claimed == published
        } else {
            self.config.issuers.iter().any(|issuer| issuer == claimed)
        }
    }
}

impl Accepted {
    fn insert(&mut self, digest: Digest, verified: Arc<Verified>) {
        if !self.by_pod.contains_key(&verified.uid) {
            self.pods.push_back(verified.uid.clone());
            if MAX_PODS < self.pods.len()
                && let Some(oldest) = self.pods.front().cloned()
            {
                self.forget(&oldest);
            }
        }
        let digests = self.by_pod.entry(verified.uid.clone()).or_default();
        if !digests.contains(&digest) {
            digests.push_back(digest);
        }
        if MAX_ACCEPTED_PER_POD < digests.len()
            && let Some(oldest) = digests.pop_front()
        {
            self.by_digest.remove(&oldest);
        }
        self.by_digest.insert(digest, verified);
    }

    fn forget(&mut self, uid: &PodUid) {
        for digest in self.by_pod.remove(uid).into_iter().flatten() {
            self.by_digest.remove(&digest);
        }
        self.pods.retain(|it| it != uid);
    }
}

/// Compares in constant time.
fn is_the_same(kept: &str, presented: &str) -> bool {
    verify_slices_are_equal(kept.as_bytes(), presented.as_bytes()).is_ok()
}

fn sha256(token: &str) -> Digest {
    let mut out = Digest::default();
    out.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    out
}

#[cfg(test)]
mod tests;
