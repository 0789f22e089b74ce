//! The volume that carries the token, and the place where a container finds it.

use rolecall_contract::volume;
use serde_json::{Value, json};

use crate::{
    binding::{Binding, Method},
    pod::{ContainerView, PodView, projected_token},
    policy::Policy,
    wording::quoted,
};

/// Name of the EKS webhook's volume.
pub(super) const IRSA_NAME: &str = "aws-iam-token";

/// Name of the token's file in the EKS webhook's volume.
pub(super) const IRSA_FILE: &str = "token";

/// The token volume of a pod.
pub(super) struct TokenVolume<'a> {
    pub(super) name: &'a str,
    mount_path: &'a str,
    /// Name of the token's file in the volume.
    file: &'a str,
    audience: &'a str,
    /// A token for somebody else will not do.
    is_audience_fixed: bool,
    is_on_windows: bool,
}

/// How a container comes to its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// By a mount that is to be added.
    ToBeMounted,
    /// By a mount of this volume that is there.
    Mounted,
    /// By its author's mount of another volume with such a token.
    OfAuthor,
}

impl<'a> TokenVolume<'a> {
    pub(super) fn new(pod: PodView<'_>, binding: &'a Binding, policy: &'a Policy) -> Self {
        let container_credentials = &policy.container_credentials;
        let (name, mount_path, file) = match binding.method {
            Method::Container { .. } => (volume::NAME, volume::MOUNT_PATH, volume::TOKEN_FILE),
            Method::Irsa { .. } => (IRSA_NAME, policy.token_mount_path.as_str(), IRSA_FILE),
            Method::ContainerCredentials => (
                container_credentials.volume_name.as_str(),
                container_credentials.mount_path.as_str(),
                container_credentials.token_path.as_str(),
            ),
        };
        Self {
            name,
            mount_path,
            file,
            audience: &binding.audience,
            is_audience_fixed: matches!(binding.method, Method::Container { .. }),
            is_on_windows: pod.is_windows(),
        }
    }

    /// The token's file as a container's programs name it.
    pub(super) fn token_file(&self) -> String {
        token_file(self.mount_path, self.file, self.is_on_windows)
    }

    /// Why a volume of this name cannot be used.
    pub(super) fn why_foreign(&self, pod: PodView<'_>) -> Option<String> {
        let (_, found) = pod.volume(self.name)?;
        (!self.has_token(found)).then(|| {
            format!(
                "the pod's volume {} holds no token for audience {} under {}, so nothing is injected; rename that volume",
                quoted(self.name),
                quoted(self.audience),
                quoted(self.file)
            )
        })
    }

    /// How `container` comes to its token, or what stands in the way.
    pub(super) fn access(&self, pod: PodView<'_>, container: ContainerView<'_>) -> Result<Access, String> {
        let here = normal(self.mount_path);
        let below = format!("{here}/");
        let mut access = Access::ToBeMounted;
        for mount in container.mounts() {
            let path = normal(mount.path);
            if path == here {
                let holds_token =
                    || pod.volume(mount.volume).is_some_and(|(_, volume)| self.has_token(volume));
                access = match mount.volume == self.name {
                    true if !mount.has_sub_path => Access::Mounted,
                    false if !mount.has_sub_path && holds_token() => Access::OfAuthor,
                    true | false => return Err(self.occupied(mount.volume, mount.path)),
                };
            } else if path.starts_with(&below) {
                return Err(self.occupied(mount.volume, mount.path));
            }
        }
        Ok(access)
    }

    /// The mount that gives a container its token.
    pub(super) fn mount(&self) -> Value {
        json!({"name": self.name, "readOnly": true, "mountPath": self.mount_path})
    }

    /// Lifetime of the token in seconds.
    pub(super) fn lifetime(&self, binding: &Binding, seed: u64) -> u64 {
        match binding.method {
            Method::Container { .. } => binding.lifetime.jittered(seed),
            // The EKS webhook spreads the lifetimes of a day, and no others.
            Method::ContainerCredentials if binding.lifetime.seconds == Policy::TOKEN_EXPIRATION => {
                binding.lifetime.jittered(seed)
            }
            Method::ContainerCredentials | Method::Irsa { .. } => binding.lifetime.seconds,
        }
    }

    pub(super) fn to_json(&self, lifetime: u64) -> Value {
        json!({"name": self.name, "projected": {"sources": [{"serviceAccountToken": {
            "audience": self.audience, "expirationSeconds": lifetime, "path": self.file,
        }}]}})
    }

    fn has_token(&self, volume: &Value) -> bool {
        projected_token(volume, self.file)
            .is_some_and(|token| !self.is_audience_fixed || token.audience == Some(self.audience))
    }

    fn occupied(&self, volume: &str, path: &str) -> String {
        format!(
            "it mounts volume {} at {}, where its token belongs, so it is not injected; mount that elsewhere",
            quoted(volume),
            quoted(path)
        )
    }
}

/// The file `file` of a volume mounted at `mount_path`. Windows has a drive and other slashes; the mount's own path
/// stays as it is.
pub(super) fn token_file(mount_path: &str, file: &str, is_on_windows: bool) -> String {
    let path = format!("{}/{file}", mount_path.trim_end_matches('/'));
    if is_on_windows { format!("C:{}", path.replace('/', "\\")) } else { path }
}

/// A path without the differences that mean nothing.
fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.fold(String::new(), |path, part| path + "/" + part)
}
