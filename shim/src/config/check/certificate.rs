//! The rules of TLS and of where the certificate is from.

use std::path::PathBuf;

use rolecall_process::setting::Checked;

use super::{
    filled,
    form::{self, is_dns_name},
};
use crate::{
    args::{CertificateArgs, CertificateMode, TlsVersion},
    certificate::{FilesConfig, Lifetimes},
    config::CertificateConfig,
    server,
};

const CERTIFICATE_FILE: &str = "/etc/webhook/certs/tls.crt";
const KEY_FILE: &str = "/etc/webhook/certs/tls.key";

pub(super) fn check_tls(checked: &mut Checked, args: &CertificateArgs) -> server::tls::Config {
    if args.tls_min_version == TlsVersion::Insecure {
        checked.warnings.push(
            "--tls-min-version: TLS 1.0 and 1.1 are insecure and not spoken here; the lowest is 1.2"
                .to_owned(),
        );
    }
    let asked: Vec<String> = args.tls_cipher_suites.iter().filter(|name| !name.is_empty()).cloned().collect();
    let (known, unknown): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|name| server::tls::is_known_suite(name));
    if !unknown.is_empty() {
        checked.warnings.push(format!(
            "--tls-cipher-suites: left out, because insecure or not known here: {}",
            unknown.join(", ")
        ));
    }
    server::tls::Config { only_v13: args.tls_min_version == TlsVersion::V13, cipher_suites: known }
}

/// The name of the webhook's configuration, which is that of the Service where nothing else is said.
pub(super) fn check_webhook_configuration(checked: &mut Checked, args: &CertificateArgs) -> String {
    let name = filled(args.webhook_configuration.clone()).unwrap_or_else(|| args.service_name.clone());
    form::check_name(checked, "--webhook-configuration", &name);
    name
}

pub(super) fn check_certificate(checked: &mut Checked, args: CertificateArgs) -> CertificateConfig {
    let in_files = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let (certificate, key) = (in_files(&args.tls_cert), in_files(&args.tls_key));
    let has_files = certificate.is_some() || key.is_some();
    let by_in_cluster = args.in_cluster.map(|in_cluster| match in_cluster {
        true => CertificateMode::SelfManaged,
        false => CertificateMode::Files,
    });
    let mode = match (args.certificate, by_in_cluster) {
        (Some(mode), Some(other)) if mode != other => {
            checked.mistake(
                "--in-cluster",
                format!("{:?}", args.in_cluster.unwrap_or_default()),
                "it contradicts --certificate; give one of the two",
            );
            mode
        }
        (Some(mode), _) => mode,
        (None, Some(CertificateMode::SelfManaged)) if has_files => CertificateMode::Files,
        (None, Some(mode)) => mode,
        (None, None) if has_files => CertificateMode::Files,
        (None, None) => CertificateMode::SelfManaged,
    };
    match mode {
        CertificateMode::Files => CertificateConfig::Files(FilesConfig {
            certificate: certificate.unwrap_or_else(|| CERTIFICATE_FILE.into()),
            key: key.unwrap_or_else(|| KEY_FILE.into()),
        }),
        CertificateMode::SelfManaged => {
            for (flag, path) in [("--tls-cert", &certificate), ("--tls-key", &key)] {
                if let Some(path) = path {
                    checked.mistake(
                        flag,
                        format!("{path:?}"),
                        "no files are read in this mode; give --certificate=files, or leave this flag out",
                    );
                }
            }
            form::check_name(checked, "--tls-secret", &args.tls_secret);
            form::check_label(checked, "--service-name", &args.service_name);
            let other_names: Vec<String> =
                args.certificate_name.into_iter().filter(|name| !name.is_empty()).collect();
            for name in &other_names {
                checked.that(
                    name.parse::<std::net::IpAddr>().is_ok() || is_dns_name(name),
                    "--certificate-name",
                    name,
                    "give a DNS name in lower case or an IP address",
                );
            }
            CertificateConfig::SelfManaged {
                secret: args.tls_secret,
                service: args.service_name,
                other_names,
                lifetimes: Lifetimes::default(),
            }
        }
    }
}
