//! Names of sessions, by which CloudTrail tells the pods of a role apart.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest;

/// What STS takes as `RoleSessionName`: 2 to 64 letters, digits and `_+=,.@-`.
///
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionName(Arc<str>);

/// How sessions are named: text with `{cluster}`, `{namespace}`, `{pod}`, `{serviceAccount}` and `{node}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionNameTemplate(Vec<Part>);

/// What a template's placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct SessionNameValues<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
    pub pod: &'a str,
    pub service_account: &'a str,
    pub node: &'a str,
}

/// Why a text is no template of session names, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionNameError {
    #[error("the session name's template is empty; the default is {}", SessionNameTemplate::DEFAULT)]
    Empty,
    #[error(
        "{{{0}}} is no placeholder; use {{cluster}}, {{namespace}}, {{pod}}, {{serviceAccount}} or {{node}}"
    )]
    UnknownPlaceholder(String),
    #[error("a brace has no partner; placeholders are written like {{namespace}}")]
    Unbalanced,
    #[error("STS takes no {0:?} in a session's name; use letters, digits and _+=,.@-")]
    IllegalCharacter(char),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Cluster,
    Namespace,
    Pod,
    ServiceAccount,
    Node,
}

const MAX_LENGTH: usize = 64;
const MIN_LENGTH: usize = 2;

/// Hexadecimal digits of the hash that keeps changed names distinct.
const HASH_LENGTH: usize = 12;

impl SessionNameTemplate {
    /// The template where the operator gives none.
    pub const DEFAULT: &'static str = "{namespace}.{pod}";

    /// The name of the session of the pod that `values` are of: always the same for the same values.
    ///
    /// What STS would not take as it is, because of its length or its characters, ends in a hash of the whole text.
    /// So does what looks as if it did; otherwise a pod could be named so that its sessions have the name of
    /// another's.
    pub fn render(&self, values: &SessionNameValues<'_>) -> SessionName {
        let full: String = self.0.iter().map(|part| part.of(values)).collect();
        let legal = |c: char| c.is_ascii() && is_legal(c);
        if (MIN_LENGTH..=MAX_LENGTH).contains(&full.len())
            && full.chars().all(legal)
            && !ends_like_a_hash(&full)
        {
            return SessionName(full.into());
        }
        let kept = full.chars().map(|c| if legal(c) { c } else { '_' }).take(MAX_LENGTH - 1 - HASH_LENGTH);
        let name: String = kept.chain(['-']).chain(hash(&full).chars()).collect();
        SessionName(name.into())
    }
}

impl Default for SessionNameTemplate {
    fn default() -> Self {
        Self(vec![Part::Namespace, Part::Text(".".to_owned()), Part::Pod])
    }
}

impl FromStr for SessionNameTemplate {
    type Err = SessionNameError;

    fn from_str(text: &str) -> Result<Self, SessionNameError> {
        if text.is_empty() {
            return Err(SessionNameError::Empty);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if let Some(illegal) = literal.chars().find(|c| !is_legal(*c)) {
                return Err(SessionNameError::IllegalCharacter(illegal));
            }
            if !literal.is_empty() {
                parts.push(Part::Text(literal.to_owned()));
            }
            if after.is_empty() {
                break;
            }
            let (name, after) = after
                .strip_prefix('{')
                .and_then(|inside| inside.split_once('}'))
                .ok_or(SessionNameError::Unbalanced)?;
            parts.push(match name {
                "cluster" => Part::Cluster,
                "namespace" => Part::Namespace,
                "pod" => Part::Pod,
                "serviceAccount" => Part::ServiceAccount,
                "node" => Part::Node,
                _ => return Err(SessionNameError::UnknownPlaceholder(name.to_owned())),
            });
            rest = after;
        }
        Ok(Self(parts))
    }
}

/// As it was written.
impl fmt::Display for SessionNameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placeholders = SessionNameValues {
            cluster: "{cluster}",
            namespace: "{namespace}",
            pod: "{pod}",
            service_account: "{serviceAccount}",
            node: "{node}",
        };
        self.0.iter().try_for_each(|part| f.write_str(part.of(&placeholders)))
    }
}

impl Part {
    fn of<'a>(&'a self, values: &SessionNameValues<'a>) -> &'a str {
        match self {
            Self::Text(text) => text,
            Self::Cluster => values.cluster,
            Self::Namespace => values.namespace,
            Self::Pod => values.pod,
            Self::ServiceAccount => values.service_account,
            Self::Node => values.node,
        }
    }
}

impl SessionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that STS would not take as the name of a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a session's name has {MIN_LENGTH} to {MAX_LENGTH} letters, digits and _+=,.@-")]
pub struct NotASessionName;

impl FromStr for SessionName {
    type Err = NotASessionName;

    fn from_str(text: &str) -> Result<Self, NotASessionName> {
        let is_name = (MIN_LENGTH..=MAX_LENGTH).contains(&text.len()) && text.chars().all(is_legal);
        if is_name { Ok(Self(text.into())) } else { Err(NotASessionName) }
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// Whether `text` ends in a dash and as many lower-case hexadecimal digits as our hashes have.
fn ends_like_a_hash(text: &str) -> bool {
    text.rsplit_once('-').is_some_and(|(_, end)| {
        end.len() == HASH_LENGTH && end.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(HASH_LENGTH / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values<'a>(namespace: &'a str, pod: &'a str) -> SessionNameValues<'a> {
        SessionNameValues { cluster: "prod", namespace, pod, service_account: "orders", node: "ip-10-0-0-1" }
    }

    #[track_caller]
    fn check(template: &str, namespace: &str, pod: &str, expect: &str) {
        let template: SessionNameTemplate = template.parse().unwrap();
        assert_eq!(template.render(&values(namespace, pod)).as_str(), expect);
    }

    #[track_caller]
    fn check_error(template: &str, expect: SessionNameError) {
        assert_eq!(template.parse::<SessionNameTemplate>(), Err(expect), "{template}");
    }

    #[test]
    fn every_placeholder_stands_for_its_value() {
        check(SessionNameTemplate::DEFAULT, "shop", "orders-0", "shop.orders-0");
        check("{cluster}@{node}={serviceAccount}", "shop", "orders-0", "prod@ip-10-0-0-1=orders");
        check("fixed", "shop", "orders-0", "fixed");
        check("{pod}{pod}", "shop", "a", "aa");
        assert_eq!(SessionNameTemplate::DEFAULT.parse(), Ok(SessionNameTemplate::default()));
    }

    #[test]
    fn a_mistake_says_what_to_write_instead() {
        check_error("", SessionNameError::Empty);
        check_error("{ns}", SessionNameError::UnknownPlaceholder("ns".to_owned()));
        check_error("{Pod}", SessionNameError::UnknownPlaceholder("Pod".to_owned()));
        check_error("{pod", SessionNameError::Unbalanced);
        check_error("pod}", SessionNameError::Unbalanced);
        check_error("{namespace}/{pod}", SessionNameError::IllegalCharacter('/'));
        check_error("é{pod}", SessionNameError::IllegalCharacter('é'));
        let text = SessionNameError::UnknownPlaceholder("ns".to_owned()).to_string();
        assert!(text.starts_with("{ns} is no placeholder; use {cluster}"), "{text}");
    }

    #[test]
    fn sixty_four_characters_stay_and_more_are_shortened_for_ever_in_the_same_way() {
        check("{pod}", "", &"p".repeat(64), &"p".repeat(64));
        check("{pod}", "", &"p".repeat(65), &format!("{}-6da5603b5b9c", "p".repeat(51)));
        check("{pod}", "", "a", "a-ca978112ca1b");
        check("{pod}", "", "ordérs", "ord_rs-2ed482d2fd32");
    }

    #[test]
    fn no_pod_can_take_the_shortened_name_of_another() {
        let template: SessionNameTemplate = "{pod}".parse().unwrap();
        let victim = template.render(&values("", &"p".repeat(65)));
        let thief = template.render(&values("", victim.as_str()));
        assert_ne!(thief, victim);
    }

    proptest! {
        #[test]
        fn sts_takes_every_name_and_distinct_texts_have_distinct_names(a in "\\PC{0,80}|[a-z.-]{0,80}", b in "\\PC{0,80}|[a-z.-]{0,80}") {
            let template: SessionNameTemplate = "{pod}".parse().unwrap();
            let [name_a, name_b] = [&a, &b].map(|pod| template.render(&values("", pod)));
            for name in [&name_a, &name_b] {
                prop_assert!((MIN_LENGTH..=MAX_LENGTH).contains(&name.as_str().len()));
                prop_assert!(name.as_str().chars().all(is_legal));
            }
            prop_assert_eq!(a == b, name_a == name_b);
        }

        #[test]
        fn no_template_panics(text in "\\PC{0,30}|[{}a-z]{0,30}") {
            let _ = text.parse::<SessionNameTemplate>();
        }
    }
}
