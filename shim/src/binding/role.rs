//! The role that somebody wrote, right or wrong.

use rolecall_contract::{RoleArn, RoleArnError};

use crate::policy::Policy;

/// A role as it was written and completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Arn(RoleArn),
    /// It is no role; the pod is told so by whoever it asks for credentials.
    Malformed {
        /// The completed text.
        text: String,
        error: RoleArnError,
    },
}

impl Role {
    /// Reads a role; a bare name is completed where the operator has said how.
    pub fn read(written: &str, policy: &Policy) -> Self {
        let written = written.trim();
        let text = match &policy.base_role_arn {
            Some(base) if !written.starts_with("arn:") => base.complete(written),
            _ => written.to_owned(),
        };
        match text.parse() {
            Ok(role) => Self::Arn(role),
            Err(error) => Self::Malformed { text, error },
        }
    }

    /// The ARN, or the text that is none.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Arn(role) => role.as_str(),
            Self::Malformed { text, .. } => text,
        }
    }

    /// What is wrong with it.
    pub fn error(&self) -> Option<&RoleArnError> {
        match self {
            Self::Arn(_) => None,
            Self::Malformed { error, .. } => Some(error),
        }
    }
}
