//! Makes certificate authorities and serving certificates, and reads back what one says.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use rolecall_process::time::from_unix_seconds;

/// Since when every certificate is valid. Were it the time of its making, what a replica makes whose clock is ahead
/// would be believed by nobody else; and a key that is a second old gains nothing by a later begin.
const VALID_FROM: SystemTime = SystemTime::UNIX_EPOCH;

/// What the name of an authority starts with; random digits follow, so that no two are taken for each other.
const AUTHORITY_NAME: &str = "rolecall-shim authority ";

/// A certificate and its key. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// PEM of PKCS #8.
    pub key: String,
}

/// The names that a serving certificate is for: DNS names and IP addresses, as an API server may dial them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(BTreeSet<String>);

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The whole certificate.
    pub der: CertificateDer<'static>,
    pub begins: SystemTime,
    pub expires: SystemTime,
    /// The DER of the subject's name.
    pub subject: Vec<u8>,
    /// The DER of the issuer's name.
    pub issuer: Vec<u8>,
    /// DNS names and IP addresses.
    pub names: BTreeSet<String>,
}

/// Why nothing could be made.
#[derive(Debug, thiserror::Error)]
#[error("make a {what}")]
pub struct MintError {
    what: &'static str,
    #[source]
    source: rcgen::Error,
}

/// Why a certificate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is not PEM.
    #[error("it is no certificate in PEM")]
    NotPem,
    /// The DER inside is not a certificate.
    #[error("it is no X.509 certificate")]
    NotX509,
}

impl Names {
    /// The names under which the API server and others reach a Service, and `others`.
    #[must_use]
    pub fn of_service(namespace: &str, service: &str, others: &[String]) -> Self {
        let own = [
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            format!("{service}.{namespace}"),
        ];
        Self(own.into_iter().chain(others.iter().cloned()).collect())
    }

    /// Whether a certificate for `others` is good for all of these.
    #[must_use]
    pub fn are_among(&self, others: &BTreeSet<String>) -> bool {
        self.0.is_subset(others)
    }

    /// These and `others`.
    #[must_use]
    pub fn with(&self, others: &BTreeSet<String>) -> Self {
        Self(self.0.union(others).cloned().collect())
    }
}

impl Pair {
    /// Whether the key is the one of the certificate, which says `facts`.
    #[must_use]
    pub fn fits(&self, facts: &Facts) -> bool {
        let Ok(key) = KeyPair::from_pem(&self.key) else { return false };
        parse_x509_certificate(&facts.der).is_ok_and(|(_, certificate)| {
            *certificate.public_key().subject_public_key.data == *key.public_key_raw()
        })
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pair(…)")
    }
}

/// Makes a certificate authority that expires `lifetime` after `now`.
///
/// # Errors
/// When the cryptography fails, which it does not.
pub fn authority(now: SystemTime, lifetime: Duration) -> Result<Pair, MintError> {
    let fail = |source| MintError { what: "certificate authority", source };
    let key = new_key().map_err(fail)?;
    let name = format!("{AUTHORITY_NAME}{:016x}", fastrand::u64(..));
    let mut params = authority_params(&name);
    params.not_before = VALID_FROM.into();
    params.not_after = (now + lifetime).into();
    let certificate = params.self_signed(&key).map_err(fail)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a serving certificate for `names`, signed by `authority`, that expires at `until`, but never later than the
/// authority.
///
/// # Errors
/// When `authority` is not one that [`authority`] made, or a name can be in no certificate.
pub fn serving(authority: &Pair, facts: &Facts, names: &Names, until: SystemTime) -> Result<Pair, MintError> {
    let fail = |source| MintError { what: "serving certificate", source };
    let issuer_key = KeyPair::from_pem(&authority.key).map_err(fail)?;
    let issuer = Issuer::new(authority_params(&facts.common_name()), issuer_key);
    let key = new_key().map_err(fail)?;
    let mut params = CertificateParams::new(names.0.iter().cloned().collect::<Vec<_>>()).map_err(fail)?;
    params.distinguished_name.push(DnType::CommonName, "rolecall-shim");
    params.not_before = VALID_FROM.into();
    params.not_after = until.min(facts.expires).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(fail)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

impl Facts {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none, or it is not of X.509.
    pub fn read(pem: &[u8]) -> Result<Self, ReadError> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|_| ReadError::NotPem)?;
        Self::of(&der)
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not of X.509.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, ReadError> {
        let (_, certificate) = parse_x509_certificate(der).map_err(|_| ReadError::NotX509)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| ReadError::NotX509)?
            .into_iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(name_of)
            .collect();
        let validity = certificate.validity();
        Ok(Self {
            der: der.clone().into_owned(),
            begins: from_unix_seconds(validity.not_before.timestamp()),
            expires: from_unix_seconds(validity.not_after.timestamp()),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            names,
        })
    }

    fn common_name(&self) -> String {
        let parsed = parse_x509_certificate(&self.der).ok().and_then(|(_, certificate)| {
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
            Some(name.to_owned())
        });
        parsed.unwrap_or_default()
    }
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

/// What makes the issuer's name and key identifier; signing with an authority that was stored needs the same again.
fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        from_unix_seconds(1_800_000_000)
    }

    #[test]
    fn a_serving_certificate_says_what_was_asked_for() {
        let ca = authority(now(), 1000 * DAY).unwrap();
        let ca_facts = Facts::read(ca.certificate.as_bytes()).unwrap();
        let others = ["127.0.0.1".to_owned(), "fd00::1".to_owned(), "webhook.example".to_owned()];
        let names = Names::of_service("rolecall", "rolecall-shim", &others);
        let pair = serving(&ca, &ca_facts, &names, now() + 90 * DAY).unwrap();
        let facts = Facts::read(pair.certificate.as_bytes()).unwrap();
        assert_eq!((facts.begins, facts.expires), (VALID_FROM, now() + 90 * DAY));
        assert_eq!(facts.issuer, ca_facts.subject);
        assert!(names.are_among(&facts.names) && facts.names.len() == 6, "{:?}", facts.names);
        assert!(!Names::of_service("other", "rolecall-shim", &[]).are_among(&facts.names));
    }

    #[test]
    fn no_serving_certificate_outlives_its_authority() {
        let ca = authority(now(), 10 * DAY).unwrap();
        let ca_facts = Facts::read(ca.certificate.as_bytes()).unwrap();
        let names = Names::of_service("a", "b", &[]);
        let pair = serving(&ca, &ca_facts, &names, now() + 91 * DAY).unwrap();
        assert_eq!(Facts::read(pair.certificate.as_bytes()).unwrap().expires, now() + 10 * DAY);
    }

    #[test]
    fn no_two_authorities_have_one_name() {
        let subject = || Facts::read(authority(now(), DAY).unwrap().certificate.as_bytes()).unwrap().subject;
        assert_ne!(subject(), subject());
    }

    #[test]
    fn a_key_is_in_no_debug_output() {
        let pair = authority(now(), DAY).unwrap();
        assert_eq!(format!("{pair:?}"), "Pair(…)");
    }

    #[test]
    fn what_is_no_certificate_is_said_so() {
        assert_eq!(Facts::read(b"nothing"), Err(ReadError::NotPem));
        assert_eq!(Facts::of(&CertificateDer::from_slice(b"nothing")), Err(ReadError::NotX509));
    }
}
