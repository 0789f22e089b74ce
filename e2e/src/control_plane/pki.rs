//! The keys and certificates of a control plane, as files.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, SanType,
};

#[derive(Debug)]
pub(crate) struct Pki {
    folder: PathBuf,
    authority: Authority,
    signing_keys: Vec<SigningKey>,
}

/// The files of a key that signs ServiceAccount tokens.
#[derive(Debug, Clone)]
pub(super) struct SigningKey {
    pub(super) private: PathBuf,
    pub(super) public: PathBuf,
}

impl Pki {
    /// Writes everything that an API server at these addresses and its administrator need into `folder`.
    pub(super) fn make(folder: &Path, addresses: &[Ipv4Addr]) -> Result<Self> {
        let authority = Authority::make(folder)?;
        authority.issue("apiserver", "kube-apiserver", None, addresses)?;
        authority.issue("admin", "admin", Some("system:masters"), &[])?;
        let mut pki = Self { folder: folder.to_owned(), authority, signing_keys: Vec::new() };
        pki.add_signing_key()?;
        Ok(pki)
    }

    pub(super) fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The administrator's certificate and key.
    pub(super) fn admin_paths(&self) -> (PathBuf, PathBuf) {
        (self.folder.join("admin.crt"), self.folder.join("admin.key"))
    }

    /// Writes the certificate and key of a component, which may also serve at `addresses`. The group is what RBAC
    /// sees as the user's.
    pub(super) fn issue(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        addresses: &[Ipv4Addr],
    ) -> Result<(PathBuf, PathBuf)> {
        self.authority.issue(file, user, group, addresses)?;
        Ok((self.folder.join(format!("{file}.crt")), self.folder.join(format!("{file}.key"))))
    }

    /// From the oldest to the newest.
    pub(super) fn signing_keys(&self) -> &[SigningKey] {
        &self.signing_keys
    }

    /// RSA, as clusters have unless told otherwise, so that tokens are signed with RS256.
    pub(super) fn add_signing_key(&mut self) -> Result<()> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let name = format!("service-account-{}", self.signing_keys.len() + 1);
        let files = SigningKey {
            private: self.folder.join(format!("{name}.key")),
            public: self.folder.join(format!("{name}.pub")),
        };
        write_private(&files.private, key.serialize_pem().as_bytes())?;
        write_private(&files.public, key.public_key_pem().as_bytes())?;
        self.signing_keys.push(files);
        Ok(())
    }
}

#[derive(Debug)]
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn make(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "rolecall test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write_private(&folder.join("ca.crt"), certificate.pem().as_bytes())?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Writes `<file>.crt` and `<file>.key`, good for clients, and for servers at `addresses`.
    fn issue(&self, file: &str, name: &str, group: Option<&str>, addresses: &[Ipv4Addr]) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names =
            addresses.iter().map(|&address| SanType::IpAddress(IpAddr::V4(address))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !addresses.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_private(&self.folder.join(format!("{file}.crt")), certificate.pem().as_bytes())?;
        write_private(&self.folder.join(format!("{file}.key")), key.serialize_pem().as_bytes())
    }
}

/// Writes a file that only the owner can read.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content)).with_context(|| format!("write {}", path.display()))
}
