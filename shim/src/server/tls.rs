//! TLS 1.2 and 1.3, with the ciphers that the operator allows.

use std::sync::Arc;

use rustls::{ProtocolVersion, ServerConfig, crypto::CryptoProvider, version};

use crate::certificate::Serving;

/// What is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// TLS 1.2 is refused.
    pub only_v13: bool,
    /// The suites of TLS 1.2, by their IANA names; all, if none is named. Those of TLS 1.3 are all good, and on.
    pub cipher_suites: Vec<String>,
}

/// Go's own names of two suites, which lack their ending.
const SHORT_NAMES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Whether a suite of this name can be spoken.
#[must_use]
pub fn is_known_suite(name: &str) -> bool {
    all().cipher_suites.iter().any(|suite| name_of(suite) == long(name))
}

/// The cryptography with no other suites than `config` allows.
#[must_use]
pub fn provider(config: &Config) -> Arc<CryptoProvider> {
    let mut provider = all();
    if !config.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|suite| {
            suite.version().version == ProtocolVersion::TLSv1_3
                || config.cipher_suites.iter().any(|name| name_of(suite) == long(name))
        });
    }
    Arc::new(provider)
}

/// What the listener speaks, with the certificate that is served at the time of each handshake.
///
/// # Errors
/// When the suites of `config` leave a version without any.
pub fn server_config(
    config: &Config,
    provider: Arc<CryptoProvider>,
    serving: Serving,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions: &[&rustls::SupportedProtocolVersion] = match config.only_v13 {
        true => &[&version::TLS13],
        false if provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()) => &[&version::TLS13],
        false => &[&version::TLS13, &version::TLS12],
    };
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(serving));
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

fn all() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn name_of(suite: &rustls::SupportedCipherSuite) -> &'static str {
    suite.suite().as_str().unwrap_or_default()
}

fn long(name: &str) -> &str {
    SHORT_NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_of_tls_1_2_are_chosen_by_name_and_insecure_ones_unknown() {
        let short = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305";
        for (name, known) in [
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", true),
            (short, true),
            ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", false),
            ("", false),
        ] {
            assert_eq!(is_known_suite(name), known, "{name}");
        }
        let config = Config { only_v13: false, cipher_suites: vec![short.to_owned()] };
        let v12 =
            |config: &Config| provider(config).cipher_suites.iter().filter(|s| s.tls13().is_none()).count();
        assert_eq!(v12(&config), 1);
        assert!(1 < v12(&Config { only_v13: false, cipher_suites: Vec::new() }));
    }
}
