//! Weighs the sources of a binding.

mod place;
mod settings;

use std::collections::BTreeMap;

use rolecall_contract::annotation;

use self::place::{Place, WrittenRole};
use super::{Binding, Decision, Method, Role, Sources};
use crate::{
    annotations::Setting,
    pod::PodView,
    policy::{Mode, Policy},
    wording::quoted,
};

/// Everything that is weighed, and the warnings so far.
pub(super) struct Binder<'a> {
    namespace: &'a str,
    service_account: &'a str,
    pod: PodView<'a>,
    sources: Sources<'a>,
    policy: &'a Policy,
    warnings: Vec<String>,
}

impl<'a> Binder<'a> {
    pub(super) fn new(
        namespace: &'a str,
        service_account: &'a str,
        pod: PodView<'a>,
        sources: Sources<'a>,
        policy: &'a Policy,
    ) -> Self {
        Self { namespace, service_account, pod, sources, policy, warnings: Vec::new() }
    }

    pub(super) fn decide(mut self) -> Decision {
        let written = self.written_role();
        let container_roles = self.container_roles();
        let is_identity = self.sources.identities.contains(self.namespace, self.service_account);
        let places = [
            written.as_ref().map(WrittenRole::place),
            (!container_roles.is_empty()).then_some(Place::OursOnServiceAccount),
            is_identity.then_some(Place::Identity),
        ];
        let binding = match places.into_iter().flatten().min() {
            None => None,
            Some(Place::Identity) => Some(self.identity()),
            Some(
                Place::OursOnPod
                | Place::CompatibleOnPod
                | Place::OursOnServiceAccount
                | Place::CompatibleOnServiceAccount
                | Place::ConfigMap,
            ) => Some(self.role(written, container_roles)),
        };
        self.warn_of_a_refused_role(binding.as_ref());
        if binding.is_some() {
            self.warn_of_misplaced_lists();
        }
        Decision { binding, warnings: self.warnings }
    }

    fn identity(&mut self) -> Binding {
        let exact = self.sources.config_map.find_exact(self.namespace, self.service_account);
        Binding {
            method: Method::ContainerCredentials,
            role: None,
            container_roles: BTreeMap::new(),
            audience: self.policy.container_credentials.audience.clone(),
            lifetime: self.lifetime(exact),
            // The operator's own setting is for those who call STS themselves.
            regional_sts: self.regional_sts(exact).unwrap_or_default(),
            session_duration: None,
            eks_role: None,
            is_ours: false,
        }
    }

    fn role(&mut self, written: Option<WrittenRole<'a>>, container_roles: BTreeMap<String, Role>) -> Binding {
        let entry = match &written {
            Some(WrittenRole::InConfigMap(entry)) => Some(*entry),
            Some(WrittenRole::OnPod(_) | WrittenRole::OnServiceAccount(_)) | None => None,
        };
        let role = written.as_ref().map(|written| self.read_role(&written.described(), written.text()));
        let audience = self.audience(entry);
        let method = self.method(&audience);
        let session_duration = match method {
            Method::Container { .. } => self.session_duration(),
            Method::Irsa { .. } | Method::ContainerCredentials => None,
        };
        let eks_role = self.on_service_account(&Setting::RoleArn.under(Policy::EKS_PREFIX)).or_else(|| {
            let entry = self.sources.config_map.find(self.namespace, self.service_account);
            entry.map(|entry| entry.role_arn.as_str())
        });
        Binding {
            method,
            role,
            container_roles,
            audience,
            lifetime: self.lifetime(entry),
            regional_sts: self.regional_sts(entry).unwrap_or(self.policy.sts_regional_endpoints),
            session_duration,
            eks_role: eks_role.map(|role| role.trim().to_owned()),
            is_ours: written.as_ref().is_none_or(WrittenRole::is_ours),
        }
    }

    fn written_role(&self) -> Option<WrittenRole<'a>> {
        let on_pod = || {
            let allowed = self.policy.pod_role_annotation_allowed;
            allowed.then(|| self.find_on_pod(Setting::RoleArn)).flatten().map(WrittenRole::OnPod)
        };
        let on_service_account =
            || self.find_on_service_account(Setting::RoleArn).map(WrittenRole::OnServiceAccount);
        let in_config_map = || {
            let entry = self.sources.config_map.find(self.namespace, self.service_account);
            entry.map(WrittenRole::InConfigMap)
        };
        let written = [on_pod(), on_service_account(), in_config_map()];
        written.into_iter().flatten().min_by_key(WrittenRole::place)
    }

    /// Roles of single containers: the ServiceAccount's, and over them the pod's where these are allowed.
    fn container_roles(&mut self) -> BTreeMap<String, Role> {
        let of_service_account = self.sources.service_account.into_iter().flat_map(|facts| {
            facts.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str(), "the ServiceAccount"))
        });
        let of_pod = self
            .pod
            .annotations()
            .filter(|_| self.policy.pod_role_annotation_allowed)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default(), "the pod"));
        let mut roles = BTreeMap::new();
        for (key, value, place) in of_service_account.chain(of_pod) {
            let Some(container) = key.strip_prefix(annotation::ROLE_ARN_OF_CONTAINER) else { continue };
            if value.trim().is_empty() {
                continue;
            }
            if !self.pod.containers().any(|found| found.name() == container) {
                self.warnings.push(format!(
                    "{} of {place} names no container of this pod; check the spelling",
                    quoted(key)
                ));
                continue;
            }
            let role = self.read_role(&format!("{key} of {place}"), value);
            roles.insert(container.to_owned(), role);
        }
        roles
    }

    fn read_role(&mut self, place: &str, text: &str) -> Role {
        let role = Role::read(text, self.policy);
        if let Some(error) = role.error() {
            self.warnings.push(format!("{place} is {}: {error}", quoted(role.as_str())));
        }
        role
    }

    /// A role that the pod names and may not name would be missed without a word.
    fn warn_of_a_refused_role(&mut self, binding: Option<&Binding>) {
        if self.policy.pod_role_annotation_allowed {
            return;
        }
        // What the shim itself has written there, or the author of a pod that is set up by hand.
        let resolved = binding.and_then(|binding| binding.role.as_ref()).map(Role::as_str);
        let is_by_hand = || self.pod.volume(rolecall_contract::volume::NAME).is_some();
        if let Some(written) = self.find_on_pod(Setting::RoleArn)
            && Some(written.value) != resolved
            && (binding.is_some() || !is_by_hand())
        {
            self.warnings.push(format!(
                "the pod's annotation {} does not count, for the operator does not let pods name their roles; put it on ServiceAccount {}",
                written.key, self.service_account
            ));
        }
        let of_container = |(key, _): &(&String, _)| key.starts_with(annotation::ROLE_ARN_OF_CONTAINER);
        if let Some((key, _)) = self.pod.annotations().into_iter().flatten().find(of_container) {
            self.warnings.push(format!(
                "the pod's annotation {} does not count, for the operator does not let pods name their roles; put it on ServiceAccount {}",
                quoted(key), self.service_account
            ));
        }
    }

    /// The lists of containers belong to the pod; many have looked in vain for why they do nothing elsewhere.
    fn warn_of_misplaced_lists(&mut self) {
        for setting in [Setting::SkipContainers, Setting::IncludeContainers] {
            if let Some(written) = self.find_on_service_account(setting) {
                self.warnings.push(format!(
                    "{} does not count on ServiceAccount {}; put it on the pod",
                    written.key, self.service_account
                ));
            }
        }
    }

    fn method(&mut self, audience: &str) -> Method {
        let asked = self.on_service_account(annotation::MODE).and_then(|text| {
            let mode = text.parse::<Mode>();
            if mode.is_err() {
                self.warnings.push(format!(
                    "{} of ServiceAccount {} is {}, neither container nor irsa; {} is used",
                    annotation::MODE,
                    self.service_account,
                    quoted(text),
                    self.policy.default_mode
                ));
            }
            mode.ok()
        });
        match asked.unwrap_or(self.policy.default_mode) {
            Mode::Irsa => self.irsa(),
            Mode::Container => match self.why_no_daemon(audience) {
                None => Method::Container { relative: self.is_relative() },
                Some(reason) => {
                    // The place alone is no surprise, unless somebody has asked for something else.
                    if asked.is_some() || audience != self.policy.audience {
                        self.warnings.push(format!("{reason}; the pod gets the variables of irsa mode"));
                    }
                    self.irsa()
                }
            },
        }
    }

    /// Why no daemon can serve this pod.
    fn why_no_daemon(&self, audience: &str) -> Option<String> {
        if self.pod.is_windows() {
            return Some("there is no daemon on Windows".to_owned());
        }
        if self.pod.is_fargate() {
            return Some("there is no daemon on Fargate".to_owned());
        }
        let selectors = &self.policy.node_selectors_without_daemon;
        if let Some((label, value)) =
            selectors.iter().find(|(label, value)| self.pod.requires_node(label, value))
        {
            return Some(format!("there is no daemon on nodes with {label}={value}"));
        }
        (audience != self.policy.audience).then(|| {
            format!(
                "the daemon takes tokens for {} only, and {} is asked for",
                quoted(&self.policy.audience),
                quoted(audience)
            )
        })
    }
}
