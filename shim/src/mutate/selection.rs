//! The containers that a pod's annotations leave to be injected.

use crate::{
    annotations::{Setting, Written},
    pod::PodView,
    policy::Policy,
    wording::quoted,
};

/// The lists of a pod.
pub(super) struct Selection<'a> {
    skip: Option<List<'a>>,
    /// Where it is there, only its containers are injected.
    include: Option<List<'a>>,
}

struct List<'a> {
    key: String,
    names: Vec<&'a str>,
}

impl<'a> Selection<'a> {
    pub(super) fn read(pod: PodView<'a>, policy: &Policy) -> Self {
        let list = |setting: Setting| {
            let written = setting.find(|key| pod.annotation(key), policy.compatibility_prefix.as_deref())?;
            Some(List::read(written))
        };
        Self { skip: list(Setting::SkipContainers), include: list(Setting::IncludeContainers) }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        let is_in = |list: &List<'_>| list.names.contains(&name);
        self.include.as_ref().is_none_or(is_in) && !self.skip.as_ref().is_some_and(is_in)
    }

    /// One warning for each name that no container has.
    pub(super) fn unknown_names(&self, pod: PodView<'_>) -> Vec<String> {
        let is_unknown = |name: &&str| !pod.containers().any(|container| container.name() == *name);
        let lists = self.skip.iter().chain(&self.include);
        lists
            .flat_map(|list| {
                list.names.iter().copied().filter(is_unknown).map(|name| {
                    format!(
                        "{} names {}, which is no container of this pod; check the spelling",
                        list.key,
                        quoted(name)
                    )
                })
            })
            .collect()
    }
}

impl<'a> List<'a> {
    /// Names between commas, with or without blanks and quotation marks around them.
    fn read(written: Written<'a>) -> Self {
        let bare = |name: &'a str| name.trim().trim_matches('"').trim();
        let names = written.value.split([',', '\n']).map(bare).filter(|name| !name.is_empty()).collect();
        Self { key: written.key, names }
    }
}
