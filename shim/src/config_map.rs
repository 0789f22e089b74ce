//! The ConfigMap `pod-identity-webhook` of the EKS webhook: roles by namespace and ServiceAccount, with patterns.

mod glob;

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use serde_json::{Map, Value};

use self::glob::{Glob, GlobError};

/// Name of the ConfigMap.
pub const NAME: &str = "pod-identity-webhook";

/// Key of its data that holds the bindings.
pub const DATA_KEY: &str = "config";

/// What the ConfigMap binds.
///
/// Where several keys match, the most specific wins, and the namespace decides first: a name without a pattern
/// before any pattern, then the pattern with more letters of its own, then the one with fewer `*`, then the first in
/// the alphabet; the ServiceAccount's part decides by the same rules between keys whose namespace parts are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMapBindings {
    exact: HashMap<String, Arc<Entry>>,
    /// The most specific first.
    patterns: Vec<(KeyPattern, Arc<Entry>)>,
}

/// One entry, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key, for messages.
    pub key: String,
    /// The role, not yet completed or checked; never empty.
    pub role_arn: String,
    pub audience: Option<String>,
    pub use_regional_sts: Option<bool>,
    /// Lifetime of tokens in seconds, as it was written.
    pub token_expiration: Option<i64>,
}

/// Why the whole text cannot be used, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigMapError {
    #[error("the bindings are no JSON object")]
    Json(#[source] serde_json::Error),
}

/// An entry that cannot be used; the others are not concerned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {key:?}: {mistake}")]
pub struct EntryError {
    pub key: String,
    #[source]
    pub mistake: Mistake,
}

/// What is wrong with an entry, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("a key is <namespace>/<service account>, each of which may hold * and ?")]
    Key,
    #[error("a pattern holds letters, digits, -, ., * and ?, and at most {} characters", glob::MAX_LENGTH)]
    Pattern,
    #[error("an entry is an object with RoleARN, Audience, UseRegionalSTS and TokenExpiration")]
    NotAnObject,
    #[error("RoleARN is missing or empty")]
    NoRole,
    #[error("{0} has a value of the wrong kind")]
    WrongKind(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyPattern {
    namespace: Glob,
    service_account: Glob,
}

impl ConfigMapBindings {
    /// The entry of this ServiceAccount.
    pub fn find(&self, namespace: &str, service_account: &str) -> Option<&Entry> {
        self.find_exact(namespace, service_account).or_else(|| {
            let matching = |(key, _): &&(KeyPattern, Arc<Entry>)| {
                key.namespace.matches(namespace) && key.service_account.matches(service_account)
            };
            self.patterns.iter().find(matching).map(|(_, entry)| &**entry)
        })
    }

    /// The entry whose key has no pattern and names this ServiceAccount.
    pub fn find_exact(&self, namespace: &str, service_account: &str) -> Option<&Entry> {
        self.exact.get(&format!("{namespace}/{service_account}")).map(|entry| &**entry)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.patterns.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the entries of `former` where this reading found mistakes, so that a slip of the pen takes no
    /// credentials away.
    #[must_use]
    pub fn keeping_last_good(mut self, former: &Self, errors: &[EntryError]) -> Self {
        for error in errors {
            if let Some(entry) = former.exact.get(&error.key) {
                self.exact.insert(error.key.clone(), entry.clone());
            } else if let Some(pattern) = former.patterns.iter().find(|(_, entry)| entry.key == error.key) {
                self.patterns.push(pattern.clone());
            }
        }
        self.sort();
        self
    }

    fn insert(&mut self, entry: Entry) -> Result<(), Mistake> {
        let (namespace, service_account) = entry.key.split_once('/').ok_or(Mistake::Key)?;
        let glob = |text: &str| {
            Glob::parse(text).map_err(|error| match error {
                GlobError::Empty => Mistake::Key,
                GlobError::Illegal => Mistake::Pattern,
            })
        };
        let key = KeyPattern { namespace: glob(namespace)?, service_account: glob(service_account)? };
        if key.namespace.is_exact() && key.service_account.is_exact() {
            self.exact.insert(entry.key.clone(), Arc::new(entry));
        } else {
            self.patterns.push((key, Arc::new(entry)));
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.patterns.sort_by_cached_key(|(key, _)| {
            Reverse((key.namespace.specificity(), key.service_account.specificity()))
        });
    }
}

/// Reads the ConfigMap's text: what is good of it, and what is wrong with the rest. An empty text binds nothing.
///
/// # Errors
/// The text is no JSON object; what was read last should stay.
pub fn parse_config_map(text: &str) -> Result<(ConfigMapBindings, Vec<EntryError>), ConfigMapError> {
    let mut bindings = ConfigMapBindings::default();
    let mut errors = Vec::new();
    if text.trim().is_empty() {
        return Ok((bindings, errors));
    }
    let entries: Map<String, Value> = serde_json::from_str(text).map_err(ConfigMapError::Json)?;
    for (key, value) in entries {
        if let Err(mistake) = Entry::read(&key, &value).and_then(|entry| bindings.insert(entry)) {
            errors.push(EntryError { key, mistake });
        }
    }
    bindings.sort();
    Ok((bindings, errors))
}

impl Entry {
    fn read(key: &str, value: &Value) -> Result<Self, Mistake> {
        let fields = value.as_object().ok_or(Mistake::NotAnObject)?;
        // The EKS webhook's JSON reader does not tell upper from lower case, so neither do its users.
        let field = |name: &'static str| {
            let found = fields.get(name).or_else(|| {
                fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            });
            (name, found.filter(|value| !value.is_null()))
        };
        let text = |(name, value): (&'static str, Option<&Value>)| match value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Some(_) => Err(Mistake::WrongKind(name)),
        };
        Ok(Self {
            key: key.to_owned(),
            role_arn: text(field("RoleARN"))?.ok_or(Mistake::NoRole)?,
            audience: text(field("Audience"))?,
            use_regional_sts: match field("UseRegionalSTS") {
                (_, None) => None,
                (name, Some(value)) => Some(value.as_bool().ok_or(Mistake::WrongKind(name))?),
            },
            token_expiration: match field("TokenExpiration") {
                (_, None) => None,
                // Nought means that the entry does not ask for a lifetime.
                (name, Some(value)) => {
                    Some(value.as_i64().ok_or(Mistake::WrongKind(name))?).filter(|n| *n != 0)
                }
            },
        })
    }
}

#[cfg(test)]
mod tests;
