//! Who a pod is: the words by which every part of the daemon speaks of it.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    str::FromStr,
    sync::Arc,
};

/// Most pods that are remembered after they have left. Fewer leave a node in the time that a request lives.
const MAX_DEPARTED: usize = 4096;

/// The `metadata.uid` of a pod, which no other pod ever has again.
///
/// It names a directory of the kubelet, so it is checked to be a single harmless path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// A text that cannot be the uid of a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pod uid has 1 to 64 letters, digits and dashes")]
pub struct PodUidError;

/// The pods that have left, the last ones of them.
#[derive(Debug, Default)]
pub struct Departed {
    uids: HashSet<PodUid>,
    /// Oldest first.
    order: VecDeque<PodUid>,
}

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

impl Departed {
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.uids.contains(uid)
    }

    /// Takes one that has left.
    pub fn remember(&mut self, uid: &PodUid) {
        if !self.uids.insert(uid.clone()) {
            return;
        }
        self.order.push_back(uid.clone());
        if MAX_DEPARTED < self.order.len()
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }

    /// It is there again.
    pub fn forget(&mut self, uid: &PodUid) {
        if self.uids.remove(uid) {
            self.order.retain(|other| other != uid);
        }
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
    fn those_that_left_last_are_remembered_unless_they_come_back() {
        let uid = |number: usize| format!("p-{number}").parse::<PodUid>().unwrap();
        let mut departed = Departed::default();
        (0..=MAX_DEPARTED).for_each(|number| departed.remember(&uid(number)));
        assert!(!departed.contains(&uid(0)));
        assert!(departed.contains(&uid(1)) && departed.contains(&uid(MAX_DEPARTED)));
        departed.forget(&uid(1));
        assert!(!departed.contains(&uid(1)));
        departed.remember(&uid(0));
        assert!(departed.contains(&uid(0)) && departed.contains(&uid(2)), "its place was free");
    }

    #[test]
    fn a_uid_is_one_harmless_path_component() {
        assert!("0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11".parse::<PodUid>().is_ok());
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0", "ü", &"a".repeat(65)] {
            assert_eq!(bad.parse::<PodUid>(), Err(PodUidError), "{bad:?}");
        }
    }
}
