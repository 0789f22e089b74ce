//! The template of `AWS_ROLE_SESSION_NAME`, which the SDKs of irsa mode name their sessions by.

use std::str::FromStr;

/// Text with `{namespace}`, `{serviceAccount}` and `{pod}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionName(Vec<Part>);

/// Why a text is no template, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionNameError {
    #[error("the template of session names is empty")]
    Empty,
    #[error(
        "use {{namespace}}, {{serviceAccount}} and {{pod}}, and between them letters, digits and _+=,.@-"
    )]
    Malformed,
}

/// A piece of the template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Namespace,
    ServiceAccount,
    Pod,
}

impl SessionName {
    /// Longest name that STS takes.
    ///
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
    pub const MAX_LENGTH: usize = 64;
    /// Shortest name that STS takes.
    pub const MIN_LENGTH: usize = 2;

    /// The pieces in their order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

impl FromStr for SessionName {
    type Err = SessionNameError;

    fn from_str(text: &str) -> Result<Self, SessionNameError> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(SessionNameError::Empty);
        }
        let mut parts = Vec::new();
        while !rest.is_empty() {
            if let Some(placeholder) = rest.strip_prefix('{') {
                let (name, after) = placeholder.split_once('}').ok_or(SessionNameError::Malformed)?;
                parts.push(match name {
                    "namespace" => Part::Namespace,
                    "serviceAccount" => Part::ServiceAccount,
                    "pod" => Part::Pod,
                    _ => return Err(SessionNameError::Malformed),
                });
                rest = after;
            } else {
                let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
                if !literal.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)) {
                    return Err(SessionNameError::Malformed);
                }
                parts.push(Part::Text(literal.to_owned()));
                rest = after;
            }
        }
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_text_are_told_apart() {
        let name: SessionName = "eks.{namespace}.{serviceAccount}@{pod}".parse().unwrap();
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            name.parts(),
            [text("eks."), Part::Namespace, text("."), Part::ServiceAccount, text("@"), Part::Pod]
        );
    }

    #[test]
    fn what_sts_or_the_kubelet_would_not_take_is_refused() {
        for text in ["", " ", "{node}", "{pod", "pod}", "a b", "$(HOME)", "a/b", "{}"] {
            assert!(text.parse::<SessionName>().is_err(), "{text:?}");
        }
    }
}
