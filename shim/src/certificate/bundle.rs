//! What `caBundle` has to hold, and whether it does.

use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::stored::Authority;

/// Authorities that the API server trusts, as one webhook of the configuration has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle(Vec<CertificateDer<'static>>);

/// How a bundle stands beside what is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Exactly what is required.
    Exact,
    /// All that is required, and more.
    More,
    /// Something is missing.
    Less,
}

impl Bundle {
    /// Reads the value of `caBundle`. What is not all PEM counts as empty: the API server would refuse it as well.
    #[must_use]
    pub fn read(pem: &[u8]) -> Self {
        Self(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap_or_default())
    }

    #[must_use]
    pub fn contains(&self, der: &CertificateDer<'_>) -> bool {
        self.0.contains(der)
    }

    #[must_use]
    pub fn standing(&self, required: &[Authority]) -> Standing {
        if !required.iter().all(|authority| self.contains(&authority.facts.der)) {
            Standing::Less
        } else if self.0.iter().all(|der| required.iter().any(|authority| authority.facts.der == *der)) {
            Standing::Exact
        } else {
            Standing::More
        }
    }
}

/// The value of `caBundle` for `required`.
#[must_use]
pub fn to_pem(required: &[Authority]) -> Vec<u8> {
    let mut pem = String::new();
    for (index, authority) in required.iter().enumerate() {
        if !required[..index].iter().any(|earlier| earlier.facts.der == authority.facts.der) {
            pem.push_str(authority.certificate.trim_end());
            pem.push('\n');
        }
    }
    pem.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::{mint, stored::Read};
    use rolecall_process::time::from_unix_seconds;

    #[test]
    fn a_bundle_is_judged_by_what_is_in_it() {
        let new = || {
            let pair =
                mint::authority(from_unix_seconds(1_800_000_000), Duration::from_secs(86_400)).unwrap();
            Read::new(pair).unwrap().to_authority()
        };
        let (a, b) = (new(), new());
        let both = [a.clone(), b.clone()];
        let bundle = Bundle::read(&to_pem(&both));
        assert_eq!(bundle.standing(&both), Standing::Exact);
        assert_eq!(bundle.standing(&both[..1]), Standing::More);
        assert_eq!(bundle.standing(&[a.clone(), new()]), Standing::Less);
        assert_eq!(Bundle::read(b"").standing(&both), Standing::Less);
        assert_eq!(Bundle::read(b"-----BEGIN CERTIFICATE-----\nxx").standing(&both), Standing::Less);
        assert_eq!(to_pem(&[a.clone(), a.clone()]), to_pem(&[a]));
    }
}
