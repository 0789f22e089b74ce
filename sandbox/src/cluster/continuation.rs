//! The token with which a client asks for the next page of a list.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::store::Key;

/// Where a list goes on: at this version, after this pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Continuation {
    pub(super) version: u64,
    pub(super) after: Key,
}

impl Continuation {
    pub(super) fn encode(&self) -> String {
        let (namespace, name) = &self.after;
        BASE64_URL_SAFE_NO_PAD.encode(json!([self.version, namespace, name]).to_string())
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let part = |index: usize| value.get(index)?.as_str().map(str::to_owned);
        Some(Self { version: value.get(0)?.as_u64()?, after: (part(1)?, part(2)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place() {
        let place = Continuation { version: 7, after: ("demo".to_owned(), "orders".to_owned()) };
        assert_eq!(Continuation::decode(&place.encode()), Some(place));
        assert_eq!(Continuation::decode("W10"), None);
        assert_eq!(Continuation::decode("%"), None);
    }
}
