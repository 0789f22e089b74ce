//! What kustomize and Helm make of `deploy/`, as objects that can be compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rolecall_e2e::{Scratch, tool};
use serde_json::{Value, json};

/// Objects by kind and name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// The namespace that all of kustomize's manifests name.
pub(crate) const NAMESPACE: &str = "rolecall";

/// What Helm needs to be told at least; `kustomize/example` says the same.
pub(crate) const REGION: &str = "region=eu-central-1";

/// Every component that the example has.
pub(crate) const COMPONENTS: [&str; 6] =
    ["startup-taint", "iptables-legacy", "cert-manager", "metrics-service", "pod-monitor", "alerts"];

/// Labels that are Helm's custom, and the value each has to have.
const OF_HELM: [(&str, &str); 3] = [
    ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
    ("app.kubernetes.io/managed-by", "Helm"),
    ("helm.sh/chart", concat!("rolecall-", env!("CARGO_PKG_VERSION"))),
];

pub(crate) fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// The objects of `deploy/kustomize/<folder>`.
pub(crate) fn kustomize(folder: &str) -> Objects {
    objects(&kustomize_text(&deploy("kustomize").join(folder)))
}

/// The objects of the example with the components that it has as comments, by name.
pub(crate) fn kustomize_with(components: &[&str]) -> Objects {
    let (_copy, example) = kustomize_copy(components);
    objects(&kustomize_text(&example))
}

/// A copy of the manifests, and the folder of the example in it with these components.
pub(crate) fn kustomize_copy(components: &[&str]) -> (Scratch, PathBuf) {
    let scratch = Scratch::new("kustomize").unwrap();
    copy(&deploy("kustomize"), scratch.path());
    let file = scratch.path().join("example/kustomization.yaml");
    let mut text = std::fs::read_to_string(&file).unwrap().replacen("# components:", "components:", 1);
    for component in components {
        let comment = format!("# - ../components/{component} ");
        assert!(text.contains(&comment), "the example does not tell of {component}");
        text = text.replace(&comment, &comment[2..]);
    }
    std::fs::write(&file, text).unwrap();
    let example = scratch.path().join("example");
    (scratch, example)
}

pub(crate) fn kustomize_text(folder: &Path) -> String {
    text(Command::new(tool("kustomize").unwrap()).arg("build").arg(folder).output().unwrap())
}

/// The objects of the chart with the given `--set` values.
pub(crate) fn helm(values: &[&str]) -> Objects {
    objects(&text(helm_template(values)))
}

/// Renders the chart as an installation of it would.
pub(crate) fn helm_template(values: &[&str]) -> Output {
    let mut command = helm_command();
    command.args(["template", "rolecall"]).arg(deploy("helm/rolecall")).args(["--namespace", NAMESPACE]);
    for value in values {
        command.args(["--set", value]);
    }
    command.output().unwrap()
}

/// Helm as if nobody had configured it.
pub(crate) fn helm_command() -> Command {
    let mut command = Command::new(tool("helm").unwrap());
    command.env_clear().env("HOME", "/nonexistent");
    command
}

/// The same objects without what only Helm has, which has to be right, and with flags in one order.
pub(crate) fn without_customs_of_helm(mut objects: Objects) -> Objects {
    for (name, object) in &mut objects {
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        for (label, value) in OF_HELM {
            assert_eq!(labels.remove(label), Some(json!(value)), "{label} of {name}");
        }
    }
    with_sorted_flags(objects)
}

/// The order of different flags means nothing.
pub(crate) fn with_sorted_flags(mut objects: Objects) -> Objects {
    for object in objects.values_mut() {
        let containers = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(args) = container["args"].as_array_mut()
                && args.iter().all(|arg| text_of(arg).starts_with("--"))
            {
                args.sort_by(|a, b| text_of(a).cmp(text_of(b)));
            }
        }
    }
    objects
}

/// The containers of every pod that `objects` make, init containers included.
pub(crate) fn containers(objects: &Objects) -> impl Iterator<Item = &Value> {
    let specs = objects.values().filter_map(|object| object.pointer("/spec/template/spec"));
    specs.flat_map(|spec| {
        ["initContainers", "containers"].into_iter().filter_map(|list| spec[list].as_array()).flatten()
    })
}

/// A list of strings; absent is empty.
pub(crate) fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(text_of).collect()
}

pub(crate) fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

pub(crate) fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn objects(text: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let mut objects = Objects::new();
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        let name = format!("{} {}", text_of(&document["kind"]), text_of(&document["metadata"]["name"]));
        assert!(objects.insert(name.clone(), document).is_none(), "{name} is there twice");
    }
    objects
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-R").arg(from.join(".")).arg(to).status().unwrap();
    assert!(status.success());
}
