//! A pod's binding to a role, as its annotations say it.

use std::time::Duration;

use crate::{RoleArn, RoleArnError, annotation};

/// What a pod's annotations say of its role, its token and its sessions.
///
/// A mistake is kept as a value: the daemon tells it to the pod that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleBinding {
    /// The pod's own role; `None` where no annotation names one.
    pub role: Option<Result<RoleArn, RoleArnError>>,
    /// Whether its requests must carry its token.
    pub token: TokenRule,
    /// Length of its sessions; `None` for the daemon's default.
    pub session_duration: Option<SessionDuration>,
}

/// Whether a pod's requests must carry its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRule {
    /// Its containers were told to send one, so a request without it may come from whoever borrowed the address.
    Required,
    /// Nothing told its containers to send one.
    Optional,
}

/// Length of a session, within what STS takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionDuration(u32);

/// A length that STS does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a session lasts {} to {} seconds", SessionDuration::MIN.0, SessionDuration::MAX.0)]
pub struct SessionDurationError;

impl RoleBinding {
    /// Reads the annotations of a pod through `get`.
    ///
    /// A value of [`annotation::TOKEN`] that is not known counts as required: an unknown word must not open a
    /// door. A duration that STS would refuse is ignored, for credentials of the default length are better than
    /// none.
    pub fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            role: get(annotation::ROLE_ARN).map(|text| text.trim().parse()),
            token: match get(annotation::TOKEN).map(str::trim) {
                None | Some(annotation::TOKEN_OPTIONAL) => TokenRule::Optional,
                Some(_) => TokenRule::Required,
            },
            session_duration: get(annotation::SESSION_DURATION)
                .and_then(|text| text.trim().parse().ok())
                .and_then(|seconds| SessionDuration::from_seconds(seconds).ok()),
        }
    }
}

impl SessionDuration {
    /// 15 minutes.
    pub const MIN: Self = Self(900);
    /// 12 hours; a role's own `MaxSessionDuration` may be less.
    pub const MAX: Self = Self(43_200);

    /// A session of `seconds`.
    ///
    /// # Errors
    /// Outside of [`SessionDuration::MIN`] to [`SessionDuration::MAX`].
    pub fn from_seconds(seconds: u32) -> Result<Self, SessionDurationError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(SessionDurationError)
        }
    }

    /// The length in seconds, as STS takes it.
    #[must_use]
    pub fn as_seconds(self) -> u32 {
        self.0
    }

    /// The length as a duration.
    #[must_use]
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &'static str)]) -> RoleBinding {
        RoleBinding::from_annotations(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn a_pod_by_hand_needs_only_the_role() {
        let binding = read(&[(annotation::ROLE_ARN, " arn:aws:iam::111122223333:role/orders ")]);
        assert_eq!(binding.role.unwrap().unwrap().name(), "orders");
        assert_eq!(binding.token, TokenRule::Optional);
        assert_eq!(binding.session_duration, None);
    }

    #[test]
    fn a_wrong_role_is_kept_as_a_mistake_and_not_as_none() {
        assert_eq!(read(&[(annotation::ROLE_ARN, "orders")]).role, Some(Err(RoleArnError::NotAnArn)));
        assert_eq!(read(&[(annotation::ROLE_ARN, "")]).role, Some(Err(RoleArnError::Empty)));
        assert_eq!(read(&[]).role, None);
    }

    #[test]
    fn an_unknown_token_rule_counts_as_required() {
        for (value, rule) in [
            ("required", TokenRule::Required),
            ("optional", TokenRule::Optional),
            ("Optional", TokenRule::Required),
            ("", TokenRule::Required),
        ] {
            assert_eq!(read(&[(annotation::TOKEN, value)]).token, rule, "{value:?}");
        }
    }

    #[test]
    fn a_session_duration_outside_of_what_sts_takes_is_ignored() {
        for (value, seconds) in [
            ("900", Some(900)),
            ("43200", Some(43_200)),
            ("899", None),
            ("43201", None),
            ("1h", None),
            ("-1", None),
        ] {
            let read = read(&[(annotation::SESSION_DURATION, value)]).session_duration;
            assert_eq!(read.map(SessionDuration::as_seconds), seconds, "{value}");
        }
    }
}
