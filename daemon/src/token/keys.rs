//! The cluster's public signing keys, as the API server publishes them.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use rolecall_process::telemetry::chain;

/// Least time between two fetches, whoever asks: a pod can invent key ids as fast as it can send.
const FETCH_SPACING: Duration = Duration::from_secs(10);

/// Longest time that one fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// A key that the cluster has withdrawn is noticed after this time.
const REFRESH_AFTER: Duration = Duration::from_secs(300);

/// After a failure it is tried again although nobody asks.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Fetches the documents from the API server.
pub type Fetch = Box<dyn Fn() -> BoxFuture<'static, Result<Documents, FetchError>> + Send + Sync>;

/// The discovery documents of a cluster's token issuer.
///
/// <https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery>
#[derive(Debug, Clone)]
pub struct Documents {
    /// `issuer` of `/.well-known/openid-configuration`.
    pub issuer: String,
    /// `/openid/v1/jwks`, a JSON Web Key Set (RFC 7517).
    pub jwks: Value,
}

/// The documents cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("fetch the cluster's signing keys")]
pub struct FetchError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The keys that are known. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct KeySet {
    published: watch::Receiver<Published>,
    wanted: Arc<Notify>,
}

/// Fetches the keys; there is one, and [`Fetcher::run`] is its task.
pub struct Fetcher {
    fetch: Fetch,
    published: watch::Sender<Published>,
    wanted: Arc<Notify>,
}

/// What is known of a key id.
#[derive(Debug, Clone)]
pub enum KeyLookup {
    /// A key of the cluster, and the cluster's issuer.
    Known { key: Key, issuer: Arc<str> },
    /// The API server, just asked, does not know it.
    Unknown,
    /// The API server, just asked, did not answer.
    Unreachable,
}

/// A public key of the cluster.
#[derive(Clone)]
pub struct Key {
    key: Arc<DecodingKey>,
    algorithm: Algorithm,
}

#[derive(Debug, Clone, Default)]
struct Published {
    keys: HashMap<String, Key>,
    issuer: Arc<str>,
    /// Whether the last fetch succeeded.
    reached: bool,
    /// How many have failed since one succeeded.
    failures: u32,
    /// When the last fetch ended.
    asked_at: Option<Instant>,
}

impl KeySet {
    /// No keys yet, and the fetcher that gets them.
    pub fn new(fetch: Fetch) -> (Self, Fetcher) {
        let (sender, receiver) = watch::channel(Published::default());
        let wanted = Arc::new(Notify::new());
        (Self { published: receiver, wanted: wanted.clone() }, Fetcher { fetch, published: sender, wanted })
    }

    /// The issuer that the API server names; `None` before it was asked.
    pub fn issuer(&self) -> Option<Arc<str>> {
        Some(self.published.borrow().issuer.clone()).filter(|issuer| !issuer.is_empty())
    }

    /// Completes once the keys are known, or the API server has failed to tell them twice: in clusters that show nobody
    /// their keys, the kubelet's files decide.
    pub async fn asked(&self) {
        let mut published = self.published.clone();
        // An error means that nobody asks any more, which ends the program.
        let _ = published.wait_for(|published| published.reached || 2 <= published.failures).await;
    }

    /// Looks up the key `id`; one that is not known is fetched, and waited for, unless the API server was asked
    /// after `since` already.
    ///
    /// It may take [`FETCH_SPACING`] until a fetch is due; who cannot wait that long stops waiting.
    pub async fn find(&self, id: &str, since: Instant) -> KeyLookup {
        let mut published = self.published.clone();
        loop {
            {
                let now = published.borrow_and_update();
                if let Some(known) = now.lookup(id) {
                    return known;
                }
                if now.asked_at.is_some_and(|at| since < at) {
                    return if now.reached { KeyLookup::Unknown } else { KeyLookup::Unreachable };
                }
            }
            self.wanted.notify_one();
            if published.changed().await.is_err() {
                return KeyLookup::Unreachable;
            }
        }
    }
}

impl Fetcher {
    /// Fetches at once, then whenever an unknown key is asked for, and now and then.
    pub async fn run(self) {
        loop {
            let began = Instant::now();
            self.fetch_once().await;
            let refresh_after = if self.published.borrow().reached { REFRESH_AFTER } else { RETRY_AFTER };
            let _ = timeout(refresh_after, self.wanted.notified()).await;
            sleep_until(began + FETCH_SPACING).await;
        }
    }

    async fn fetch_once(&self) {
        let fetched = timeout(FETCH_TIMEOUT, (self.fetch)()).await;
        let asked_at = Some(Instant::now());
        let documents = match fetched {
            Ok(Ok(documents)) => documents,
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => chain(&*error.0).to_string(),
                    _ => "timed out".to_owned(),
                };
                if self.published.borrow().reached || self.published.borrow().keys.is_empty() {
                    warn!(
                        reason,
                        "cannot fetch the cluster's signing keys; the keys last seen and the kubelet's files decide"
                    );
                }
                self.published.send_modify(|published| {
                    published.reached = false;
                    published.failures += 1;
                    published.asked_at = asked_at;
                });
                return;
            }
        };
        let keys = parse(&documents.jwks);
        self.published.send_modify(|published| {
            if published.keys.len() != keys.len() || !keys.keys().all(|id| published.keys.contains_key(id)) {
                info!(keys = keys.len(), issuer = documents.issuer, "fetched the cluster's signing keys");
            }
            *published = Published {
                keys,
                issuer: documents.issuer.as_str().into(),
                reached: true,
                failures: 0,
                asked_at,
            };
        });
    }
}

impl Key {
    /// Whether this key signed `token`. Expiry and audience are judged elsewhere.
    pub fn signed(&self, token: &str) -> bool {
        let mut validation = Validation::new(self.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        // A node whose clock is a second behind the API server's would refuse each fresh token.
        validation.validate_nbf = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &self.key, &validation).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.algorithm)
    }
}

impl Published {
    fn lookup(&self, id: &str) -> Option<KeyLookup> {
        let key = self.keys.get(id)?.clone();
        Some(KeyLookup::Known { key, issuer: self.issuer.clone() })
    }
}

/// Takes the keys that can be used and leaves out the others: one exotic key must not hide the rest.
fn parse(jwks: &Value) -> HashMap<String, Key> {
    let keys = jwks.get("keys").and_then(Value::as_array).into_iter().flatten();
    keys.filter_map(|value| {
        let key = read_key(value);
        if key.is_none() {
            let id = value.get("kid").and_then(Value::as_str);
            warn!(
                id,
                "leave out a signing key of the cluster: RS256, RS384, RS512, ES256 and ES384 are understood"
            );
        }
        key
    })
    .collect()
}

fn read_key(value: &Value) -> Option<(String, Key)> {
    let jwk: jwk::Jwk = serde_json::from_value(value.clone()).ok()?;
    let algorithm = algorithm_of(&jwk)?;
    let key = Arc::new(DecodingKey::from_jwk(&jwk).ok()?);
    Some((jwk.common.key_id?, Key { key, algorithm }))
}

/// The algorithm follows from the key, never from the token: a token that may choose could choose a weak one.
fn algorithm_of(jwk: &jwk::Jwk) -> Option<Algorithm> {
    match &jwk.algorithm {
        jwk::AlgorithmParameters::RSA(_) => Some(match jwk.common.key_algorithm {
            Some(jwk::KeyAlgorithm::RS384) => Algorithm::RS384,
            Some(jwk::KeyAlgorithm::RS512) => Algorithm::RS512,
            _ => Algorithm::RS256,
        }),
        jwk::AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            jwk::EllipticCurve::P256 => Some(Algorithm::ES256),
            jwk::EllipticCurve::P384 => Some(Algorithm::ES384),
            _ => None,
        },
        _ => None,
    }
}
