//! Flags about the serving certificate and TLS.

use std::path::PathBuf;

use clap::{ArgAction, ValueEnum, builder::BoolishValueParser};
use rolecall_process::value::path;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Certificate")]
pub struct CertificateArgs {
    /// Who makes the serving certificate: the shim itself, or somebody who puts it into files
    ///
    /// Absent: files if --tls-cert, --tls-key or --in-cluster=false is given, else self-managed.
    #[arg(long, env = "ROLECALL_SHIM_CERTIFICATE", value_name = "MODE", value_enum)]
    pub certificate: Option<CertificateMode>,
    /// Secret through which the replicas share what they made
    #[arg(long, env = "ROLECALL_SHIM_TLS_SECRET", value_name = "NAME", default_value = "rolecall-shim-tls")]
    pub tls_secret: String,
    /// Service that leads to the shim: the certificate's name
    #[arg(long, env = "ROLECALL_SHIM_SERVICE_NAME", value_name = "NAME", default_value = "rolecall-shim")]
    pub service_name: String,
    /// MutatingWebhookConfiguration that calls the shim: its caBundle is kept right, and it says whose pods are left out
    /// [default: the name of the Service]
    #[arg(long, env = "ROLECALL_SHIM_WEBHOOK_CONFIGURATION", value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// Another name or address for the certificate, for an API server that calls the shim by URL; repeatable
    #[arg(long, env = "ROLECALL_SHIM_CERTIFICATE_NAME", value_name = "NAME", value_delimiter = ',')]
    pub certificate_name: Vec<String>,
    /// File with the certificate and its chain [default: /etc/webhook/certs/tls.crt]
    #[arg(long, env = "ROLECALL_SHIM_TLS_CERT", value_name = "FILE", value_parser = path())]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key [default: /etc/webhook/certs/tls.key]
    #[arg(long, env = "ROLECALL_SHIM_TLS_KEY", value_name = "FILE", value_parser = path())]
    pub tls_key: Option<PathBuf>,
    /// Lowest version of TLS; 1.0 and 1.1 count as 1.2
    #[arg(long, env = "ROLECALL_SHIM_TLS_MIN_VERSION", value_name = "VERSION", default_value = "1.2")]
    pub tls_min_version: TlsVersion,
    /// Cipher suites of TLS 1.2, by their IANA names; empty for all that are secure
    #[arg(long, env = "ROLECALL_SHIM_TLS_CIPHER_SUITES", value_name = "NAMES", value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,
    /// As with the EKS webhook: false for --certificate=files, true for --certificate=self-managed
    #[arg(
        long,
        env = "ROLECALL_SHIM_IN_CLUSTER",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    pub in_cluster: Option<bool>,
}

/// Who makes the serving certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CertificateMode {
    /// The shim, with an authority of its own
    SelfManaged,
    /// Somebody else, such as cert-manager, in files
    Files,
}

/// A version of TLS, as Go programs spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.0 and 1.1, which are insecure: 1.2 stands in.
    Insecure,
    V12,
    V13,
}

impl std::str::FromStr for TlsVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "1.0" | "1.1" | "VersionTLS10" | "VersionTLS11" => Ok(Self::Insecure),
            "" | "1.2" | "VersionTLS12" => Ok(Self::V12),
            "1.3" | "VersionTLS13" => Ok(Self::V13),
            _ => Err("write 1.2 or 1.3"),
        }
    }
}
