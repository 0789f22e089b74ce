//! A cluster's token issuer: keys, their rotation, the documents it publishes and the tokens it signs.

mod claims;
mod key;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

pub use claims::TokenClaims;
pub use key::Algorithm;
use key::SigningKey;

/// Signs ServiceAccount tokens as a kube-apiserver does, and publishes the keys to verify them with.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    url: String,
    /// The last one signs; the ones before it still verify.
    keys: Mutex<Vec<SigningKey>>,
}

impl Issuer {
    /// An issuer whose tokens carry `url` as `iss`, with one key. A key for [`Algorithm::Rs256`] takes some 100 ms
    /// to generate, one for [`Algorithm::Es256`] next to nothing.
    pub fn new(url: &str, algorithm: Algorithm) -> Self {
        Self(Arc::new(Inner { url: url.to_owned(), keys: Mutex::new(vec![SigningKey::generate(algorithm)]) }))
    }

    /// The issuer's URL, the value of `iss`.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// `kid` of the key that signs now.
    pub fn key_id(&self) -> String {
        self.keys().last().expect("an issuer always has a key").id().to_owned()
    }

    /// Signs with a new key from now on and returns its `kid`. The keys before it stay published, so that tokens
    /// signed with them go on being good, until [`Self::retire_old_keys`].
    pub fn rotate_key(&self, algorithm: Algorithm) -> String {
        let key = SigningKey::generate(algorithm);
        let id = key.id().to_owned();
        self.keys().push(key);
        id
    }

    /// Publishes the signing key alone: tokens signed with earlier ones are authentic no longer.
    pub fn retire_old_keys(&self) {
        let mut keys = self.keys();
        let retired = keys.len() - 1;
        keys.drain(..retired);
    }

    /// The document at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.keys().iter().map(SigningKey::jwk).collect();
        json!({ "keys": keys })
    }

    /// The document at `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> Value {
        let mut algorithms: Vec<&str> = self.keys().iter().map(|key| key.algorithm().name()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.0.url,
            "jwks_uri": format!("{}/openid/v1/jwks", self.0.url),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// A signed token with these claims.
    pub fn mint(&self, claims: &TokenClaims) -> String {
        let payload = claims.payload(&self.0.url).to_string();
        self.keys().last().expect("an issuer always has a key").sign(&payload)
    }

    fn keys(&self) -> MutexGuard<'_, Vec<SigningKey>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
