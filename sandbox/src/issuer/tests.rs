use std::time::{Duration, UNIX_EPOCH};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};

use super::{Algorithm, Issuer, TokenClaims};

const URL: &str = "https://kubernetes.default.svc";

/// Verifies as an independent implementation does, with what the issuer publishes.
fn verified(issuer: &Issuer, token: &str) -> Result<Value, String> {
    let jwks: JwkSet = serde_json::from_value(issuer.jwks()).unwrap();
    let header = decode_header(token).map_err(|error| error.to_string())?;
    let jwk = jwks.find(&header.kid.unwrap()).ok_or("key not published")?;
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&["sts.amazonaws.com"]);
    validation.set_issuer(&[URL]);
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    decode::<Value>(token, &key, &validation).map(|token| token.claims).map_err(|error| error.to_string())
}

fn claims() -> TokenClaims {
    TokenClaims::new("demo", "orders", "orders-0").pod_uid("uid-1").node("node-a")
}

#[track_caller]
fn check_a_foreign_verifier_accepts(algorithm: Algorithm) {
    let issuer = Issuer::new(URL, algorithm);
    let verified = verified(&issuer, &issuer.mint(&claims())).unwrap();
    assert_eq!(verified["sub"], "system:serviceaccount:demo:orders");
}

#[test]
fn a_foreign_verifier_accepts_an_rsa_token() {
    check_a_foreign_verifier_accepts(Algorithm::Rs256);
}

#[test]
fn a_foreign_verifier_accepts_an_ecdsa_token() {
    check_a_foreign_verifier_accepts(Algorithm::Es256);
}

#[test]
fn claims_are_those_of_a_kubernetes_token() {
    let issuer = Issuer::new(URL, Algorithm::Es256);
    let claims = TokenClaims {
        issued_at: UNIX_EPOCH + Duration::from_secs(4_000_000_000),
        lifetime: Duration::from_secs(3600),
        service_account_uid: "uid-sa".to_owned(),
        node_uid: "uid-node".to_owned(),
        ..claims()
    };
    let mut payload = claims.payload(issuer.url());
    let jti = payload.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!(jti.as_str().unwrap().len(), 36);
    assert_eq!(
        payload,
        json!({
            "aud": ["sts.amazonaws.com"],
            "exp": 4_000_003_600_u64,
            "iat": 4_000_000_000_u64,
            "iss": URL,
            "kubernetes.io": {
                "namespace": "demo",
                "node": { "name": "node-a", "uid": "uid-node" },
                "pod": { "name": "orders-0", "uid": "uid-1" },
                "serviceaccount": { "name": "orders", "uid": "uid-sa" },
            },
            "nbf": 4_000_000_000_u64,
            "sub": "system:serviceaccount:demo:orders",
        })
    );
}

#[test]
fn a_token_without_a_node_has_no_node_claim() {
    let payload = TokenClaims::new("demo", "orders", "orders-0").payload(URL);
    assert_eq!(payload["kubernetes.io"].get("node"), None);
}

#[test]
fn a_rotated_key_signs_and_the_old_one_verifies_until_it_is_retired() {
    let issuer = Issuer::new(URL, Algorithm::Es256);
    let before = issuer.mint(&claims());
    let first = issuer.key_id();

    let second = issuer.rotate_key(Algorithm::Rs256);
    let after = issuer.mint(&claims());
    assert_ne!(first, second);
    assert_eq!(issuer.key_id(), second);
    assert!(verified(&issuer, &before).is_ok());
    assert!(verified(&issuer, &after).is_ok());
    assert_eq!(
        issuer.openid_configuration()["id_token_signing_alg_values_supported"],
        json!(["ES256", "RS256"])
    );

    issuer.retire_old_keys();
    assert_eq!(verified(&issuer, &before), Err("key not published".to_owned()));
    assert!(verified(&issuer, &after).is_ok());
}

#[test]
fn a_token_of_another_issuer_with_the_same_url_is_not_authentic() {
    let issuer = Issuer::new(URL, Algorithm::Es256);
    let stranger = Issuer::new(URL, Algorithm::Es256);
    assert_eq!(verified(&issuer, &stranger.mint(&claims())), Err("key not published".to_owned()));
}

#[test]
fn key_ids_have_the_length_of_a_sha256_digest() {
    assert_eq!(Issuer::new(URL, Algorithm::Es256).key_id().len(), 43);
}
