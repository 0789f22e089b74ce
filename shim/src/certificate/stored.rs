//! What the replicas share in the Secret: the authorities and the serving certificate.

use std::collections::BTreeMap;

use super::mint::{Facts, Pair, ReadError};

/// Nobody else puts an authority's key into such a Secret.
pub(super) const OWN_KEY: &str = "ca.key";

const AUTHORITY: (&str, &str) = ("ca.crt", OWN_KEY);
const NEXT: (&str, &str) = ("next-ca.crt", "next-ca.key");
const PREVIOUS: &str = "previous-ca.crt";
const SERVING: (&str, &str) = ("tls.crt", "tls.key");

/// The content of the Secret, found to fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// It signed the serving certificate.
    pub authority: Read,
    /// It is published, and will sign once every API server knows it.
    pub next: Option<Read>,
    /// A certificate that it signed may still be served; its key is gone.
    pub previous: Option<Authority>,
    pub serving: Read,
}

/// A pair and what its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub pair: Pair,
    pub facts: Facts,
}

/// An authority that is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// PEM.
    pub certificate: String,
    pub facts: Facts,
}

/// Why the content of the Secret cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    #[error("the key {key} is not there")]
    Missing { key: &'static str },
    #[error("the key {key} is not text")]
    NotText { key: &'static str },
    #[error("read the key {key}")]
    Certificate {
        key: &'static str,
        #[source]
        source: ReadError,
    },
    #[error("the key {key} is not the one of its certificate")]
    OtherKey { key: &'static str },
    #[error("tls.crt was not signed by ca.crt")]
    OtherIssuer,
}

impl Read {
    /// # Errors
    /// When the certificate cannot be read.
    pub fn new(pair: Pair) -> Result<Self, ReadError> {
        let facts = Facts::read(pair.certificate.as_bytes())?;
        Ok(Self { pair, facts })
    }

    /// The certificate alone.
    #[must_use]
    pub fn to_authority(&self) -> Authority {
        Authority { certificate: self.pair.certificate.clone(), facts: self.facts.clone() }
    }
}

impl Stored {
    /// Reads the `data` of the Secret, value by value through `get`.
    ///
    /// # Errors
    /// When a part is missing or broken, or the parts, keys included, do not belong together.
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, StoredError> {
        let text = |key: &'static str| {
            let bytes = get(key).filter(|bytes| !bytes.is_empty()).ok_or(StoredError::Missing { key })?;
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| StoredError::NotText { key })
        };
        let pair = |(certificate, key): (&'static str, &'static str)| {
            let pair = Pair { certificate: text(certificate)?, key: text(key)? };
            let read =
                Read::new(pair).map_err(|source| StoredError::Certificate { key: certificate, source })?;
            // With another one nothing could be served or signed, until the certificate is made anew.
            if read.pair.fits(&read.facts) { Ok(read) } else { Err(StoredError::OtherKey { key }) }
        };
        let is_there = |key: &str| get(key).is_some_and(|bytes| !bytes.is_empty());
        let previous = || {
            let certificate = text(PREVIOUS)?;
            let facts = Facts::read(certificate.as_bytes())
                .map_err(|source| StoredError::Certificate { key: PREVIOUS, source })?;
            Ok(Authority { certificate, facts })
        };
        let stored = Self {
            authority: pair(AUTHORITY)?,
            next: is_there(NEXT.0).then(|| pair(NEXT)).transpose()?,
            previous: is_there(PREVIOUS).then(previous).transpose()?,
            serving: pair(SERVING)?,
        };
        if stored.serving.facts.issuer != stored.authority.facts.subject {
            return Err(StoredError::OtherIssuer);
        }
        Ok(stored)
    }

    /// The `data` of the Secret, all of it.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, value: &str| data.insert(key.to_owned(), value.as_bytes().to_vec());
        put(AUTHORITY.0, &self.authority.pair.certificate);
        put(AUTHORITY.1, &self.authority.pair.key);
        put(SERVING.0, &self.serving.pair.certificate);
        put(SERVING.1, &self.serving.pair.key);
        if let Some(next) = &self.next {
            put(NEXT.0, &next.pair.certificate);
            put(NEXT.1, &next.pair.key);
        }
        if let Some(previous) = &self.previous {
            put(PREVIOUS, &previous.certificate);
        }
        data
    }

    /// Every authority that the API server has to trust now, the signing one first.
    pub fn authorities(&self) -> impl Iterator<Item = Authority> {
        let next = self.next.as_ref().map(Read::to_authority);
        std::iter::once(self.authority.to_authority()).chain(next).chain(self.previous.clone())
    }
}
