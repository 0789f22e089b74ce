//! The certificate that is served now, which can be swapped while connections come in.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::mint::{Facts, ReadError};
use rolecall_process::time::unix_seconds;

/// The certificate that is served. Cloning is cheap, and a clone sees what the others load.
#[derive(Clone)]
pub struct Serving {
    current: Arc<RwLock<Option<Current>>>,
    provider: Arc<CryptoProvider>,
    expires: Gauge,
}

struct Current {
    key: Arc<CertifiedKey>,
    facts: Facts,
}

/// Why a certificate is not served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the certificate is not PEM, or there is none")]
    Certificate,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the private key is not PEM, or there is none")]
    Key,
    #[error("the key does not fit the certificate; both files may be in the middle of a change")]
    Pair(#[source] rustls::Error),
}

impl Serving {
    /// Serves nothing yet.
    #[must_use]
    pub fn new(provider: Arc<CryptoProvider>, registry: &mut Registry) -> Self {
        let expires = Gauge::default();
        registry.register(
            "shim_certificate_expiry_timestamp_seconds",
            "Unix time at which the serving certificate expires; 0 while there is none",
            expires.clone(),
        );
        Self { current: Arc::default(), provider, expires }
    }

    /// Serves this certificate from the next handshake on.
    ///
    /// # Errors
    /// When the two cannot be used, alone or together; what was served goes on being served.
    pub fn load(&self, certificate: &[u8], key: &[u8]) -> Result<Facts, LoadError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| LoadError::Certificate)?;
        let facts = Facts::of(chain.first().ok_or(LoadError::Certificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| LoadError::Key)?;
        // It compares the public keys of the two as well.
        let pair = CertifiedKey::from_der(chain, key, &self.provider).map_err(LoadError::Pair)?;
        let current = Current { key: Arc::new(pair), facts: facts.clone() };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
        self.expires.set(unix_seconds(facts.expires));
        Ok(facts)
    }

    /// What the served certificate says.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| current.facts.clone())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| current.key.clone())
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Serving(…)")
    }
}
