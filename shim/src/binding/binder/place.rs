//! Where a role may be written, and which place counts.

use rolecall_contract::annotation;

use crate::{annotations::Written, config_map::Entry, wording::quoted};

/// Where a pod's role may be from. The first in this order counts, whatever the others say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    OursOnPod,
    CompatibleOnPod,
    /// Also where it is the role of a single container.
    OursOnServiceAccount,
    /// The container-credentials file: before everything that the EKS webhook reads beside it, for that is what its
    /// users know, and after what they can only have written for the daemon.
    Identity,
    CompatibleOnServiceAccount,
    ConfigMap,
}

/// A role that somebody wrote, and where.
#[derive(Debug, Clone)]
pub(super) enum WrittenRole<'a> {
    OnPod(Written<'a>),
    OnServiceAccount(Written<'a>),
    InConfigMap(&'a Entry),
}

impl<'a> WrittenRole<'a> {
    pub(super) fn place(&self) -> Place {
        match self {
            Self::OnPod(_) if self.is_ours() => Place::OursOnPod,
            Self::OnPod(_) => Place::CompatibleOnPod,
            Self::OnServiceAccount(_) if self.is_ours() => Place::OursOnServiceAccount,
            Self::OnServiceAccount(_) => Place::CompatibleOnServiceAccount,
            Self::InConfigMap(_) => Place::ConfigMap,
        }
    }

    pub(super) fn text(&self) -> &'a str {
        match self {
            Self::OnPod(written) | Self::OnServiceAccount(written) => written.value,
            Self::InConfigMap(entry) => &entry.role_arn,
        }
    }

    /// For warnings.
    pub(super) fn described(&self) -> String {
        match self {
            Self::OnPod(written) => format!("{} of the pod", written.key),
            Self::OnServiceAccount(written) => format!("{} of the ServiceAccount", written.key),
            Self::InConfigMap(entry) => format!("the role of {} in the ConfigMap", quoted(&entry.key)),
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::OnPod(written) | Self::OnServiceAccount(written) => {
                written.key.split_once('/').is_some_and(|(prefix, _)| prefix == annotation::PREFIX)
            }
            Self::InConfigMap(_) => false,
        }
    }
}
