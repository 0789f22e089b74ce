//! The annotations that tell the daemon what it needs to know.

use rolecall_contract::{annotation, endpoint, role};
use serde_json::Value;

use crate::{
    binding::{Binding, Method, Role},
    pod::PodView,
};

/// Most bytes of a pod's annotations, keys and values together.
///
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/annotations/>
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The annotations that a pod is to get.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) annotations: Vec<(String, Value)>,
    /// There is no room for the role, so the URI of each container carries it.
    pub(super) role_is_in_path: bool,
    pub(super) warnings: Vec<String>,
}

/// The length of a pod's annotations while some are added.
struct Room<'a> {
    pod: PodView<'a>,
    length: usize,
}

impl Notes {
    /// What fits: first that a token is required, for without it the pod's address alone would do, then the role,
    /// then the length of its sessions.
    pub(super) fn plan(pod: PodView<'_>, binding: &Binding) -> Self {
        let Method::Container { relative } = binding.method else { return Self::default() };
        let mut notes = Self::default();
        let mut room = Room { pod, length: pod.annotations_length() };
        // A rule that is there is the author's, or from an earlier pass.
        if pod.annotation(annotation::TOKEN).is_none() {
            let rule = if relative { annotation::TOKEN_OPTIONAL } else { annotation::TOKEN_REQUIRED };
            if room.take(annotation::TOKEN, rule) {
                notes.annotations.push((annotation::TOKEN.to_owned(), rule.into()));
            } else if !relative {
                notes.warnings.push(format!(
                    "its annotations are at the limit of 256 KiB, without room for {}: requests without a token are answered too; shorten them",
                    annotation::TOKEN
                ));
            }
        }
        // Longer than any ARN: why it is none, has been said, and the pod need not carry it.
        if let Some(role) =
            binding.role.as_ref().map(Role::as_str).filter(|role| role.len() <= role::MAX_LENGTH)
            && pod.annotation(annotation::ROLE_ARN).map(str::trim) != Some(role)
        {
            if room.take(annotation::ROLE_ARN, role) {
                notes.annotations.push((annotation::ROLE_ARN.to_owned(), role.into()));
            } else {
                notes.role_is_in_path = true;
                notes.warnings.push(format!(
                    "its annotations are at the limit of 256 KiB, so its role is in the path of {} instead; shorten them",
                    if relative { endpoint::RELATIVE_URI_ENV } else { endpoint::FULL_URI_ENV }
                ));
            }
        }
        if let Some(duration) = binding.session_duration {
            let seconds = duration.as_seconds().to_string();
            if room.take(annotation::SESSION_DURATION, &seconds) {
                notes.annotations.push((annotation::SESSION_DURATION.to_owned(), seconds.into()));
            } else {
                notes.warnings.push(format!(
                    "its annotations are at the limit of 256 KiB, without room for {}; shorten them",
                    annotation::SESSION_DURATION
                ));
            }
        }
        notes
    }
}

impl Room<'_> {
    /// Whether there is room for this annotation; if so, it is taken.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let existing = self.pod.annotations().and_then(|annotations| annotations.get(key));
        let freed = existing.map_or(0, |value| key.len() + value.as_str().map_or(0, str::len));
        let length = self.length - freed + key.len() + value.len();
        let fits = length <= MAX_ANNOTATIONS;
        if fits {
            self.length = length;
        }
        fits
    }
}
