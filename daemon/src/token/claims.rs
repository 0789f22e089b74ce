//! What a token says of itself, before anybody has checked it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The claims of a projected ServiceAccount token, **not authenticated**.
///
/// They select the file to compare the token with, and may refuse it; they never admit anybody.
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `kid` of the header: which key of the cluster is said to have signed.
    pub key_id: Option<String>,
    pub issuer: String,
    pub audiences: Vec<String>,
    pub expires_at: SystemTime,
    pub namespace: String,
    pub pod: ObjectClaim,
    /// The node that the pod is bound to; tokens of older clusters do not say it.
    pub node: Option<ObjectClaim>,
}

/// The name and uid of an object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ObjectClaim {
    pub name: String,
    pub uid: String,
}

/// The text is not a token that is bound to a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    #[error("it is not a JSON Web Token; send the token file's content as it is, without \"Bearer\"")]
    NotAToken,
    #[error("it is not bound to a pod; only the token of a projected volume is")]
    NotBoundToAPod,
}

impl Claims {
    /// Reads the claims of `token` without checking anything but its form.
    ///
    /// # Errors
    /// When it is no JSON Web Token (RFC 7519), or none that Kubernetes issued for a pod.
    pub fn read(token: &str) -> Result<Self, ClaimsError> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ClaimsError::NotAToken);
        };
        let header: HeaderJson = decode(header)?;
        let payload: PayloadJson = decode(payload)?;
        let bound = payload.kubernetes.ok_or(ClaimsError::NotBoundToAPod)?;
        Ok(Self {
            key_id: header.kid,
            issuer: payload.iss,
            audiences: payload.aud.into(),
            expires_at: UNIX_EPOCH
                .checked_add(Duration::from_secs(payload.exp))
                .ok_or(ClaimsError::NotAToken)?,
            namespace: bound.namespace,
            pod: bound.pod.ok_or(ClaimsError::NotBoundToAPod)?,
            node: bound.node,
        })
    }
}

#[derive(Deserialize)]
struct HeaderJson {
    kid: Option<String>,
}

#[derive(Deserialize)]
struct PayloadJson {
    iss: String,
    #[serde(default)]
    aud: AudienceJson,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesJson>,
}

/// One audience may stand without its array (RFC 7519, 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum AudienceJson {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct KubernetesJson {
    namespace: String,
    pod: Option<ObjectClaim>,
    node: Option<ObjectClaim>,
}

impl Default for AudienceJson {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl From<AudienceJson> for Vec<String> {
    fn from(audience: AudienceJson) -> Self {
        match audience {
            AudienceJson::One(one) => vec![one],
            AudienceJson::Several(several) => several,
        }
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, ClaimsError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| ClaimsError::NotAToken)?;
    serde_json::from_slice(&bytes).map_err(|_| ClaimsError::NotAToken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn token(payload: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", encode(&json!({"alg": "RS256", "kid": "k1"})), encode(payload))
    }

    fn payload() -> Value {
        json!({
            "iss": "https://kubernetes.default.svc", "aud": ["sts.amazonaws.com"], "exp": 1_800_000_000, "iat": 1, "nbf": 1,
            "jti": "x", "sub": "system:serviceaccount:shop:orders",
            "kubernetes.io": {"namespace": "shop", "node": {"name": "n1", "uid": "un"},
                "pod": {"name": "orders-0", "uid": "up"}, "serviceaccount": {"name": "orders", "uid": "us"}},
        })
    }

    #[test]
    fn the_claims_of_a_projected_token_are_read() {
        let claims = Claims::read(&token(&payload())).unwrap();
        assert_eq!(claims.key_id.as_deref(), Some("k1"));
        assert_eq!(claims.issuer, "https://kubernetes.default.svc");
        assert_eq!(claims.audiences, ["sts.amazonaws.com"]);
        assert_eq!(claims.expires_at, UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert_eq!((claims.pod.name.as_str(), claims.pod.uid.as_str()), ("orders-0", "up"));
        assert_eq!(claims.node.unwrap().name, "n1");
    }

    #[test]
    fn a_token_of_an_older_cluster_names_no_node() {
        let mut payload = payload();
        payload["kubernetes.io"].as_object_mut().unwrap().remove("node");
        payload["aud"] = json!("sts.amazonaws.com");
        let claims = Claims::read(&token(&payload)).unwrap();
        assert_eq!(claims.node, None);
        assert_eq!(claims.audiences, ["sts.amazonaws.com"]);
    }

    #[test]
    fn a_legacy_secret_token_is_not_bound_to_a_pod() {
        let mut unbound = payload();
        unbound.as_object_mut().unwrap().remove("kubernetes.io");
        assert_eq!(Claims::read(&token(&unbound)), Err(ClaimsError::NotBoundToAPod));
        let mut of_a_secret = payload();
        of_a_secret["kubernetes.io"].as_object_mut().unwrap().remove("pod");
        assert_eq!(Claims::read(&token(&of_a_secret)), Err(ClaimsError::NotBoundToAPod));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = token(&payload());
        for bad in ["", "a", "a.b", "a.b.c", "..", "a.b.c.d", &format!("Bearer {good}"), &format!("{good}.x")]
        {
            assert_eq!(Claims::read(bad), Err(ClaimsError::NotAToken), "{bad}");
        }
        let mut endless = payload();
        endless["exp"] = json!(-1);
        assert_eq!(Claims::read(&token(&endless)), Err(ClaimsError::NotAToken));
        endless["exp"] = json!(u64::MAX);
        assert_eq!(Claims::read(&token(&endless)), Err(ClaimsError::NotAToken));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = Claims::read(&text);
        }

        #[test]
        fn no_payload_panics(text in "\\PC{0,200}") {
            let _ = Claims::read(&format!("e30.{}.x", URL_SAFE_NO_PAD.encode(text)));
        }
    }
}
