//! Reads and verifies signed tokens against a JWKS, apart from the code that signs them.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;

/// A token in its parts; nothing of it is verified yet.
pub(crate) struct Jws<'a> {
    header: Value,
    /// The claims, as the token states them.
    pub(crate) claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Takes a compact serialization apart; `None` if it is none.
    pub(crate) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
        (header.is_object() && claims.is_object()).then_some(())?;
        Some(Self { header, claims, signed, signature: decode(signature)? })
    }

    /// A claim that is a string.
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    /// Whether one of the keys, the one that the token names, has signed it.
    pub(crate) fn is_signed_by(&self, jwks: &Value) -> bool {
        let named =
            |key: &&Value| self.header.get("kid").is_some() && key.get("kid") == self.header.get("kid");
        let keys = jwks.get("keys").and_then(Value::as_array);
        keys.into_iter().flatten().find(named).and_then(|key| self.verify(key)).is_some()
    }

    fn verify(&self, key: &Value) -> Option<()> {
        let parameter = |name: &str| decode(key.get(name)?.as_str()?);
        let message = self.signed.as_bytes();
        // The algorithm is the key's to choose: a token that names another one is not signed by this key.
        match (key.get("kty")?.as_str()?, self.header.get("alg")?.as_str()?) {
            ("RSA", "RS256") => RsaPublicKeyComponents { n: parameter("n")?, e: parameter("e")? }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, &self.signature)
                .ok(),
            ("EC", "ES256") => {
                let point = [vec![4], parameter("x")?, parameter("y")?].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, &self.signature).ok()
            }
            _ => None,
        }
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{Algorithm, Issuer, TokenClaims};

    const URL: &str = "https://kubernetes.default.svc";

    fn token(issuer: &Issuer) -> String {
        issuer.mint(&TokenClaims::new("demo", "orders", "orders-0"))
    }

    fn is_signed(token: &str, jwks: &Value) -> bool {
        Jws::parse(token).unwrap().is_signed_by(jwks)
    }

    #[test]
    fn signatures_of_both_algorithms_verify() {
        for algorithm in [Algorithm::Rs256, Algorithm::Es256] {
            let issuer = Issuer::new(URL, algorithm);
            assert!(is_signed(&token(&issuer), &issuer.jwks()), "{algorithm:?}");
        }
    }

    #[test]
    fn a_changed_payload_does_not_verify() {
        let issuer = Issuer::new(URL, Algorithm::Es256);
        let (one, other) = (token(&issuer), issuer.mint(&TokenClaims::new("demo", "admin", "a")));
        let one: Vec<&str> = one.split('.').collect();
        let other: Vec<&str> = other.split('.').collect();
        let forged = [one[0], other[1], one[2]].join(".");
        assert!(!is_signed(&forged, &issuer.jwks()));
    }

    #[test]
    fn a_key_of_another_type_does_not_verify() {
        let issuer = Issuer::new(URL, Algorithm::Es256);
        let token = token(&issuer);
        let mut jwks = Issuer::new(URL, Algorithm::Rs256).jwks();
        jwks["keys"][0]["kid"] = issuer.key_id().into();
        assert!(!is_signed(&token, &jwks));
    }

    #[test]
    fn an_unsigned_token_does_not_verify() {
        let issuer = Issuer::new(URL, Algorithm::Es256);
        let header = format!(r#"{{"alg":"none","kid":"{}"}}"#, issuer.key_id());
        let token = format!("{}.e30.", BASE64_URL_SAFE_NO_PAD.encode(header));
        assert!(!is_signed(&token, &issuer.jwks()));
    }

    #[test]
    fn a_token_without_a_key_id_does_not_verify_against_a_key_without_one() {
        let issuer = Issuer::new(URL, Algorithm::Es256);
        let mut jwks = issuer.jwks();
        jwks["keys"][0].as_object_mut().unwrap().remove("kid");
        let token = format!("{}.e30.AAAA", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#));
        assert!(!is_signed(&token, &jwks));
    }

    #[test]
    fn what_is_no_token_is_not_parsed() {
        for text in ["", "a", "a.b", "a.b.c", "e30.e30.%", "W10.e30.AAAA", "e30.W10.AAAA"] {
            assert!(Jws::parse(text).is_none(), "{text}");
        }
    }
}
