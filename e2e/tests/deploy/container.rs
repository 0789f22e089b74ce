//! An image as `make image` leaves it, and a container of it with the rights that a manifest gives.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rolecall_e2e::{Process, Scratch, binary};
use serde_json::{Value, json};

/// What runc keeps of its containers; its own for each test process.
pub(crate) struct Images {
    scratch: Scratch,
}

/// The files and the settings of one image.
pub(crate) struct Image {
    pub(crate) root: PathBuf,
    /// `config` of the image's own description: user, entrypoint, labels, environment.
    pub(crate) config: Value,
    pub(crate) tags: Vec<String>,
    pub(crate) bytes: u64,
}

/// A running container. Dropping it kills it, and so does the end of the test process.
pub(crate) struct Container {
    pub(crate) process: Process,
    id: String,
    state: PathBuf,
    janitor: Child,
    _bundle: Scratch,
}

/// Where a container sees something of the test's.
pub(crate) struct Mount<'a> {
    pub(crate) source: &'a Path,
    pub(crate) target: &'a str,
    pub(crate) read_only: bool,
}

impl Images {
    /// Builds both, from the programs as they are built for tests.
    pub(crate) fn build() -> Self {
        let scratch = Scratch::new("image").unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/image/build");
        let output = Command::new(script)
            .arg(scratch.path())
            .env("DAEMON", binary("rolecall-daemon").unwrap())
            .env("SHIM", binary("rolecall-shim").unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { scratch }
    }

    /// Unpacks an image.
    pub(crate) fn unpack(&self, name: &str) -> Image {
        let archive = self.scratch.path().join(format!("{name}.tar"));
        let bytes = std::fs::metadata(&archive).unwrap().len();
        let (parts, root) =
            (self.scratch.path().join(format!("{name}.parts")), self.scratch.path().join(name));
        untar(&archive, &parts);
        let read = |file: &str| -> Value {
            serde_json::from_slice(&std::fs::read(parts.join(file)).unwrap()).unwrap()
        };
        let manifest = read("manifest.json")[0].take();
        for layer in manifest["Layers"].as_array().unwrap() {
            untar(&parts.join(layer.as_str().unwrap()), &root);
        }
        let tags = manifest["RepoTags"].as_array().unwrap().iter();
        Image {
            root,
            config: read(manifest["Config"].as_str().unwrap())["config"].take(),
            tags: tags.map(|tag| tag.as_str().unwrap().to_owned()).collect(),
            bytes,
        }
    }

    /// Starts a container as the kubelet would make it of `pod` and its first container `container`, in the network
    /// namespace at `network`, with folders of the test's in place of the volumes.
    pub(crate) fn run(
        &self,
        image: &Image,
        (pod, container): (&Value, &Value),
        network: &Path,
        mounts: &[Mount],
        environment: &[(&str, &str)],
    ) -> Container {
        let bundle = Scratch::new("bundle").unwrap();
        let description = describe(image, (pod, container), network, mounts, environment);
        std::fs::write(bundle.path().join("config.json"), description.to_string()).unwrap();
        let id = bundle.path().file_name().unwrap().to_str().unwrap().to_owned();
        let state = self.scratch.path().join("runc");
        let mut janitor = Command::new("sh");
        janitor.args(["-c", r#"cat >/dev/null; runc --root "$1" delete --force "$2""#, "sh"]);
        janitor.arg(&state).arg(&id);
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut command = Process::command("runc");
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(bundle.path()).arg(&id);
        let process = Process::spawn(&id, command, self.scratch.path()).unwrap();
        Container { process, id, state, janitor: janitor.spawn().unwrap(), _bundle: bundle }
    }
}

impl Container {
    /// Runs a program of the image in the container.
    pub(crate) fn exec(&self, command: &[&str]) -> Output {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&self.state).args(["exec", &self.id]).args(command).output().unwrap()
    }

    /// Sends a signal to the container's first process.
    pub(crate) fn signal(&self, name: &str) {
        let mut runc = Command::new("runc");
        assert!(
            runc.arg("--root").arg(&self.state).args(["kill", &self.id, name]).status().unwrap().success()
        );
    }

    /// What the kernel says of the container's first process, by its line's name.
    pub(crate) fn status(&self, line: &str) -> String {
        let state =
            Command::new("runc").arg("--root").arg(&self.state).args(["state", &self.id]).output().unwrap();
        let state: Value = serde_json::from_slice(&state.stdout).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", state["pid"])).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap().trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Closes its input, the sign to delete the container.
        let _ = self.janitor.wait();
    }
}

/// A container by the rules of the OCI runtime specification.
fn describe(
    image: &Image,
    (pod, container): (&Value, &Value),
    network: &Path,
    mounts: &[Mount],
    environment: &[(&str, &str)],
) -> Value {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let context = &container["securityContext"];
    let capabilities: Vec<String> =
        strings(&context["capabilities"]["add"]).iter().map(|name| format!("CAP_{name}")).collect();
    let user = context["runAsUser"].as_u64().or(pod["securityContext"]["runAsUser"].as_u64()).unwrap();
    // For another user than root, an exec takes all that is not ambient.
    let effective = if user == 0 { capabilities.clone() } else { Vec::new() };
    let command =
        container["command"].as_array().map_or(&image.config["Entrypoint"], |_| &container["command"]);
    let args = [strings(command), strings(&container["args"])].concat();
    let mut variables = strings(&image.config["Env"]);
    variables.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    let mut all_mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
    ];
    all_mounts.extend(mounts.iter().map(|mount| {
        let options = if mount.read_only { ["rbind", "ro"] } else { ["rbind", "rw"] };
        json!({"destination": mount.target, "type": "bind", "source": mount.source, "options": options})
    }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "cwd": "/",
            "user": {"uid": user, "gid": pod["securityContext"]["runAsGroup"].as_u64().unwrap_or(0)},
            "args": args,
            "env": variables,
            "noNewPrivileges": !context["allowPrivilegeEscalation"].as_bool().unwrap(),
            "capabilities": {"bounding": capabilities, "permitted": effective, "effective": effective},
        },
        "root": {"path": image.root, "readonly": context["readOnlyRootFilesystem"]},
        "mounts": all_mounts,
        "linux": {
            "cgroupsPath": format!("/{}", image.root.parent().unwrap().file_name().unwrap().display()),
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network", "path": network},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn untar(archive: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder).status().unwrap();
    assert!(status.success(), "{}", archive.display());
}
