//! The EKS webhook's container-credentials file: the ServiceAccounts whose pods get EKS Pod Identity.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

/// The identities of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities(HashMap<String, HashSet<String>>);

/// Why the file cannot be used, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    #[error(
        "the identities are no JSON like {{\"identities\":[{{\"namespace\":\"…\",\"serviceAccount\":\"…\"}}]}}"
    )]
    Json(#[source] serde_json::Error),
    #[error("identity {index} lacks its namespace or its serviceAccount")]
    Incomplete {
        /// Place in the list, from 0.
        index: usize,
    },
}

#[derive(Deserialize)]
struct File {
    identities: Option<Vec<Identity>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    service_account: String,
}

impl Identities {
    /// Whether the pods of this ServiceAccount get EKS Pod Identity. Both names have to be equal: there are no
    /// patterns here.
    pub fn contains(&self, namespace: &str, service_account: &str) -> bool {
        self.0.get(namespace).is_some_and(|names| names.contains(service_account))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(HashSet::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads the file's text. An empty list is an empty list; an empty text is an error, for it may be half written.
///
/// # Errors
/// The whole file is refused for one mistake, so that what was read last stays whole.
pub fn parse_identities(text: &str) -> Result<Identities, IdentitiesError> {
    let file: File = serde_json::from_str(text).map_err(IdentitiesError::Json)?;
    let mut identities: HashMap<String, HashSet<String>> = HashMap::new();
    for (index, identity) in file.identities.unwrap_or_default().into_iter().enumerate() {
        if identity.namespace.is_empty() || identity.service_account.is_empty() {
            return Err(IdentitiesError::Incomplete { index });
        }
        identities.entry(identity.namespace).or_default().insert(identity.service_account);
    }
    Ok(Identities(identities))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identities_match_exactly() {
        let text = r#"{"identities":[{"namespace":"shop","serviceAccount":"orders"},
            {"namespace":"shop","serviceAccount":"carts","note":"kept out"}],"version":2}"#;
        let identities = parse_identities(text).unwrap();
        assert_eq!(identities.len(), 2);
        for (namespace, service_account, expect) in [
            ("shop", "orders", true),
            ("shop", "carts", true),
            ("shop", "order", false),
            ("Shop", "orders", false),
        ] {
            assert_eq!(identities.contains(namespace, service_account), expect);
        }
    }

    #[test]
    fn a_star_is_no_pattern_here() {
        let identities =
            parse_identities(r#"{"identities":[{"namespace":"*","serviceAccount":"orders"}]}"#).unwrap();
        assert!(!identities.contains("shop", "orders"));
    }

    #[test]
    fn an_empty_list_clears_and_a_half_written_file_does_not() {
        for text in [r#"{"identities":[]}"#, r#"{"identities":null}"#, "{}"] {
            assert!(parse_identities(text).unwrap().is_empty(), "{text}");
        }
        for text in [
            "",
            "[]",
            r#"{"identities":[{"#,
            r#"{"identities":[{"namespace":"shop"}]}"#,
            r#"{"identities":[null]}"#,
        ] {
            assert!(parse_identities(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse_identities(&text);
        }
    }
}
