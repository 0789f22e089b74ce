//! A certificate authority that nobody trusts but those who are told to, for a world that speaks TLS.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

/// Signs the certificates of a world's servers. A clone is the same authority.
#[derive(Debug, Clone)]
pub struct Authority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// One with a key of its own, which is never written anywhere.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        let mut params = params("sandbox", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = key();
        let certificate = params.self_signed(&key).expect("a generated key can sign");
        Self(Arc::new(Inner { pem: certificate.pem(), issuer: Issuer::new(params, key) }))
    }

    /// Its certificate, for whoever shall trust it.
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    /// What sets up TLS in the name of `localhost` and of this address, with a certificate of its own.
    pub(crate) fn acceptor(&self, address: IpAddr) -> TlsAcceptor {
        let mut params = params("server", &["localhost", &address.to_string()]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = key();
        let certificate = params.signed_by(&key, &self.0.issuer).expect("a generated key can sign");
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("AWS-LC has suites for both versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())
            .expect("the key is the certificate's");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params =
        CertificateParams::new(hosts).expect("an address and `localhost` can be in a certificate");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("key generation fails only without memory")
}
