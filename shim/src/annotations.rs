//! The annotations that people write: their keys, and which one counts where several do.

use rolecall_contract::annotation;

/// A setting that annotations make, under our prefix or under the compatibility prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    RoleArn,
    Audience,
    StsRegionalEndpoints,
    TokenExpiration,
    SkipContainers,
    IncludeContainers,
}

/// An annotation that somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<'a> {
    pub key: String,
    /// Without the white space around it.
    pub value: &'a str,
}

impl Setting {
    const ALL: [Self; 6] = [
        Self::RoleArn,
        Self::Audience,
        Self::StsRegionalEndpoints,
        Self::TokenExpiration,
        Self::SkipContainers,
        Self::IncludeContainers,
    ];

    /// The key without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoleArn => "role-arn",
            Self::Audience => "audience",
            Self::StsRegionalEndpoints => "sts-regional-endpoints",
            Self::TokenExpiration => "token-expiration",
            Self::SkipContainers => "skip-containers",
            Self::IncludeContainers => "include-containers",
        }
    }

    /// The key under `prefix`.
    pub fn under(self, prefix: &str) -> String {
        format!("{prefix}/{}", self.name())
    }

    /// The annotation that makes this setting: ours, else the one under the compatibility prefix. An empty value
    /// is none.
    pub fn find<'a>(
        self,
        get: impl Fn(&str) -> Option<&'a str>,
        compatibility_prefix: Option<&str>,
    ) -> Option<Written<'a>> {
        [Some(annotation::PREFIX), compatibility_prefix].into_iter().flatten().find_map(|prefix| {
            let key = self.under(prefix);
            let value = get(&key)?.trim();
            (!value.is_empty()).then_some(Written { key, value })
        })
    }
}

/// Whether the shim looks at this key of a ServiceAccount; all others need not be kept.
pub fn is_relevant(key: &str, compatibility_prefix: Option<&str>) -> bool {
    let Some((prefix, name)) = key.split_once('/') else { return false };
    let is_setting = || Setting::ALL.iter().any(|setting| setting.name() == name);
    if prefix == annotation::PREFIX {
        let ours = [
            annotation::MODE,
            annotation::RELATIVE_URI,
            annotation::SESSION_NAME,
            annotation::SESSION_DURATION,
        ];
        return is_setting() || ours.contains(&key) || key.starts_with(annotation::ROLE_ARN_OF_CONTAINER);
    }
    Some(prefix) == compatibility_prefix && is_setting()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(annotations: &[(&str, &'static str)], expect: Option<(&str, &str)>) {
        let get = |key: &str| annotations.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let found = Setting::RoleArn.find(get, Some("eks.amazonaws.com"));
        assert_eq!(found.as_ref().map(|f| (f.key.as_str(), f.value)), expect);
    }

    #[test]
    fn ours_wins_where_both_are_there() {
        let ours = ("rolecall.dev/role-arn", "ours");
        let theirs = ("eks.amazonaws.com/role-arn", "theirs");
        check(&[theirs, ours], Some(ours));
        check(&[theirs], Some(theirs));
        check(&[("rolecall.dev/role-arn", " "), theirs], Some(theirs));
        check(&[("rolecall.dev/role-arn", " ours\n"), theirs], Some(ours));
        check(&[("example.org/role-arn", "x")], None);
    }

    #[test]
    fn only_keys_that_somebody_reads_are_kept() {
        for (key, expect) in [
            ("rolecall.dev/role-arn", true),
            ("rolecall.dev/role-arn.main", true),
            ("rolecall.dev/mode", true),
            ("rolecall.dev/other", false),
            ("eks.amazonaws.com/role-arn", true),
            ("eks.amazonaws.com/skip-containers", true),
            ("eks.amazonaws.com/role-arn.main", false),
            ("eks.amazonaws.com/mode", false),
            ("kubectl.kubernetes.io/last-applied-configuration", false),
            ("role-arn", false),
        ] {
            assert_eq!(is_relevant(key, Some("eks.amazonaws.com")), expect, "{key}");
        }
        assert!(!is_relevant("eks.amazonaws.com/role-arn", None));
    }
}
