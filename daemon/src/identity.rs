//! Who a pod is: the words by which every part of the daemon speaks of it.

use std::{fmt, str::FromStr, sync::Arc};

/// The `metadata.uid` of a pod, which no other pod ever has again.
///
/// It names a directory of the kubelet, so it is checked to be a single harmless path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// A text that cannot be the uid of a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pod uid has 1 to 64 letters, digits and dashes")]
pub struct PodUidError;

/// A pod as people name it. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    pub uid: PodUid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service_account: Arc<str>,
}

impl PodUid {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = PodUidError;

    fn from_str(text: &str) -> Result<Self, PodUidError> {
        let harmless =
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if harmless { Ok(Self(text.into())) } else { Err(PodUidError) }
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name`.
impl fmt::Display for PodIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_one_harmless_path_component() {
        assert!("0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11".parse::<PodUid>().is_ok());
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0", "ü", &"a".repeat(65)] {
            assert_eq!(bad.parse::<PodUid>(), Err(PodUidError), "{bad:?}");
        }
    }
}
