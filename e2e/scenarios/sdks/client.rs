//! The clients: what each one is, and the pod that it runs in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rolecall_e2e::cluster::{Image, image_root};
use rolecall_e2e::sdk::Answer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::program::{Program, Uri, outermost, probe};

/// An image without any content of its own: pods of it use this machine's programs.
const MACHINE: &str = "localhost/machine:1";

/// An SDK, or a program with one in it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its pod, ServiceAccount and role.
    pub(crate) name: &'static str,
    /// What people call it.
    pub(crate) title: &'static str,
    /// What it is told where to ask.
    pub(crate) uri: Uri,
    /// Whether it keeps credentials between calls, so that there is something to renew.
    pub(crate) keeps_credentials: bool,
    program: Program,
}

static CLIENTS: [Client; 23] = [
    client("boto3", "Python, boto3", Program::Boto3),
    client("boto3-old", "Python, an old boto3", Program::OldBoto3),
    client("aiobotocore", "Python, aiobotocore", Program::Aiobotocore),
    client("aws-cli-v1", "AWS CLI v1", Program::AwsCli),
    client("aws-cli-v1-old", "AWS CLI v1, an old one", Program::OldAwsCli),
    client("aws-cli-v2", "AWS CLI v2", Program::DebianAwsCli),
    client("js-v3", "JavaScript v3", Program::JavaScript),
    client("js-v3-old", "JavaScript v3, an old one", Program::OldJavaScript),
    client("js-v2", "JavaScript v2", Program::JavaScriptV2),
    client("go-v2", "Go v2", Program::Go),
    client("go-v2-old", "Go v2, an old one", Program::OldGo),
    client("go-v1", "Go v1", Program::GoV1),
    client("go-v1-old", "Go v1, an old one", Program::OldGoV1),
    client("java-v2", "Java v2", Program::Java),
    client("java-v2-old", "Java v2, an old one", Program::OldJava),
    client("java-v1", "Java v1", Program::JavaV1),
    client("kotlin", "Kotlin", Program::Kotlin),
    client("rust", "Rust, aws-config", Program::Rust),
    client("object-store", "Rust, object_store", Program::ObjectStore),
    client("cpp", "C++, in Apache Arrow", Program::Arrow),
    client("awscrt", "Common Runtime (C++), awscrt", Program::CommonRuntime),
    client("ruby-v3", "Ruby v3", Program::DebianRuby),
    client("php", "PHP, AsyncAws", Program::DebianPhp),
];

const fn client(name: &'static str, title: &'static str, program: Program) -> Client {
    Client { name, title, uri: program.uri(), keeps_credentials: program.keeps_credentials(), program }
}

/// The one of that name.
pub(super) fn named(name: &str) -> Option<&'static Client> {
    CLIENTS.iter().find(|client| client.name == name)
}

/// Those that are to be had on this machine.
pub(crate) fn available() -> Vec<&'static Client> {
    CLIENTS.iter().filter(|client| client.program.is_here()).collect()
}

/// Those that are not.
pub(crate) fn missing() -> Vec<&'static Client> {
    CLIENTS.iter().filter(|client| !client.program.is_here()).collect()
}

/// Writes the image that the pods of all clients use.
pub(crate) fn machine_image(folder: &Path) -> Result<PathBuf> {
    let root = image_root(folder, "machine")?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    for name in ["usr", "tmp", "etc", "dev", "proc", "sys"] {
        std::fs::create_dir(root.join(name))?;
    }
    Image { name: MACHINE, root: &root, entrypoint: &["/bin/sh"] }.write()
}

/// What a client is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// To call once, at once or [`OnceItListens`](Start::OnceItListens).
    Call(Start),
    /// To call, and to go on `beyond` this time: by one process, which waits for other credentials than its first with
    /// this `patience`, or of a command line by another one after it.
    Renew {
        /// In all.
        patience: Duration,
        /// At least.
        beyond: Duration,
    },
}

/// When the program of a client starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With its container.
    AtOnce,
    /// When the daemon listens: its container was there before.
    OnceItListens,
}

impl Client {
    /// A pod that calls the STS at `endpoint`.
    pub(super) fn pod(&self, name: &str, service_account: &str, endpoint: &str, task: Task) -> Result<Value> {
        let folders = self.folders(task)?;
        let folders = outermost(&folders);
        let volumes: Vec<Value> = folders
            .iter()
            .enumerate()
            .map(|(index, path)| json!({"name": format!("folder-{index}"), "hostPath": {"path": path}}))
            .collect();
        let mounts: Vec<Value> = folders
            .iter()
            .enumerate()
            .map(|(index, path)| json!({"name": format!("folder-{index}"), "mountPath": path, "readOnly": true}))
            .collect();
        let mut variables = vec![
            json!({"name": "HOME", "value": "/tmp"}),
            json!({"name": "AWS_REGION", "value": "us-east-1"}),
            json!({"name": "AWS_DEFAULT_REGION", "value": "us-east-1"}),
        ];
        if let Some((name, folder)) = self.program.packages()? {
            variables.push(json!({"name": name, "value": folder}));
        }
        let annotations = match self.uri {
            Uri::Full => json!({}),
            Uri::Relative => json!({"rolecall.dev/relative-uri": "true"}),
        };
        let mut command = vec!["/bin/sh".to_owned(), "-c".to_owned(), self.script(task)?, "sh".to_owned()];
        command.extend(self.words(endpoint, task)?);
        Ok(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "serviceAccountName": service_account,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "client",
                    "image": MACHINE,
                    "imagePullPolicy": "Never",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "command": command,
                    "env": variables,
                    "volumeMounts": mounts,
                    // Without any, whatever else the machine does could keep it from running for a second.
                    "resources": {"requests": {"cpu": "50m"}},
                }],
                "volumes": volumes,
            },
        }))
    }

    /// What its pod sees of this machine.
    fn folders(&self, task: Task) -> Result<BTreeSet<PathBuf>> {
        let mut folders = self.program.folders()?;
        if let Task::Call(Start::OnceItListens) = task {
            folders.insert(probe()?.parent().context("the probe is in a folder")?.to_owned());
        }
        Ok(folders)
    }

    /// The program and its arguments.
    fn words(&self, endpoint: &str, task: Task) -> Result<Vec<String>> {
        let mut words = self.program.words()?;
        match task {
            _ if !self.keeps_credentials => words.extend(
                ["sts", "get-caller-identity", "--output", "json", "--endpoint-url", endpoint]
                    .map(String::from),
            ),
            Task::Call(_) => words.extend(["identity", endpoint].map(String::from)),
            Task::Renew { patience, beyond } => {
                words.extend(["refresh", endpoint].map(String::from));
                words.extend([patience, beyond].map(|time| time.as_secs().to_string()));
            }
        }
        Ok(words)
    }

    /// What the shell does with them. What the program says is the termination message; where it fails, the end of its
    /// log is.
    fn script(&self, task: Task) -> Result<String> {
        const ONCE: &str = r#"exec "$@" >/dev/termination-log"#;
        Ok(match task {
            Task::Call(Start::AtOnce) => ONCE.to_owned(),
            Task::Call(Start::OnceItListens) => format!("{} listens && {ONCE}", probe()?.display()),
            Task::Renew { .. } if self.keeps_credentials => ONCE.to_owned(),
            // Both at once, for what is there already hides the log of a failure.
            Task::Renew { beyond, .. } => format!(
                r#"one=$("$@") && sleep {} && other=$("$@") && echo "$one$other" >/dev/termination-log"#,
                beyond.as_secs()
            ),
        })
    }

    /// What it has said, of each call.
    pub(crate) fn read(&self, text: &str) -> Result<Vec<Answer>> {
        if self.keeps_credentials {
            return text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect();
        }
        let identities = serde_json::Deserializer::from_str(text).into_iter::<Identity>();
        identities.map(|identity| Ok(Answer { arn: Some(identity?.arn), ..Answer::default() })).collect()
    }

    /// The version that is run.
    pub(crate) fn version(&self) -> Result<String> {
        self.program.version()
    }
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "Arn")]
    arn: String,
}
