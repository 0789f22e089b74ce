//! The Secret: what is due to it, and writing it beside other replicas.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::{ObjectMeta, PostParams};
use rolecall_process::telemetry::chain;
use tracing::{info, warn};

use super::{
    super::{
        plan::{self, Due},
        stored::{self, Stored},
    },
    Error, FIELD_MANAGER, Keeper,
};

impl Keeper {
    /// Does what is due to the Secret; what it holds then is the last that was good, even where this fails.
    pub(super) async fn keep(&mut self) -> Result<Option<Stored>, Error> {
        let Some(stored) = self.shared().await? else { return Ok(None) };
        self.last_good = Some(stored.clone());
        let now = self.clock.now();
        let next_published_for =
            stored.next.as_ref().and_then(|next| self.published_for(&next.to_authority()));
        if let Some(due) =
            plan::due(Some(&stored), &self.config.names, next_published_for, now, &self.config.lifetimes)
        {
            let after = plan::step(due, Some(&stored), &self.config.names, now, &self.config.lifetimes)?;
            if let Some(written) = self.write(&after, due.as_str()).await? {
                self.last_good = Some(written.clone());
                return Ok(Some(written));
            }
        }
        Ok(Some(stored))
    }

    /// What the Secret holds; makes or restores it where it holds nothing good. `None` until it is known.
    async fn shared(&mut self) -> Result<Option<Stored>, Error> {
        let Some(secret) = &self.secret else { return Ok(None) };
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let is_empty = data.is_none_or(|data| data.values().all(|value| value.0.is_empty()));
        match Stored::read(|key| Some(data?.get(key)?.0.as_slice())) {
            Ok(stored) => return Ok(Some(stored)),
            Err(error) if !is_empty => {
                if self.last_good.is_none() && !secret.as_ref().is_some_and(is_ours) {
                    return Err(Error::Foreign {
                        namespace: self.config.namespace.clone(),
                        name: self.config.secret.clone(),
                    });
                }
                warn!(secret = self.config.secret, error = %chain(&error), "the shared certificates are broken");
            }
            Err(_) => {}
        }
        // What this replica knew is what the others serve with: better than to begin anew.
        let (stored, what) = match &self.last_good {
            Some(known) => (known.clone(), "write the shared certificates back"),
            None => {
                let now = self.clock.now();
                let due = Due::Create;
                (plan::step(due, None, &self.config.names, now, &self.config.lifetimes)?, due.as_str())
            }
        };
        self.write(&stored, what).await
    }

    /// Writes the Secret against the version that was read. `None` if another replica was faster; the watch brings
    /// what it wrote.
    async fn write(&mut self, stored: &Stored, what: &'static str) -> Result<Option<Stored>, Error> {
        let data = stored.to_data().into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = &self.config.secret;
        let result = match self.secret.iter().flatten().next() {
            Some(old) => {
                let secret = Secret { data: Some(data), ..old.clone() };
                self.secrets.replace(name, &params, &secret).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                self.secrets.create(&params, &secret).await
            }
        };
        match result {
            Ok(written) => {
                self.metrics.steps.inc();
                info!(secret = name, "{what}");
                self.secret = Some(Some(written));
                Ok(Some(stored.clone()))
            }
            // Created or changed by another meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            // Deleted by another meanwhile: it is to be created next.
            Err(kube::Error::Api(status)) if status.code == 404 && self.secret != Some(None) => {
                self.secret = Some(None);
                Ok(None)
            }
            Err(source) => Err(Error::Write {
                namespace: self.config.namespace.clone(),
                name: name.clone(),
                source: Box::new(source),
            }),
        }
    }
}

/// Whether a Secret whose content is broken was written by the shim once, by this replica or another.
fn is_ours(secret: &Secret) -> bool {
    let mut managers = secret.metadata.managed_fields.iter().flatten();
    let has_key = |data: &BTreeMap<_, _>| data.contains_key(stored::OWN_KEY);
    secret.data.as_ref().is_some_and(has_key)
        || managers.any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
}
