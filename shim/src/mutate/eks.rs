//! What EKS's own webhook has injected: told from an author's own, and taken out where it is taken over.
//!
//! It runs in the control plane of EKS, reacts to `eks.amazonaws.com/role-arn`, and its variables come before ours
//! in every SDK.

use rolecall_contract::endpoint;
use serde_json::{Value, json};

use super::volume::{IRSA_FILE, IRSA_NAME, token_file};
use crate::{
    patch::{self, PatchOperation},
    pod::{ContainerView, PodView, projected_token},
    policy::Policy,
};

pub(super) const ROLE_ARN_ENV: &str = "AWS_ROLE_ARN";
pub(super) const WEB_IDENTITY_TOKEN_FILE_ENV: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";

/// What of EKS's own is in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EksInjection {
    /// Credentials by a web identity, for one container or more.
    pub(super) is_irsa: bool,
    /// Credentials by an association of EKS Pod Identity.
    pub(super) is_pod_identity: bool,
}

/// What EKS's webhook has given to one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EksContainer {
    /// Places of `AWS_ROLE_ARN` and `AWS_WEB_IDENTITY_TOKEN_FILE`.
    variables: [usize; 2],
    mount: usize,
}

impl EksInjection {
    pub(super) fn find(pod: PodView<'_>, policy: &Policy) -> Self {
        let identity = &policy.container_credentials;
        let has_token_variable = |volume: &str, mount_path: &str, file: &str, variable: &str| {
            let path = token_file(mount_path, file, pod.is_windows());
            has_lone_token(pod, volume, file)
                && pod.containers().any(|container| {
                    container.variable(variable).and_then(|found| found.value) == Some(&path)
                        && container.mounts().any(|mount| mount.volume == volume)
                })
        };
        Self {
            is_irsa: has_token_variable(
                IRSA_NAME,
                Policy::EKS_MOUNT_PATH,
                IRSA_FILE,
                WEB_IDENTITY_TOKEN_FILE_ENV,
            ),
            is_pod_identity: has_token_variable(
                &identity.volume_name,
                &identity.mount_path,
                &identity.token_path,
                endpoint::TOKEN_FILE_ENV,
            ),
        }
    }

    /// What EKS's webhook has given to `container`, where it is all there: the mount at its path, its token's
    /// variable with that path, and the very role that it reads on the ServiceAccount. Anything else an author has
    /// written.
    pub(super) fn of_container(
        self,
        container: ContainerView<'_>,
        eks_role: Option<&str>,
    ) -> Option<EksContainer> {
        if !self.is_irsa {
            return None;
        }
        let once = |name: &str, value: &str| {
            let mut found = container.variables().filter(|variable| variable.name == name);
            let first = found.next().filter(|variable| variable.value == Some(value))?;
            found.next().is_none().then_some(first.index)
        };
        let mount = container.mounts().find(|mount| {
            mount.volume == IRSA_NAME && mount.path == Policy::EKS_MOUNT_PATH && !mount.has_sub_path
        })?;
        let path = token_file(Policy::EKS_MOUNT_PATH, IRSA_FILE, false);
        let variables = [once(ROLE_ARN_ENV, eks_role?)?, once(WEB_IDENTITY_TOKEN_FILE_ENV, &path)?];
        Some(EksContainer { variables, mount: mount.index })
    }

    /// Removes the volume once `taken_over` containers have lost their mounts of it, if no other mounts it.
    pub(super) fn remove_volume(self, pod: PodView<'_>, taken_over: usize) -> Vec<PatchOperation> {
        let mounts = pod.containers().flat_map(ContainerView::mounts);
        if taken_over == 0 || mounts.filter(|mount| mount.volume == IRSA_NAME).count() != taken_over {
            return Vec::new();
        }
        let index = pod.volume(IRSA_NAME).map(|(index, _)| (index, ("name", json!(IRSA_NAME))));
        patch::remove("/spec/volumes", index.into_iter().collect())
    }
}

impl EksContainer {
    pub(super) fn patch(&self, container: ContainerView<'_>) -> Vec<PatchOperation> {
        let names = [ROLE_ARN_ENV, WEB_IDENTITY_TOKEN_FILE_ENV];
        let variables = self.variables.into_iter().zip(names.map(|name| ("name", json!(name)))).collect();
        let mounts = vec![(self.mount, ("name", json!(IRSA_NAME)))];
        let path = container.path();
        let mut operations = patch::remove(&format!("{path}/env"), variables);
        operations.extend(patch::remove(&format!("{path}/volumeMounts"), mounts));
        operations
    }
}

/// Whether the volume of this name holds a token under `file`, and nothing else.
fn has_lone_token(pod: PodView<'_>, volume: &str, file: &str) -> bool {
    let token = |found: (usize, &Value)| projected_token(found.1, file).is_some_and(|token| token.is_alone);
    pod.volume(volume).is_some_and(token)
}
