//! One signing key of an issuer.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// What a key signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA 2048 with PKCS #1 v1.5 and SHA-256, the default of most clusters.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

pub(super) struct SigningKey {
    id: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

impl Algorithm {
    /// The value of `alg`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }
}

impl SigningKey {
    pub(super) fn generate(algorithm: Algorithm) -> Self {
        let pair = match algorithm {
            Algorithm::Rs256 => Pair::Rsa(
                RsaKeyPair::generate(KeySize::Rsa2048).expect("key generation fails only without memory"),
            ),
            Algorithm::Es256 => Pair::Ec(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                    .expect("key generation fails only without memory"),
            ),
        };
        // kube-apiserver's rule for `kid`: the digest of the public key's SubjectPublicKeyInfo.
        let id = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, pair.public_key_der().as_ref()));
        Self { id, pair }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Rsa(_) => Algorithm::Rs256,
            Pair::Ec(_) => Algorithm::Es256,
        }
    }

    /// The public key, as a JWKS lists it.
    pub(super) fn jwk(&self) -> Value {
        let (kty, mut parameters) = match &self.pair {
            Pair::Rsa(pair) => {
                let (modulus, exponent) = rsa_parts(pair.public_key().as_ref());
                ("RSA", json!({ "n": encode(modulus), "e": encode(exponent) }))
            }
            Pair::Ec(pair) => {
                // An uncompressed point: 4, then both coordinates.
                let point = pair.public_key().as_ref();
                ("EC", json!({ "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..]) }))
            }
        };
        parameters["use"] = json!("sig");
        parameters["kty"] = json!(kty);
        parameters["kid"] = json!(self.id);
        parameters["alg"] = json!(self.algorithm().name());
        parameters
    }

    /// The compact serialization of a token with this payload.
    pub(super) fn sign(&self, payload: &str) -> String {
        let header = json!({ "alg": self.algorithm().name(), "kid": self.id }).to_string();
        let message = format!("{}.{}", encode(header.as_bytes()), encode(payload.as_bytes()));
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
                    .expect("the buffer has the modulus' length");
                signature
            }
            Pair::Ec(pair) => pair
                .sign(&SystemRandom::new(), message.as_bytes())
                .expect("a generated key can sign")
                .as_ref()
                .to_vec(),
        };
        format!("{message}.{}", encode(&signature))
    }
}

impl Pair {
    fn public_key_der(&self) -> PublicKeyX509Der<'static> {
        let der = match self {
            Self::Rsa(pair) => pair.public_key().as_der(),
            Self::Ec(pair) => pair.public_key().as_der(),
        };
        der.expect("a generated key can be encoded")
    }
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Modulus and exponent of a DER `RSAPublicKey`, a sequence of these two integers.
fn rsa_parts(der: &[u8]) -> (&[u8], &[u8]) {
    let (sequence, _) = der_value(der);
    let (modulus, rest) = der_value(sequence);
    let (exponent, _) = der_value(rest);
    // DER puts a zero before an integer whose first bit is set; a JWK has none.
    (modulus.strip_prefix(&[0]).unwrap_or(modulus), exponent)
}

/// The value of the first element, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ ..0x80 => (usize::from(short), 2),
        long => {
            let end = 2 + usize::from(long & 0x7f);
            (der[2..end].iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), end)
        }
    };
    der[start..].split_at(length)
}
