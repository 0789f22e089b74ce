//! What a pod gets: the patch that gives it the credentials of its role.

mod container;
mod eks;
mod notes;
mod proxy;
mod selection;
mod volume;

use rolecall_contract::annotation;
use serde_json::{Value, json};

use self::{
    container::{ContainerChange, Injector},
    eks::EksInjection,
    notes::Notes,
    selection::Selection,
    volume::TokenVolume,
};
use crate::{
    binding::{Binding, Decision, Method},
    patch::{self, PatchOperation},
    pod::PodView,
    policy::{Policy, RELATIVE_ADDRESS},
    wording::quoted,
};

/// The label that the EKS webhook puts on the pods of container-credentials identities.
const POD_IDENTITY_LABEL: &str = "eks.amazonaws.com/pod-identity";

/// What is done to a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Mutation {
    /// Empty where there is nothing to do.
    pub patch: Vec<PatchOperation>,
    /// What its author should know, each with its remedy. They name containers, not the pod.
    pub warnings: Vec<String>,
    pub outcome: Outcome,
}

/// What became of a review, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Pointed at the daemon.
    InjectedContainer,
    /// Pointed at STS.
    InjectedIrsa,
    /// Pointed at EKS Pod Identity.
    InjectedContainerCredentials,
    /// Has a role, and had all it needs before.
    AlreadyInjected,
    /// Pointed at its role, which is malformed: it will be told so.
    RoleMalformed,
    /// Nothing gives it a role.
    Unbound,
    /// Left to EKS's own webhook, which was there first.
    SkippedEksPresent,
    /// Its annotations leave no container to inject.
    SkippedContainers,
    /// The kubelet's picture of a static pod.
    SkippedMirror,
    /// What its author has set stands in the way.
    Conflict,
    /// Not the creation of a pod.
    NotAPod,
    /// The review or the pod in it cannot be read.
    Denied,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 12] = [
        Self::InjectedContainer,
        Self::InjectedIrsa,
        Self::InjectedContainerCredentials,
        Self::AlreadyInjected,
        Self::RoleMalformed,
        Self::Unbound,
        Self::SkippedEksPresent,
        Self::SkippedContainers,
        Self::SkippedMirror,
        Self::Conflict,
        Self::NotAPod,
        Self::Denied,
    ];

    /// The outcome's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InjectedContainer => "injected_container",
            Self::InjectedIrsa => "injected_irsa",
            Self::InjectedContainerCredentials => "injected_container_credentials",
            Self::AlreadyInjected => "already_injected",
            Self::RoleMalformed => "role_malformed",
            Self::Unbound => "unbound",
            Self::SkippedEksPresent => "skipped_eks_present",
            Self::SkippedContainers => "skipped_containers",
            Self::SkippedMirror => "skipped_mirror",
            Self::Conflict => "conflict",
            Self::NotAPod => "not_a_pod",
            Self::Denied => "denied",
        }
    }
}

impl Mutation {
    /// Nothing is done.
    pub fn untouched(outcome: Outcome, warnings: Vec<String>) -> Self {
        Self { patch: Vec::new(), warnings, outcome }
    }

    /// The answer to whatever is not the creation of a pod.
    pub fn not_a_pod() -> Self {
        Self::untouched(Outcome::NotAPod, Vec::new())
    }
}

/// Decides what `pod` gets, which has passed [`PodView::check`]. `seed` spreads the lifetimes of tokens: see [`crate::review::Review::seed`].
pub fn mutate(pod: &Value, namespace: &str, decision: &Decision, policy: &Policy, seed: u64) -> Mutation {
    let warnings = decision.warnings.clone();
    let Some(binding) = &decision.binding else { return Mutation::untouched(Outcome::Unbound, warnings) };
    let pod = PodView::new(pod);
    if pod.is_mirror() {
        return Mutation::untouched(Outcome::SkippedMirror, warnings);
    }
    let mut mutator = Mutator { pod, namespace, binding, policy, warnings };
    let (patch, outcome) = mutator.mutate(seed);
    Mutation { patch, warnings: mutator.warnings, outcome }
}

/// What it takes to decide, and the warnings so far.
struct Mutator<'a> {
    pod: PodView<'a>,
    namespace: &'a str,
    binding: &'a Binding,
    policy: &'a Policy,
    warnings: Vec<String>,
}

/// The containers of a pod, sorted by what is to be done to them.
#[derive(Default)]
struct Sorted<'a> {
    /// To be pointed at their credentials, or pointed there already.
    injected: Vec<ContainerChange<'a>>,
    /// Left alone, because of what their author has set.
    in_conflict: usize,
}

impl<'a> Mutator<'a> {
    fn mutate(&mut self, seed: u64) -> (Vec<PatchOperation>, Outcome) {
        let eks = EksInjection::find(self.pod, self.policy);
        if let Some(warning) = self.why_left_to_eks(&eks) {
            self.warnings.push(warning);
            return (Vec::new(), Outcome::SkippedEksPresent);
        }
        let volume = TokenVolume::new(self.pod, self.binding, self.policy);
        if let Some(foreign) = volume.why_foreign(self.pod) {
            self.warnings.push(foreign);
            return (Vec::new(), Outcome::Conflict);
        }
        let notes = Notes::plan(self.pod, self.binding);
        let sorted = self.sort(&volume, &notes, &eks);
        if sorted.injected.is_empty() {
            let outcome =
                if sorted.in_conflict == 0 { Outcome::SkippedContainers } else { Outcome::Conflict };
            return (Vec::new(), outcome);
        }
        self.warnings.extend(notes.warnings.iter().cloned());
        self.warn_of_the_network();
        let patch = self.patch(&volume, &notes, &eks, &sorted, seed);
        let outcome = self.outcome(patch.is_empty());
        (patch, outcome)
    }

    fn sort(&mut self, volume: &TokenVolume<'_>, notes: &Notes, eks: &EksInjection) -> Sorted<'a> {
        let selection = Selection::read(self.pod, self.policy);
        self.warnings.extend(selection.unknown_names(self.pod));
        let injector = Injector {
            pod: self.pod,
            namespace: self.namespace,
            binding: self.binding,
            policy: self.policy,
            volume,
            role_is_in_path: notes.role_is_in_path,
            eks,
        };
        let mut sorted = Sorted::default();
        for container in self.pod.containers().filter(|container| selection.contains(container.name())) {
            match injector.change(container) {
                None => {}
                Some(Ok(change)) => {
                    self.warnings.extend(change.warnings.iter().cloned());
                    sorted.injected.push(change);
                }
                Some(Err(conflict)) => {
                    self.warnings.push(format!("container {}: {conflict}", quoted(container.name())));
                    sorted.in_conflict += 1;
                }
            }
        }
        sorted
    }

    fn patch(
        &self,
        volume: &TokenVolume<'_>,
        notes: &Notes,
        eks: &EksInjection,
        sorted: &Sorted<'_>,
        seed: u64,
    ) -> Vec<PatchOperation> {
        let annotations = self.pod.at("/metadata/annotations");
        let mut patch = patch::set("/metadata/annotations", annotations, notes.annotations.clone());
        if self.binding.method == Method::ContainerCredentials && self.pod.label(POD_IDENTITY_LABEL).is_none()
        {
            let label = vec![(POD_IDENTITY_LABEL.to_owned(), json!("enabled"))];
            patch.extend(patch::set("/metadata/labels", self.pod.at("/metadata/labels"), label));
        }
        let taken_over = || sorted.injected.iter().filter(|change| change.is_taken_over());
        patch.extend(eks.remove_volume(self.pod, taken_over().count()));
        let is_used = sorted.injected.iter().any(|change| change.uses_volume);
        if is_used && self.pod.volume(volume.name).is_none() {
            let volumes = vec![volume.to_json(volume.lifetime(self.binding, seed))];
            patch.extend(patch::append("/spec/volumes", self.pod.at("/spec/volumes"), volumes));
        }
        patch.extend(sorted.injected.iter().flat_map(|change| change.patch()));
        patch
    }

    fn outcome(&self, is_patch_empty: bool) -> Outcome {
        let mut roles = self.binding.role.iter().chain(self.binding.container_roles.values());
        if roles.any(|role| role.error().is_some()) {
            return Outcome::RoleMalformed;
        }
        match self.binding.method {
            _ if is_patch_empty => Outcome::AlreadyInjected,
            Method::Container { .. } => Outcome::InjectedContainer,
            Method::Irsa { .. } => Outcome::InjectedIrsa,
            Method::ContainerCredentials => Outcome::InjectedContainerCredentials,
        }
    }

    /// SDKs prefer what EKS's own webhook injects to what the shim does.
    fn why_left_to_eks(&self, eks: &EksInjection) -> Option<String> {
        if !matches!(self.binding.method, Method::Container { .. }) {
            return None;
        }
        if eks.is_pod_identity {
            return Some(
                "an association of EKS Pod Identity gives this pod its credentials already; remove the association to use the daemon".to_owned(),
            );
        }
        if !eks.is_irsa || self.policy.take_over_irsa {
            return None;
        }
        Some(if self.binding.is_ours {
            "EKS's webhook has injected this pod too, and SDKs prefer that: remove eks.amazonaws.com/role-arn from the ServiceAccount and keep rolecall.dev/role-arn".to_owned()
        } else {
            "EKS's webhook has injected this pod already; for the daemon, annotate the ServiceAccount with rolecall.dev/role-arn in place of eks.amazonaws.com/role-arn".to_owned()
        })
    }

    fn warn_of_the_network(&mut self) {
        if self.binding.method != (Method::Container { relative: true }) {
            return;
        }
        if self.pod.is_on_host_network() {
            self.warnings.push(
                "a pod on the host network is known by its token alone, so SDKs that send none with a relative URI are refused; take it off the host network".to_owned(),
            );
        }
        if self.policy.endpoint_address.is_ipv6() {
            self.warnings.push(format!(
                "a relative URI leads to {RELATIVE_ADDRESS}, which pods with IPv6 alone do not reach; remove {}",
                annotation::RELATIVE_URI
            ));
        }
    }
}

#[cfg(test)]
mod tests;
