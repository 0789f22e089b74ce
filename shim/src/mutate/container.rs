//! What one container gets.

use rolecall_contract::{endpoint, role};
use serde_json::{Value, json};

use super::{
    eks::{EksContainer, EksInjection, ROLE_ARN_ENV, WEB_IDENTITY_TOKEN_FILE_ENV},
    proxy::{self, ProxyChange},
    volume::{Access, TokenVolume},
};
use crate::{
    binding::{Binding, Method, Role},
    patch::{self, PatchOperation},
    pod::{ContainerView, PodView},
    policy::{Policy, RELATIVE_ADDRESS, full_uri},
    session_name::{Part, SessionName},
    wording::quoted,
};

const STS_REGIONAL_ENV: &str = "AWS_STS_REGIONAL_ENDPOINTS";
const REGION_ENVS: [&str; 2] = ["AWS_DEFAULT_REGION", "AWS_REGION"];
const TOKEN_ENV: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const ACCESS_KEY_ENV: &str = "AWS_ACCESS_KEY_ID";
const SESSION_NAME_ENV: &str = "AWS_ROLE_SESSION_NAME";

/// Holds the pod's name, for a session's name that contains more.
const POD_NAME_ENV: &str = "ROLECALL_POD_NAME";

/// What is needed to tell what a container gets.
pub(super) struct Injector<'a> {
    pub(super) pod: PodView<'a>,
    pub(super) namespace: &'a str,
    pub(super) binding: &'a Binding,
    pub(super) policy: &'a Policy,
    pub(super) volume: &'a TokenVolume<'a>,
    /// The pod's role travels in the URI.
    pub(super) role_is_in_path: bool,
    pub(super) eks: &'a EksInjection,
}

/// What is done to a container.
pub(super) struct ContainerChange<'a> {
    container: ContainerView<'a>,
    added: Vec<Value>,
    proxy: ProxyChange,
    mount: Option<Value>,
    taken_over: Option<EksContainer>,
    /// It reads its token from the shim's volume.
    pub(super) uses_volume: bool,
    /// Without the container's name.
    pub(super) warnings: Vec<String>,
}

impl<'a> ContainerChange<'a> {
    fn new(container: ContainerView<'a>) -> Self {
        Self {
            container,
            added: Vec::new(),
            proxy: ProxyChange::default(),
            mount: None,
            taken_over: None,
            uses_volume: false,
            warnings: Vec::new(),
        }
    }

    /// Whether EKS's own injection is taken out of it.
    pub(super) fn is_taken_over(&self) -> bool {
        self.taken_over.is_some()
    }

    /// Changes by place come first, then removals, then what goes to the end: so no operation moves what a later
    /// one names.
    pub(super) fn patch(&self) -> Vec<PatchOperation> {
        let path = self.container.path();
        let (env, mounts) = (format!("{path}/env"), format!("{path}/volumeMounts"));
        let mut operations = Vec::new();
        for (index, name, value) in &self.proxy.replaced {
            let item = format!("{env}/{index}");
            operations.push(PatchOperation::Test { path: patch::child(&item, "name"), value: json!(name) });
            // Adding a member replaces it, and an empty variable may have none.
            operations.push(PatchOperation::Add { path: patch::child(&item, "value"), value: json!(value) });
        }
        operations.extend(self.taken_over.iter().flat_map(|eks| eks.patch(self.container)));
        let added = self.added.iter().chain(&self.proxy.added).cloned().collect();
        operations.extend(patch::append(&env, self.container.field("env"), added));
        let mount = self.mount.iter().cloned().collect();
        operations.extend(patch::append(&mounts, self.container.field("volumeMounts"), mount));
        operations
    }

    /// Ends its collection of warnings by saying which container they are about.
    fn named(mut self) -> Self {
        let name = quoted(self.container.name());
        for warning in self.warnings.iter_mut().chain(&mut self.proxy.warnings) {
            *warning = format!("container {name}: {warning}");
        }
        self.warnings.append(&mut self.proxy.warnings);
        self
    }
}

impl Injector<'_> {
    /// What `container` gets; `None` where it has no role, and an error where its author has set what stands in
    /// the way: then it gets nothing at all.
    pub(super) fn change<'c>(
        &self,
        container: ContainerView<'c>,
    ) -> Option<Result<ContainerChange<'c>, String>> {
        let change = match &self.binding.method {
            Method::Container { relative } => self.container(container, self.role(container)?, *relative),
            Method::Irsa { session_name } => {
                self.irsa(container, self.role(container)?, session_name.as_ref())
            }
            Method::ContainerCredentials => self.container_credentials(container),
        };
        Some(change.map(ContainerChange::named))
    }

    fn role(&self, container: ContainerView<'_>) -> Option<&Role> {
        self.binding.container_roles.get(container.name()).or(self.binding.role.as_ref())
    }

    fn container<'c>(
        &self,
        container: ContainerView<'c>,
        role: &Role,
        relative: bool,
    ) -> Result<ContainerChange<'c>, String> {
        let taken_over = if self.policy.take_over_irsa {
            self.eks.of_container(container, self.binding.eks_role.as_deref())
        } else {
            None
        };
        if container.variable(WEB_IDENTITY_TOKEN_FILE_ENV).is_some() && taken_over.is_none() {
            return Err(self.set_by_author(WEB_IDENTITY_TOKEN_FILE_ENV));
        }
        let path = self.path(container, role)?;
        let (uri_env, other_uri_env, uri) = if relative {
            (endpoint::RELATIVE_URI_ENV, endpoint::FULL_URI_ENV, path)
        } else {
            let uri = full_uri(self.policy.endpoint_address, &path);
            (endpoint::FULL_URI_ENV, endpoint::RELATIVE_URI_ENV, uri)
        };
        for name in [other_uri_env, TOKEN_ENV] {
            if container.variable(name).is_some() {
                return Err(self.set_by_author(name));
            }
        }
        let access = self.volume.access(self.pod, container)?;
        let mut change = ContainerChange::new(container);
        self.add_regions(&mut change);
        match container.variable(uri_env) {
            None => change.added.push(json!({"name": uri_env, "value": uri})),
            Some(found) if found.value.is_some_and(|value| self.leads_to_the_daemon(value, relative)) => {}
            Some(_) => return Err(self.set_by_author(uri_env)),
        }
        let token_file = self.volume.token_file();
        match container.variable(endpoint::TOKEN_FILE_ENV) {
            None => change.added.push(json!({"name": endpoint::TOKEN_FILE_ENV, "value": token_file})),
            Some(found) if found.value == Some(&token_file) => {}
            Some(_) => return Err(self.set_by_author(endpoint::TOKEN_FILE_ENV)),
        }
        let address =
            if relative { RELATIVE_ADDRESS.to_string() } else { self.policy.endpoint_address.to_string() };
        change.proxy = proxy::except(container, &address);
        change.taken_over = taken_over;
        self.mount(&mut change, access);
        if !change.added.is_empty() {
            if container.has_env_from() {
                change.warnings.push(format!(
                    "what envFrom brings cannot be seen here: variables that are injected win over it, and a proxy in it needs {address} in its NO_PROXY"
                ));
            }
            if container.variable(ACCESS_KEY_ENV).is_some_and(|found| found.value != Some("")) {
                change
                    .warnings
                    .push(format!("it sets {ACCESS_KEY_ENV}, which SDKs prefer to its role; remove it"));
            }
        }
        Ok(change)
    }

    fn irsa<'c>(
        &self,
        container: ContainerView<'c>,
        role: &Role,
        session_name: Option<&SessionName>,
    ) -> Result<ContainerChange<'c>, String> {
        let names = [ROLE_ARN_ENV, WEB_IDENTITY_TOKEN_FILE_ENV];
        let values = [role.as_str().to_owned(), self.volume.token_file()];
        let mut change = self.group(container, names, &values)?;
        if let Some(session_name) = session_name
            && change.added.iter().any(|variable| variable["name"] == ROLE_ARN_ENV)
            && container.variable(SESSION_NAME_ENV).is_none()
        {
            match self.session_name(container, session_name) {
                Ok(variables) => change.added.extend(variables),
                Err(warning) => change.warnings.push(warning),
            }
        }
        Ok(change)
    }

    fn container_credentials<'c>(&self, container: ContainerView<'c>) -> Result<ContainerChange<'c>, String> {
        let names = [endpoint::FULL_URI_ENV, endpoint::TOKEN_FILE_ENV];
        let values = [self.policy.container_credentials.full_uri.clone(), self.volume.token_file()];
        self.group(container, names, &values)
    }

    /// The variables, of which one that is there keeps all away, as the EKS webhook has it.
    fn group<'c>(
        &self,
        container: ContainerView<'c>,
        names: [&'static str; 2],
        values: &[String; 2],
    ) -> Result<ContainerChange<'c>, String> {
        let found = names.map(|name| container.variable(name));
        let is_there = found.iter().any(Option::is_some);
        let has_region = REGION_ENVS.iter().any(|name| container.variable(name).is_some());
        let mut change = ContainerChange::new(container);
        if is_there && has_region && container.variable(STS_REGIONAL_ENV).is_some() {
            change.uses_volume = container.mounts().any(|mount| mount.volume == self.volume.name);
            return Ok(change);
        }
        let access = self.volume.access(self.pod, container)?;
        self.add_regions(&mut change);
        if is_there {
            // What an earlier pass has set is no surprise.
            let is_other = found[1].and_then(|found| found.value) != Some(&values[1]);
            if is_other && let Some(name) = names.iter().find(|name| container.variable(name).is_some()) {
                change.warnings.push(format!(
                    "it sets {name} itself, so neither {} nor {} is injected; remove it for the role of the ServiceAccount",
                    names[0], names[1]
                ));
            }
        } else {
            let variables =
                names.iter().zip(values).map(|(name, value)| json!({"name": name, "value": value}));
            change.added.extend(variables);
        }
        self.mount(&mut change, access);
        Ok(change)
    }

    fn mount(&self, change: &mut ContainerChange<'_>, access: Access) {
        change.mount = (access == Access::ToBeMounted).then(|| self.volume.mount());
        change.uses_volume = access != Access::OfAuthor;
    }

    fn add_regions(&self, change: &mut ContainerChange<'_>) {
        let container = change.container;
        if self.binding.regional_sts && container.variable(STS_REGIONAL_ENV).is_none() {
            change.added.push(json!({"name": STS_REGIONAL_ENV, "value": "regional"}));
        }
        if let Some(region) = &self.policy.region
            && REGION_ENVS.iter().all(|name| container.variable(name).is_none())
        {
            change.added.extend(REGION_ENVS.map(|name| json!({"name": name, "value": region})));
        }
    }

    /// The path of the container's URI: the pod's own role needs none, if the pod could be annotated with it.
    fn path(&self, container: ContainerView<'_>, role: &Role) -> Result<String, String> {
        let is_own = !self.binding.container_roles.contains_key(container.name())
            || self.binding.role.as_ref() == Some(role);
        let text = role.as_str();
        if role::MAX_LENGTH < text.len() {
            return Err("its role is too long to be told, so it is not injected; correct it".to_owned());
        }
        if is_own && !self.role_is_in_path {
            return Ok(endpoint::CREDENTIALS_PATH.to_owned());
        }
        endpoint::uri_path_of(text).ok_or_else(|| {
            format!(
                "no URI can carry its role {}, so it is not injected; rename the role's path",
                quoted(text)
            )
        })
    }

    fn leads_to_the_daemon(&self, uri: &str, relative: bool) -> bool {
        let is_path = |path: &str| endpoint::parse_path(path).is_some();
        if relative {
            return is_path(uri);
        }
        let addresses =
            [self.policy.endpoint_address, endpoint::ADDRESS_V4.into(), endpoint::ADDRESS_V6.into()];
        addresses.into_iter().any(|address| uri.strip_prefix(&full_uri(address, "")).is_some_and(is_path))
    }

    fn set_by_author(&self, name: &str) -> String {
        format!(
            "it sets {name} itself, so it is not injected; remove that for the role of the ServiceAccount"
        )
    }

    /// The variables that name the sessions, or why there are none.
    fn session_name(
        &self,
        container: ContainerView<'_>,
        session_name: &SessionName,
    ) -> Result<Vec<Value>, String> {
        let service_account = self.pod.service_account();
        let of_part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Namespace => self.namespace.to_owned(),
            Part::ServiceAccount => service_account.to_owned(),
            Part::Pod => format!("$({POD_NAME_ENV})"),
        };
        let length: usize = session_name
            .parts()
            .iter()
            .map(|part| if *part == Part::Pod { self.pod.name_length() } else { of_part(part).len() })
            .sum();
        if !(SessionName::MIN_LENGTH..=SessionName::MAX_LENGTH).contains(&length) {
            return Err(format!(
                "{SESSION_NAME_ENV} would have {length} characters and STS takes {} to {}, so it is not set; use a shorter template",
                SessionName::MIN_LENGTH,
                SessionName::MAX_LENGTH
            ));
        }
        let pod_name =
            |name: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        if session_name.parts() == [Part::Pod] {
            return Ok(vec![pod_name(SESSION_NAME_ENV)]);
        }
        let value: String = session_name.parts().iter().map(of_part).collect();
        let needs_name =
            session_name.parts().contains(&Part::Pod) && container.variable(POD_NAME_ENV).is_none();
        // A variable can only refer to those before it.
        let named = needs_name.then(|| pod_name(POD_NAME_ENV));
        Ok(named.into_iter().chain([json!({"name": SESSION_NAME_ENV, "value": value})]).collect())
    }
}
