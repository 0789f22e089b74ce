//! A look at a pod's raw JSON: what the shim asks of it, and no more.

mod placement;

use serde_json::{Map, Value};

use crate::wording;

/// A pod as it stands in the review. A field of an unexpected kind counts as absent.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a>(&'a Value);

/// A container or init container of a pod.
#[derive(Debug, Clone, Copy)]
pub struct ContainerView<'a> {
    list: &'static str,
    index: usize,
    raw: &'a Value,
}

/// A variable of a container's `env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable<'a> {
    pub index: usize,
    pub name: &'a str,
    /// `None` where it comes from somewhere else (`valueFrom`) and cannot be read here.
    pub value: Option<&'a str>,
}

/// A mount of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    pub index: usize,
    pub volume: &'a str,
    pub path: &'a str,
    /// It shows a part of the volume only.
    pub has_sub_path: bool,
}

/// A projected token in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectedToken<'a> {
    pub audience: Option<&'a str>,
    pub path: &'a str,
    /// The volume holds nothing else.
    pub is_alone: bool,
}

/// Why an object is no pod, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    #[error("the pod is no JSON object")]
    NotAnObject,
    #[error("{0} is no {1}")]
    WrongKind(String, &'static str),
}

impl<'a> PodView<'a> {
    /// Looks at `pod`, whatever it is.
    pub fn new(pod: &'a Value) -> Self {
        Self(pod)
    }

    /// Checks that a patch can be made of it: what the shim touches has the kind that the API gives it.
    ///
    /// # Errors
    /// The first field of another kind.
    pub fn check(self) -> Result<(), PodError> {
        if !self.0.is_object() {
            return Err(PodError::NotAnObject);
        }
        // Every pod has these two: what is added goes into them.
        for path in ["/metadata", "/spec"] {
            if !self.at(path).is_some_and(Value::is_object) {
                return Err(PodError::WrongKind(path.to_owned(), "object"));
            }
        }
        for path in ["/metadata/annotations", "/metadata/labels"] {
            check_kind(self.at(path), path, "object")?;
        }
        check_kind(self.at("/spec/volumes"), "/spec/volumes", "array")?;
        for volume in
            self.volumes().enumerate().map(|(index, volume)| (format!("/spec/volumes/{index}"), volume))
        {
            check_kind(Some(volume.1), &volume.0, "object")?;
        }
        for list in LISTS {
            check_kind(self.at(&format!("/spec/{list}")), &format!("/spec/{list}"), "array")?;
        }
        for container in self.containers() {
            let path = container.path();
            if !container.raw.is_object() {
                return Err(PodError::WrongKind(path, "object"));
            }
            for list in ["env", "volumeMounts"] {
                let path = format!("{path}/{list}");
                check_kind(container.raw.get(list), &path, "array")?;
                for (index, item) in items(container.raw.get(list)).enumerate() {
                    check_kind(Some(item), &format!("{path}/{index}"), "object")?;
                }
            }
        }
        Ok(())
    }

    /// The name, or what the API server will make one of, with an ellipsis where its own part will be.
    pub fn shown_name(self) -> String {
        match (self.name(), self.text("/metadata/generateName")) {
            (Some(name), _) => wording::name(name),
            (None, Some(base)) => format!("{}…", wording::name(base)),
            (None, None) => "(unnamed)".to_owned(),
        }
    }

    /// The name; absent in a pod of a controller, whose name the API server makes.
    pub fn name(self) -> Option<&'a str> {
        self.text("/metadata/name").filter(|name| !name.is_empty())
    }

    /// Length of the name it has or will have.
    pub fn name_length(self) -> usize {
        // The API server cuts what it makes a name of at 58 characters and adds five.
        let generated = || self.text("/metadata/generateName").map_or(0, |base| base.len().min(58) + 5);
        self.name().map_or_else(generated, str::len)
    }

    /// The uid; absent before the API server has given it one.
    pub fn uid(self) -> Option<&'a str> {
        self.text("/metadata/uid").filter(|uid| !uid.is_empty())
    }

    pub fn namespace(self) -> Option<&'a str> {
        self.text("/metadata/namespace").filter(|namespace| !namespace.is_empty())
    }

    /// Its ServiceAccount; the API server's own admission has filled it in by now.
    pub fn service_account(self) -> &'a str {
        self.text("/spec/serviceAccountName")
            .or_else(|| self.text("/spec/serviceAccount"))
            .filter(|name| !name.is_empty())
            .unwrap_or("default")
    }

    pub fn annotation(self, key: &str) -> Option<&'a str> {
        self.annotations().and_then(|annotations| annotations.get(key)).and_then(Value::as_str)
    }

    /// All annotations, with values of any kind.
    pub fn annotations(self) -> Option<&'a Map<String, Value>> {
        self.at("/metadata/annotations").and_then(Value::as_object)
    }

    /// Length of all annotations' keys and values, as the API server limits it.
    pub fn annotations_length(self) -> usize {
        let length = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
        self.annotations().map_or(0, |annotations| annotations.iter().map(length).sum())
    }

    pub fn label(self, key: &str) -> Option<&'a str> {
        self.at("/metadata/labels").and_then(|labels| labels.get(key)).and_then(Value::as_str)
    }

    /// The kubelet's picture of a static pod, which may not refer to a token.
    pub fn is_mirror(self) -> bool {
        self.annotation("kubernetes.io/config.mirror").is_some()
    }

    pub fn is_on_host_network(self) -> bool {
        self.at("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or_default()
    }

    /// Init containers, native sidecars among them, and then the containers. Ephemeral containers come to a pod
    /// that runs already, and are never in a pod that is created.
    pub fn containers(self) -> impl Iterator<Item = ContainerView<'a>> {
        LISTS.into_iter().flat_map(move |list| {
            let raw = items(self.at("/spec").and_then(|spec| spec.get(list)));
            raw.enumerate().map(move |(index, raw)| ContainerView { list, index, raw })
        })
    }

    /// The raw volumes.
    pub fn volumes(self) -> impl Iterator<Item = &'a Value> {
        items(self.at("/spec/volumes"))
    }

    /// The first volume of this name, with its place.
    pub fn volume(self, name: &str) -> Option<(usize, &'a Value)> {
        self.volumes()
            .enumerate()
            .find(|(_, volume)| volume.get("name").and_then(Value::as_str) == Some(name))
    }

    /// What is at a JSON Pointer.
    pub fn at(self, pointer: &str) -> Option<&'a Value> {
        self.0.pointer(pointer)
    }

    fn text(self, pointer: &str) -> Option<&'a str> {
        self.at(pointer).and_then(Value::as_str)
    }
}

const LISTS: [&str; 2] = ["initContainers", "containers"];

impl<'a> ContainerView<'a> {
    pub fn name(self) -> &'a str {
        self.raw.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// Its place in the pod, as a JSON Pointer.
    pub fn path(self) -> String {
        format!("/spec/{}/{}", self.list, self.index)
    }

    /// What one of its fields holds.
    pub fn field(self, name: &str) -> Option<&'a Value> {
        self.raw.get(name)
    }

    pub fn variables(self) -> impl Iterator<Item = Variable<'a>> {
        items(self.raw.get("env")).enumerate().filter_map(|(index, raw)| {
            let name = raw.get("name").and_then(Value::as_str)?;
            let is_elsewhere = raw.get("valueFrom").is_some_and(|from| !from.is_null());
            // A variable without a value is empty.
            let value = raw.get("value").and_then(Value::as_str).unwrap_or_default();
            Some(Variable { index, name, value: (!is_elsewhere).then_some(value) })
        })
    }

    /// The variable of this name that counts: of several, the last.
    pub fn variable(self, name: &str) -> Option<Variable<'a>> {
        self.variables().filter(|variable| variable.name == name).last()
    }

    /// Whether it takes variables from a ConfigMap or Secret as a whole, which cannot be seen here.
    pub fn has_env_from(self) -> bool {
        items(self.raw.get("envFrom")).next().is_some()
    }

    pub fn mounts(self) -> impl Iterator<Item = Mount<'a>> {
        items(self.raw.get("volumeMounts")).enumerate().filter_map(|(index, raw)| {
            let text = |field| raw.get(field).and_then(Value::as_str).unwrap_or_default();
            Some(Mount {
                index,
                volume: raw.get("name").and_then(Value::as_str)?,
                path: text("mountPath"),
                has_sub_path: !text("subPath").is_empty() || !text("subPathExpr").is_empty(),
            })
        })
    }
}

/// The projected token in a raw volume, under the name `path`.
pub fn projected_token<'a>(volume: &'a Value, path: &str) -> Option<ProjectedToken<'a>> {
    let sources = volume.get("projected")?.get("sources");
    items(sources).find_map(|source| {
        let token = source.get("serviceAccountToken").filter(|token| !token.is_null())?;
        let found = token.get("path").and_then(Value::as_str).filter(|found| *found == path)?;
        Some(ProjectedToken {
            audience: token.get("audience").and_then(Value::as_str).filter(|audience| !audience.is_empty()),
            path: found,
            is_alone: items(sources).count() == 1,
        })
    })
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn check_kind(value: Option<&Value>, path: &str, kind: &'static str) -> Result<(), PodError> {
    let is_right = match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(_)) => kind == "object",
        Some(Value::Array(_)) => kind == "array",
        Some(_) => false,
    };
    if is_right { Ok(()) } else { Err(PodError::WrongKind(path.to_owned(), kind)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_of_another_kind_is_told_by_its_place() {
        for (pod, place) in [
            (json!({"spec": {"containers": {}}}), "/spec/containers"),
            (json!({"spec": {"containers": ["x"]}}), "/spec/containers/0"),
            (json!({"spec": {"initContainers": [{}, {"env": {}}]}}), "/spec/initContainers/1/env"),
            (json!({"spec": {"containers": [{"env": [1]}]}}), "/spec/containers/0/env/0"),
            (json!({"spec": {"containers": [{"volumeMounts": ["m"]}]}}), "/spec/containers/0/volumeMounts/0"),
            (json!({"spec": {"volumes": "none"}}), "/spec/volumes"),
            (json!({"spec": {"volumes": [7]}}), "/spec/volumes/0"),
            (json!({"metadata": []}), "/metadata"),
            (json!({"metadata": null}), "/metadata"),
            (json!({"spec": null}), "/spec"),
            (json!({"metadata": {"annotations": "a"}}), "/metadata/annotations"),
        ] {
            let mut whole = json!({"metadata": {}, "spec": {}});
            whole.as_object_mut().unwrap().extend(pod.as_object().unwrap().clone());
            match PodView::new(&whole).check() {
                Err(PodError::WrongKind(path, _)) => assert_eq!(path, place),
                other => panic!("{pod}: {other:?}"),
            }
        }
        assert_eq!(PodView::new(&json!([])).check(), Err(PodError::NotAnObject));
        assert_eq!(PodView::new(&json!({"metadata": {}, "spec": {"containers": null}})).check(), Ok(()));
    }

    #[test]
    fn a_generated_name_has_the_length_that_the_api_server_will_give_it() {
        let length = |metadata: Value| PodView::new(&json!({"metadata": metadata})).name_length();
        assert_eq!(length(json!({"name": "orders-0", "generateName": "orders-"})), 8);
        assert_eq!(length(json!({"name": null, "generateName": "orders-"})), 12);
        assert_eq!(length(json!({"generateName": "o".repeat(80)})), 63);
    }

    #[test]
    fn of_two_variables_with_one_name_the_last_counts() {
        let pod = json!({"spec": {"containers": [{"env": [
            {"name": "A", "value": "1"}, {"name": "A", "valueFrom": {"fieldRef": {}}}, {"name": "B"},
        ]}]}});
        let container = PodView::new(&pod).containers().next().unwrap();
        assert_eq!(container.variable("A"), Some(Variable { index: 1, name: "A", value: None }));
        assert_eq!(container.variable("B"), Some(Variable { index: 2, name: "B", value: Some("") }));
        assert_eq!(container.variable("C"), None);
    }
}
