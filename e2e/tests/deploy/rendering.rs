//! The manifests as text: Helm's and kustomize's are the same, and say what the programs understand.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::manifests::{
    COMPONENTS, Objects, REGION, containers, deploy, helm, helm_template, kustomize, kustomize_with, strings,
    text_of, with_sorted_flags, without_customs_of_helm,
};
use rolecall_e2e::binary;
use serde_json::{Value, json};

/// Each option as kustomize's components have it, and as Helm's values do.
const OPTIONS: [(&[&str], &[&str]); 9] = [
    (&[], &[]),
    (&["startup-taint"], &["startupTaint=rolecall.dev/agent-not-ready"]),
    (&["iptables-legacy"], &["daemon.metadataFirewall=iptables-legacy"]),
    (&["cert-manager"], &["shim.certificate=cert-manager"]),
    (&["metrics-service"], &["metrics.service=true"]),
    (&["pod-monitor"], &["metrics.podMonitor=true"]),
    (&["alerts"], &["metrics.alerts=true"]),
    (&["metrics-service", "pod-monitor"], &["metrics.service=true", "metrics.podMonitor=true"]),
    (
        &COMPONENTS,
        &[
            "startupTaint=rolecall.dev/agent-not-ready",
            "daemon.metadataFirewall=iptables-legacy",
            "shim.certificate=cert-manager",
            "metrics.service=true",
            "metrics.podMonitor=true",
            "metrics.alerts=true",
        ],
    ),
];

fn values<'a>(more: &[&'a str]) -> Vec<&'a str> {
    std::iter::once(REGION).chain(more.iter().copied()).collect()
}

#[test]
fn helm_and_kustomize_install_the_same() {
    for (components, more) in OPTIONS {
        let mut expected = with_sorted_flags(kustomize_with(components));
        // Helm keeps its own records in the namespace, so that has to be there before.
        expected.remove("Namespace rolecall").unwrap();
        let found = without_customs_of_helm(helm(&values(more)));
        let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{components:?}");
        for (name, object) in &expected {
            assert_eq!(&found[name], object, "{name} with {components:?}");
        }
    }
}

#[test]
fn helm_and_kustomize_clean_up_the_same() {
    let mut found = without_customs_of_helm(helm(&["cleanup=true"]));
    // With kustomize it is still there from the installation.
    found.remove("ServiceAccount rolecall-daemon").unwrap();
    assert_eq!(found, kustomize("cleanup"));
}

#[test]
fn rights_come_with_the_option_that_needs_them_alone() {
    let rules = |objects: &Objects, name: &str| -> Vec<String> {
        let rules = objects.get(name).and_then(|role| role["rules"].as_array());
        rules
            .into_iter()
            .flatten()
            .map(|rule| {
                format!("{} {}", strings(&rule["resources"]).join(","), strings(&rule["verbs"]).join(","))
            })
            .collect()
    };
    let plain = helm(&values(&[]));
    assert_eq!(rules(&plain, "ClusterRole rolecall-daemon"), ["pods list,watch", "events create"]);
    let tainted = helm(&values(&["startupTaint=rolecall.dev/agent-not-ready"]));
    assert_eq!(rules(&tainted, "ClusterRole rolecall-daemon")[2..], ["nodes get,patch"]);

    let foreign = helm(&values(&["shim.certificate=cert-manager", "shim.watchConfigMap=false"]));
    assert!(rules(&plain, "Role rolecall-shim").contains(&"secrets create".to_owned()));
    assert!(!foreign.contains_key("Role rolecall-shim"), "there is nothing left in it");
    for (objects, verbs) in [(&plain, "get,list,watch,patch"), (&foreign, "get")] {
        let rules = rules(objects, "ClusterRole rolecall-shim");
        let webhooks = rules.iter().filter(|rule| rule.starts_with("mutatingwebhookconfigurations "));
        assert_eq!(webhooks.collect::<Vec<_>>(), [&format!("mutatingwebhookconfigurations {verbs}")]);
    }
}

#[test]
fn each_capability_is_there_for_a_reason() {
    let added = |objects: &Objects| -> Vec<String> {
        let container = objects["DaemonSet rolecall-daemon"].pointer("/spec/template/spec/containers/0");
        let capabilities = &container.unwrap()["securityContext"]["capabilities"];
        assert_eq!(capabilities["drop"], json!(["ALL"]));
        strings(&capabilities["add"]).into_iter().map(str::to_owned).collect()
    };
    let three = ["NET_ADMIN", "NET_BIND_SERVICE", "DAC_READ_SEARCH"];
    assert_eq!(added(&helm(&values(&[]))), three);
    assert_eq!(added(&helm(&values(&["daemon.metadataFirewall=iptables"]))), three);
    let legacy = added(&helm(&values(&["daemon.metadataFirewall=iptables-legacy"])));
    assert_eq!(legacy, [&three[..], &["NET_RAW"]].concat());
    assert_eq!(added(&helm(&["cleanup=true"])), ["NET_ADMIN", "NET_RAW"]);
}

#[test]
fn two_daemons_fit_on_a_node_while_one_follows_the_other() {
    let daemon_set = kustomize("example").remove("DaemonSet rolecall-daemon").unwrap();
    let update = &daemon_set["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(update, &json!({"maxSurge": 1, "maxUnavailable": 0}));
    let container = daemon_set.pointer("/spec/template/spec/containers/0").unwrap();
    assert!(container.get("ports").is_none(), "two pods of one node cannot have the same port");
    for probe in ["readinessProbe", "livenessProbe"] {
        assert!(container[probe]["exec"].is_object(), "by HTTP the daemon before would answer");
    }
}

#[test]
fn as_many_nodes_as_the_operator_says_get_the_next_daemon_at_a_time() {
    for (value, expect) in [("daemon.maxSurge=3", json!(3)), ("daemon.maxSurge=10%", json!("10%"))] {
        let daemon_set = helm(&values(&[value])).remove("DaemonSet rolecall-daemon").unwrap();
        let update = &daemon_set["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!(update, &json!({"maxSurge": expect, "maxUnavailable": 0}));
    }
}

#[test]
fn the_region_is_told_to_both_programs() {
    let told = |objects: &Objects| {
        let is_told = |container: &&Value| strings(&container["args"]).contains(&"--region=eu-central-1");
        containers(objects).filter(is_told).count()
    };
    assert_eq!(told(&helm(&values(&[]))), 2);
    assert_eq!(told(&kustomize("example")), 2);
    assert_eq!(told(&helm(&["daemon.stsEndpoint=https://sts.example.com"])), 0);
    // The last one counts.
    let own = helm(&values(&["shim.args={--region=us-west-2}"]));
    let container = own["Deployment rolecall-shim"].pointer("/spec/template/spec/containers/0").unwrap();
    assert_eq!(strings(&container["args"]).last(), Some(&"--region=us-west-2"));
}

#[test]
fn the_schema_says_what_is_wrong() {
    for (more, parts) in [
        (&["region=Frankfurt"][..], &["region", "pattern"][..]),
        (&["regoin=eu-central-1"], &["regoin", "not allowed"]),
        (&[REGION, "image.prefix=registry.example.com"], &["/image/prefix", "pattern"]),
        (&[REGION, "daemon.metadataFirewall=none"], &["/daemon/metadataFirewall", "nftables"]),
        (&[REGION, "daemon.metadataExempt={kube-system}"], &["/daemon/metadataExempt/0", "pattern"]),
        (&[REGION, "daemon.args={region}"], &["/daemon/args/0", "pattern"]),
        (&[REGION, "daemon.replicas=3"], &["/daemon", "replicas"]),
        (&[REGION, "daemon.maxSurge=0"], &["/daemon/maxSurge", "1"]),
        (&[REGION, "daemon.maxSurge=0%"], &["/daemon/maxSurge", "pattern"]),
        (&[REGION, "shim.replicas=0"], &["/shim/replicas", "1"]),
        (&[REGION, "shim.certificate=files"], &["/shim/certificate", "cert-manager"]),
        (&[REGION, "shim.failurePolicy=ignore"], &["/shim/failurePolicy", "Ignore"]),
        (&[REGION, "startupTaint=not a taint"], &["/startupTaint", "pattern"]),
        (&[REGION, "metrics.service=yes"], &["/metrics/service", "boolean"]),
        (&[], &["region"]),
    ] {
        let output = helm_template(more);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{more:?} was accepted");
        assert!(parts.iter().all(|part| message.contains(part)), "{more:?}: {message}");
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let read = |file: &str| std::fs::read_to_string(deploy("helm/rolecall").join(file)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let sections = &schema["properties"];
    let mut known = keys(sections);
    // Helm gives it to every chart.
    known.remove("global");
    assert_eq!(known, keys(&values));
    for (section, its_values) in values.as_object().unwrap() {
        if let Some(properties) = sections[section].get("properties") {
            assert_eq!(keys(properties), keys(its_values), "{section}");
        }
    }
}

#[test]
fn the_programs_understand_every_flag_of_the_manifests() {
    let many = [
        "daemon.stsEndpoint=https://sts.example.com",
        "daemon.metadataExempt={kube-system/aws-*,monitoring/agent}",
        "daemon.args={--session-duration=2h}",
        "shim.args={--default-mode=irsa,--region=us-west-2}",
    ];
    let mut renderings: Vec<_> = OPTIONS.iter().map(|(_, more)| helm(&values(more))).collect();
    renderings.push(helm(&values(&many)));
    renderings.push(helm(&values(&["daemon.metadataFirewall=off"])));
    renderings.push(kustomize("cleanup"));
    for container in renderings.iter().flat_map(containers) {
        let name = text_of(&container["image"]).split(':').next().unwrap();
        let args = strings(&container["args"]);
        // What is no flag is a command, whose help is shown only once all before it is understood.
        let ask =
            if args.first().is_some_and(|arg| !arg.starts_with("--")) { "--help" } else { "--check-config" };
        let environment = container["env"].as_array().into_iter().flatten();
        let environment: BTreeMap<_, _> = environment
            .map(|variable| (text_of(&variable["name"]), variable["value"].as_str().unwrap_or("node-1")))
            .collect();
        let mut command = Command::new(binary(name).unwrap());
        let output = command.env_clear().envs(environment).args(&args).arg(ask).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {args:?}: {message}");
    }
}

#[test]
fn the_programs_understand_the_probes() {
    for container in containers(&helm(&values(&[]))) {
        for probe in ["readinessProbe", "livenessProbe"] {
            let command = strings(&container[probe]["exec"]["command"]);
            let mut program = Command::new(binary(command[0]).unwrap());
            let output =
                program.args(&command[1..]).args(["--admin-socket", "/nonexistent"]).output().unwrap();
            // Nobody answers; 64 would mean that the question is not understood.
            assert_eq!(output.status.code(), Some(1), "{command:?}");
        }
    }
}

#[test]
fn the_versions_are_the_workspaces() {
    let version = env!("CARGO_PKG_VERSION");
    for objects in [helm(&values(&[])), kustomize("default"), kustomize("example"), kustomize("cleanup")] {
        for container in containers(&objects) {
            let (_, tag) = text_of(&container["image"]).rsplit_once(':').unwrap();
            assert_eq!(tag, version);
        }
    }
}
