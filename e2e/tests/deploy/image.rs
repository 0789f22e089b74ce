//! The images, run with the rights that the manifests give their containers.
//!
//! Needs root: that is what may start a container without the help of a service.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::container::{Container, Image, Images, Mount};
use crate::manifests::{REGION, helm, kustomize, text, text_of};
use rcgen::generate_simple_self_signed;
use rolecall_e2e::{Process, Scratch};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE and CAP_NET_ADMIN, as the kernel writes them.
const THREE: &str = "0000000000001404";

/// The same and CAP_NET_RAW.
const FOUR: &str = "0000000000003404";

/// A node to run containers on: a network namespace with a loopback interface, and what the node keeps in files.
struct Node {
    scratch: Scratch,
    network: Process,
}

impl Node {
    fn new() -> Self {
        let scratch = Scratch::new("node").unwrap();
        let authority = generate_simple_self_signed(["kubernetes.test".to_owned()]).unwrap().cert.pem();
        for folder in ["pods", "account", "run", "handover"] {
            std::fs::create_dir(scratch.path().join(folder)).unwrap();
        }
        for (file, content) in
            [("token", "a token"), ("namespace", "rolecall"), ("ca.crt", authority.as_str())]
        {
            std::fs::write(scratch.path().join("account").join(file), content).unwrap();
        }
        std::fs::write(scratch.path().join("xtables.lock"), "").unwrap();
        let mut command = Process::command("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]);
        let network = Process::spawn_with_stdout("network", command, scratch.path()).unwrap();
        Self { scratch, network }
    }

    async fn is_up(&self) {
        self.network
            .wait_until_ready(LIMIT, async || self.network.stdout().unwrap() == "up\n")
            .await
            .unwrap();
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.network.id()).into()
    }

    /// Runs a program of this system in the node's network.
    fn on_network(&self, command: &[&str]) -> String {
        let path = std::env::join_paths(["/usr/sbin", "/usr/bin", "/sbin", "/bin"]).unwrap();
        let mut nsenter = Command::new("nsenter");
        nsenter.env("PATH", path).arg(format!("--net={}", self.namespace().display())).args(command);
        text(nsenter.output().unwrap())
    }

    /// Starts the first container of a list in a rendered object's pods.
    fn start(&self, images: &Images, image: &Image, object: &Value, list: &str) -> Container {
        let pod = &object["spec"]["template"]["spec"];
        let container = &pod[list][0];
        let path = |name: &str| self.scratch.path().join(name);
        let (pods, account, lock) = (path("pods"), path("account"), path("xtables.lock"));
        let (run, handover) = (path("run"), path("handover"));
        let mut mounts = vec![Mount {
            source: &account,
            target: "/var/run/secrets/kubernetes.io/serviceaccount",
            read_only: true,
        }];
        for mount in container["volumeMounts"].as_array().unwrap() {
            let source: &Path = match text_of(&mount["name"]) {
                "pods" => &pods,
                "run" => &run,
                "handover" => &handover,
                "xtables-lock" => &lock,
                other => panic!("the test knows no volume {other}"),
            };
            let read_only = mount["readOnly"].as_bool().unwrap_or(false);
            mounts.push(Mount { source, target: text_of(&mount["mountPath"]), read_only });
        }
        // Nobody answers there; neither program needs the API server in order to start.
        let environment = [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", "1"),
            ("ROLECALL_NODE_NAME", "node-1"),
        ];
        images.run(image, (pod, container), &self.namespace(), &mounts, &environment)
    }
}

#[tokio::test]
async fn the_images_run_with_the_rights_of_the_manifests() {
    if !nix::unistd::geteuid().is_root() {
        #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
        {
            eprintln!("skipped: only root may start containers");
        }
        return;
    }
    let images = Images::build();
    let (daemon, shim) = (images.unpack("rolecall-daemon"), images.unpack("rolecall-shim"));
    say_what_they_are(&daemon, "rolecall-daemon");
    say_what_they_are(&shim, "rolecall-shim");
    // Built for debugging, but without symbols.
    assert!(daemon.bytes < 100 << 20 && shim.bytes < 100 << 20, "{} and {} bytes", daemon.bytes, shim.bytes);

    for (firewall, capabilities) in [("nftables", THREE), ("iptables", THREE), ("iptables-legacy", FOUR)] {
        the_daemon_serves_and_is_cleaned_up_after(&images, &daemon, firewall, capabilities).await;
    }
    the_shim_serves(&images, &shim).await;
    the_shim_stands_in_for_the_eks_webhook(&images, &shim).await;
}

fn say_what_they_are(image: &Image, name: &str) {
    let version = env!("CARGO_PKG_VERSION");
    assert!(image.tags.contains(&format!("docker.io/library/{name}:{version}")), "{:?}", image.tags);
    let labels = &image.config["Labels"];
    assert_eq!(labels["org.opencontainers.image.title"], json!(name));
    assert_eq!(labels["org.opencontainers.image.version"], json!(version));
    let user = text_of(&image.config["User"]);
    assert!(user.split(':').all(|part| part.parse::<u32>().is_ok()), "the kubelet cannot judge {user}");
    assert!(image.root.join("etc/ssl/certs/ca-certificates.crt").exists());
}

/// It starts, which it does not without its rules and addresses in force; what it leaves is gone after a cleanup.
async fn the_daemon_serves_and_is_cleaned_up_after(
    images: &Images,
    image: &Image,
    firewall: &str,
    capabilities: &str,
) {
    let node = Node::new();
    node.is_up().await;
    let value = format!("daemon.metadataFirewall={firewall}");
    let rendered = helm(&[REGION, &value]).remove("DaemonSet rolecall-daemon").unwrap();
    let daemon = node.start(images, image, &rendered, "containers");
    let listens =
        async || node.on_network(&["ss", "-Hltn", "sport", "=", "80"]).contains("169.254.170.23:80");
    daemon.process.wait_until_ready(LIMIT, listens).await.unwrap();

    let live = daemon.exec(&["rolecall-daemon", "probe", "live"]);
    assert!(live.status.success(), "{live:?}");
    assert_eq!(daemon.status("CapEff"), capabilities, "{firewall}");
    assert_eq!(daemon.status("CapBnd"), capabilities, "{firewall}");
    assert_eq!(daemon.status("NoNewPrivs"), "1");
    let rules = |container: &Container| match firewall {
        "nftables" => text(container.exec(&["nft", "list", "ruleset"])),
        "iptables" => text(container.exec(&["iptables-save"])),
        _ => text(container.exec(&["iptables-legacy-save"])),
    };
    assert!(rules(&daemon).contains("169.254.169.254"), "{}", rules(&daemon));
    assert!(node.on_network(&["ip", "address", "show", "lo"]).contains("169.254.170.23/32"));

    daemon.signal("TERM");
    assert!(daemon.process.exit(LIMIT).await.unwrap().success(), "{}", daemon.process.logs());
    drop(daemon);

    let cleaning = kustomize("cleanup").remove("DaemonSet rolecall-daemon").unwrap();
    let cleanup = node.start(images, image, &cleaning, "initContainers");
    assert!(cleanup.process.exit(LIMIT).await.unwrap().success(), "{}", cleanup.process.logs());
    assert!(cleanup.process.logs().contains("removed 169.254.170.23"), "{}", cleanup.process.logs());
    drop(cleanup);
    let waiting = node.start(images, image, &cleaning, "containers");
    let nothing = async || waiting.process.logs().contains("nothing to remove");
    waiting.process.wait_until_ready(LIMIT, nothing).await.unwrap();
    assert!(!rules(&waiting).contains("169.254.169.254"), "{}", rules(&waiting));
    assert!(!node.on_network(&["ip", "address", "show", "lo"]).contains("169.254.170.23"));
    waiting.signal("TERM");
    assert!(waiting.process.exit(LIMIT).await.unwrap().success(), "{}", waiting.process.logs());
}

async fn the_shim_serves(images: &Images, image: &Image) {
    let node = Node::new();
    node.is_up().await;
    // As an emptyDir without fsGroup: everybody may write there.
    let run = node.scratch.path().join("run");
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let rendered = helm(&[REGION]).remove("Deployment rolecall-shim").unwrap();
    let shim = node.start(images, image, &rendered, "containers");
    let live = async || shim.exec(&["rolecall-shim", "probe", "live"]).status.success();
    shim.process.wait_until_ready(LIMIT, live).await.unwrap();
    assert_eq!(shim.status("CapBnd"), "0000000000000000");
    assert_eq!(shim.status("Uid"), "65532\t65532\t65532\t65532");
    let ready = shim.exec(&["rolecall-shim", "probe", "ready"]);
    assert_eq!(ready.status.code(), Some(1), "without an API server it knows no ServiceAccounts");
}

/// Its manifest names the program by the path that it has there, mounts nothing but a certificate, and restricts
/// nothing.
async fn the_shim_stands_in_for_the_eks_webhook(images: &Images, image: &Image) {
    let node = Node::new();
    node.is_up().await;
    let mut rendered = helm(&[REGION]).remove("Deployment rolecall-shim").unwrap();
    let container = &mut rendered["spec"]["template"]["spec"]["containers"][0];
    // In a network namespace that nobody has configured, root alone may have its own port.
    container["command"] = json!(["/webhook", "--in-cluster=false", "--namespace=default", "--port=8443"]);
    container["args"] = json!([]);
    container["volumeMounts"] = json!([]);
    container["securityContext"] = json!({"allowPrivilegeEscalation": true, "readOnlyRootFilesystem": false});
    let webhook = node.start(images, image, &rendered, "containers");
    let live = async || webhook.exec(&["rolecall-shim", "probe", "live"]).status.success();
    webhook.process.wait_until_ready(LIMIT, live).await.unwrap();
}
