//! What the programs of a node are told.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::cluster::underlay::Addresses;
use crate::control_plane::Component;
use crate::tools;

/// containerd's configuration, in TOML.
pub(super) fn containerd(folder: &Path, pause: &str) -> Result<String> {
    let networks = folder.join("cni");
    let networks = networks.display();
    let plugins = tools::path("cni")?;
    let plugins = plugins.display();
    Ok(format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# They write outside of a node's own folders, and nothing here uses them.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  # Where it may not lower the score, as in many a virtual machine, runc would die of it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{networks}"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    ))
}

/// The kubelet's configuration.
pub(super) fn kubelet(addresses: Addresses, cgroup: &str, component: &Component, ca: &Path) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": addresses.node(),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": component.certificate,
        "tlsPrivateKeyFile": component.key,
        "containerRuntimeEndpoint": format!("unix://{}", super::CONTAINERD_SOCKET),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "nodeStatusUpdateFrequency": "1s",
        "maxPods": 250,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "resolvConf": "/run/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    })
    .to_string()
}

/// kube-proxy's configuration. What is zero would otherwise be set for the whole machine.
pub(super) fn kube_proxy(name: &str, addresses: Addresses, component: &Component) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": component.kubeconfig},
        "mode": "iptables",
        "hostnameOverride": name,
        "oomScoreAdj": 0,
        "bindAddress": addresses.node(),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": addresses.pods(),
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
    .to_string()
}

/// The network of the pods: a bridge, routed and not translated.
pub(super) fn network(addresses: Addresses) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "isDefaultGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": addresses.pods()}], [{"subnet": addresses.pods6()}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
    .to_string()
}
