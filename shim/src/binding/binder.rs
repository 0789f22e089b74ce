//! Weighs the sources of a binding.

use std::collections::BTreeMap;

use rolecall_contract::{SessionDuration, annotation};

use super::{Binding, Decision, Lifetime, MAX_LIFETIME, MIN_LIFETIME, Method, Role, Sources};
use crate::{
    annotations::{Setting, Written},
    config_map::Entry,
    pod::PodView,
    policy::{Mode, Policy},
    session_name::SessionName,
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

/// A role that somebody wrote, and where. The first place in this order counts.
#[derive(Debug, Clone)]
enum WrittenRole<'a> {
    OnPod(Written<'a>),
    OnServiceAccount(Written<'a>),
    InConfigMap(&'a Entry),
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
        let is_ours = written.as_ref().is_some_and(WrittenRole::is_ours) || !container_roles.is_empty();
        let is_identity = self.sources.identities.contains(self.namespace, self.service_account);
        let binding = if is_identity && !is_ours {
            Some(self.identity())
        } else if written.is_some() || is_ours {
            Some(self.role(written, container_roles))
        } else {
            None
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
        let role = written.as_ref().map(|written| self.read_role(&written.place(), written.text()));
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
        on_pod().or_else(on_service_account).or_else(in_config_map)
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

    fn irsa(&mut self) -> Method {
        let written = self.pod.annotation(annotation::SESSION_NAME);
        let written = written.or_else(|| self.on_service_account(annotation::SESSION_NAME)).map(str::trim);
        let Some(text) = written.filter(|text| !text.is_empty()) else {
            return Method::Irsa { session_name: self.policy.session_name.clone() };
        };
        let session_name = text.parse::<SessionName>();
        if let Err(error) = &session_name {
            self.warnings.push(format!(
                "{} is {} and does not count: {error}",
                annotation::SESSION_NAME,
                quoted(text)
            ));
        }
        Method::Irsa { session_name: session_name.ok().or_else(|| self.policy.session_name.clone()) }
    }

    fn is_relative(&mut self) -> bool {
        let written = self.pod.annotation(annotation::RELATIVE_URI);
        let Some(text) = written.or_else(|| self.on_service_account(annotation::RELATIVE_URI)) else {
            return false;
        };
        parse_bool(text.trim()).unwrap_or_else(|| {
            self.warnings.push(format!(
                "{} is {} and does not count; use true or false",
                annotation::RELATIVE_URI,
                quoted(text)
            ));
            false
        })
    }

    fn audience(&self, entry: Option<&Entry>) -> String {
        let on_service_account = self.find_on_service_account(Setting::Audience).map(|written| written.value);
        let in_config_map = || entry.and_then(|entry| entry.audience.as_deref());
        on_service_account.or_else(in_config_map).unwrap_or(&self.policy.audience).to_owned()
    }

    fn regional_sts(&mut self, entry: Option<&Entry>) -> Option<bool> {
        let written = self.find_on_service_account(Setting::StsRegionalEndpoints);
        let asked = written.and_then(|written| {
            let value = parse_bool(written.value);
            if value.is_none() {
                self.warnings.push(format!(
                    "{} is {} and does not count; use true or false",
                    written.key,
                    quoted(written.value)
                ));
            }
            value
        });
        asked.or_else(|| entry.and_then(|entry| entry.use_regional_sts))
    }

    fn lifetime(&mut self, entry: Option<&Entry>) -> Lifetime {
        let written = [
            self.find_on_pod(Setting::TokenExpiration).map(|written| ("the pod", written)),
            self.find_on_service_account(Setting::TokenExpiration)
                .map(|written| ("the ServiceAccount", written)),
        ];
        for (place, written) in written.into_iter().flatten() {
            let shown = format!("{} of {place} is {}", written.key, quoted(written.value));
            match Lifetime::asked(written.value) {
                None => self.warnings.push(format!("{shown} and does not count; use a number of seconds")),
                Some((lifetime, is_corrected)) => {
                    self.warn_of_correction(is_corrected, &shown, lifetime);
                    return lifetime;
                }
            }
        }
        if let Some((entry, seconds)) = entry.and_then(|entry| Some((entry, entry.token_expiration?))) {
            let (lifetime, is_corrected) = Lifetime::asked_seconds(seconds);
            let shown = format!("TokenExpiration of {} in the ConfigMap is {seconds}", quoted(&entry.key));
            self.warn_of_correction(is_corrected, &shown, lifetime);
            return lifetime;
        }
        Lifetime::of_policy(self.policy.token_expiration)
    }

    fn warn_of_correction(&mut self, is_corrected: bool, shown: &str, lifetime: Lifetime) {
        if is_corrected {
            self.warnings.push(format!(
                "{shown}, and {MIN_LIFETIME} to {MAX_LIFETIME} seconds are possible; it is taken as {}",
                lifetime.seconds
            ));
        }
    }

    /// The ServiceAccount's; the pod's own stays where it is, and the daemon reads it there.
    fn session_duration(&mut self) -> Option<SessionDuration> {
        let on_pod = self.pod.annotation(annotation::SESSION_DURATION);
        let text = on_pod.or_else(|| self.on_service_account(annotation::SESSION_DURATION))?.trim();
        let duration = text.parse().ok().and_then(|seconds| SessionDuration::from_seconds(seconds).ok());
        if duration.is_none() {
            self.warnings.push(format!(
                "{} is {} and does not count; use {} to {} seconds",
                annotation::SESSION_DURATION,
                quoted(text),
                SessionDuration::MIN.as_seconds(),
                SessionDuration::MAX.as_seconds()
            ));
        }
        duration.filter(|_| on_pod.is_none())
    }

    fn find_on_pod(&self, setting: Setting) -> Option<Written<'a>> {
        let pod = self.pod;
        setting.find(|key| pod.annotation(key), self.policy.compatibility_prefix.as_deref())
    }

    fn find_on_service_account(&self, setting: Setting) -> Option<Written<'a>> {
        let facts = self.sources.service_account?;
        let get = |key: &str| facts.annotations.get(key).map(String::as_str);
        setting.find(get, self.policy.compatibility_prefix.as_deref())
    }

    fn on_service_account(&self, key: &str) -> Option<&'a str> {
        let facts = self.sources.service_account?;
        facts.annotations.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

impl<'a> WrittenRole<'a> {
    fn text(&self) -> &'a str {
        match self {
            Self::OnPod(written) | Self::OnServiceAccount(written) => written.value,
            Self::InConfigMap(entry) => &entry.role_arn,
        }
    }

    fn place(&self) -> String {
        match self {
            Self::OnPod(written) => format!("{} of the pod", written.key),
            Self::OnServiceAccount(written) => format!("{} of the ServiceAccount", written.key),
            Self::InConfigMap(entry) => format!("the role of {} in the ConfigMap", quoted(&entry.key)),
        }
    }

    fn is_ours(&self) -> bool {
        match self {
            Self::OnPod(written) | Self::OnServiceAccount(written) => {
                written.key.starts_with(annotation::PREFIX)
            }
            Self::InConfigMap(_) => false,
        }
    }
}

/// The words that the EKS webhook takes (Go's `strconv.ParseBool`).
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
