//! The clients: what each one is, and the pod that it runs in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rolecall_e2e::cluster::{Image, image_root};
use rolecall_e2e::sdk::Answer;
use rolecall_e2e::tool;
use serde::Deserialize;
use serde_json::{Value, json};

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

/// The variable that the shim injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uri {
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`
    Full,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`
    Relative,
}

/// How it is run, and where its version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Boto3,
    AwsCli,
    DebianAwsCli,
    OldBoto3,
    JavaScript,
    OldJavaScript,
    JavaScriptV2,
    Go,
    Java,
    Rust,
    ObjectStore,
    CommonRuntime,
    DebianRuby,
}

static CLIENTS: [Client; 13] = [
    client("boto3", "Python, boto3", Program::Boto3),
    client("boto3-old", "Python, an old boto3", Program::OldBoto3),
    client("aws-cli-v1", "AWS CLI v1", Program::AwsCli),
    client("aws-cli-v2", "AWS CLI v2", Program::DebianAwsCli),
    client("js-v3", "JavaScript v3", Program::JavaScript),
    client("js-v3-old", "JavaScript v3, an old one", Program::OldJavaScript),
    client("js-v2", "JavaScript v2", Program::JavaScriptV2),
    client("go-v2", "Go v2", Program::Go),
    client("java-v2", "Java v2", Program::Java),
    client("rust", "Rust, aws-config", Program::Rust),
    client("object-store", "Rust, object_store", Program::ObjectStore),
    client("awscrt", "Common Runtime (C++), awscrt", Program::CommonRuntime),
    client("ruby-v3", "Ruby v3", Program::DebianRuby),
];

const fn client(name: &'static str, title: &'static str, program: Program) -> Client {
    let uri = match program {
        // Older than what they would have to know: the address of the full URI, or the file with the token.
        Program::DebianAwsCli | Program::DebianRuby | Program::OldBoto3 | Program::OldJavaScript => {
            Uri::Relative
        }
        Program::Boto3
        | Program::AwsCli
        | Program::JavaScript
        | Program::JavaScriptV2
        | Program::Go
        | Program::Java
        | Program::Rust
        | Program::ObjectStore
        | Program::CommonRuntime => Uri::Full,
    };
    // Each call of a command line is a process, which fetches for itself.
    let keeps_credentials = !matches!(program, Program::AwsCli | Program::DebianAwsCli);
    Client { name, title, uri, keeps_credentials, program }
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

impl Client {
    /// The pod that calls the STS at `endpoint`, and goes on `beyond` this time where it keeps credentials.
    pub(crate) fn pod(&self, endpoint: &str, patience: Duration, beyond: Duration) -> Result<Value> {
        let mut words = self.program.words()?;
        if self.keeps_credentials {
            words.extend(["refresh".into(), endpoint.into()]);
            words.extend([patience, beyond].map(|time| time.as_secs().to_string()));
        } else {
            words.extend(
                ["sts", "get-caller-identity", "--output", "json", "--endpoint-url"].map(String::from),
            );
            words.push(endpoint.into());
        }
        // What it says is the termination message; where it fails, the end of its log is.
        let mut command =
            ["/bin/sh", "-c", r#"exec "$@" >/dev/termination-log"#, "sh"].map(String::from).to_vec();
        command.extend(words);

        let folders = folders()?;
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
        Ok(json!({
            "metadata": {"name": self.name, "annotations": annotations},
            "spec": {
                "serviceAccountName": self.name,
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
                }],
                "volumes": volumes,
            },
        }))
    }

    /// What it has said, of one call.
    pub(crate) fn read(&self, text: &str) -> Result<Vec<Answer>> {
        if self.keeps_credentials {
            return text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect();
        }
        let Identity { arn } = serde_json::from_str(text)?;
        Ok(vec![Answer { arn: Some(arn), ..Answer::default() }])
    }

    /// The version that is run.
    pub(crate) fn version(&self) -> Result<String> {
        match self.program {
            Program::Boto3 => {
                said(Command::new(tool("python")?).args(["-c", "import boto3; print(boto3.__version__)"]))
            }
            Program::AwsCli => {
                said(Command::new(tool("python")?).args(["-c", "import awscli; print(awscli.__version__)"]))
            }
            Program::DebianAwsCli => {
                let line = said(Command::new("/usr/bin/aws").arg("--version"))?;
                Ok(after(&line, "aws-cli/", ' ')?.to_owned())
            }
            Program::OldBoto3 => package_version("scripts/sdk-python/boto3.txt", "boto3==", ' '),
            Program::CommonRuntime => package_version("scripts/sdk-python/awscrt.txt", "awscrt==", ' '),
            Program::JavaScript => {
                package_version("scripts/node/package.json", "\"@aws-sdk/client-sts\": \"", '"')
            }
            Program::OldJavaScript => {
                package_version("scripts/sdk-node/package.json", "\"@aws-sdk/client-sts\": \"", '"')
            }
            Program::JavaScriptV2 => package_version("scripts/sdk-node/package.json", "\"aws-sdk\": \"", '"'),
            Program::ObjectStore => {
                package_version("e2e/sdk/object-store/Cargo.toml", "object_store = { version = \"=", '"')
            }
            Program::Go => {
                Ok(after(include_str!("../../sdk/go/go.mod"), "aws-sdk-go-v2 v", '\n')?.to_owned())
            }
            Program::Java => {
                let text = include_str!("../../sdk/java/pom.xml");
                let (_, sts) = text.split_once("<artifactId>sts").context("pom.xml names sts")?;
                Ok(after(sts, "<version>", '<')?.to_owned())
            }
            Program::Rust => {
                let text = include_str!("../../../Cargo.lock");
                let (_, package) = text.split_once("name = \"aws-config\"").context("Cargo.lock names it")?;
                Ok(after(package, "version = \"", '"')?.to_owned())
            }
            Program::DebianRuby => said(
                Command::new("/usr/bin/ruby")
                    .args(["-e", "require 'aws-sdk-core'; puts Aws::CORE_GEM_VERSION"]),
            ),
        }
    }
}

impl Program {
    /// Whether the distribution's own are installed; the others always are.
    fn is_here(self) -> bool {
        match self {
            Self::DebianAwsCli => Path::new("/usr/lib/python3/dist-packages/awscli").exists(),
            Self::DebianRuby => Path::new("/usr/share/rubygems-integration").exists(),
            Self::Boto3
            | Self::OldBoto3
            | Self::AwsCli
            | Self::JavaScript
            | Self::OldJavaScript
            | Self::JavaScriptV2
            | Self::Go
            | Self::Java
            | Self::Rust
            | Self::ObjectStore
            | Self::CommonRuntime => true,
        }
    }

    /// The variable that says where its packages are, of programs that would not find them.
    fn packages(self) -> Result<Option<(&'static str, PathBuf)>> {
        Ok(Some(match self {
            Self::JavaScript => ("ROLECALL_NODE_MODULES", tool("node")?),
            Self::OldJavaScript | Self::JavaScriptV2 => ("ROLECALL_NODE_MODULES", tool("sdk-node")?),
            Self::OldBoto3 => ("PYTHONPATH", tool("sdk-python")?.join("boto3")),
            Self::CommonRuntime => ("PYTHONPATH", tool("sdk-python")?.join("awscrt")),
            Self::Boto3
            | Self::AwsCli
            | Self::DebianAwsCli
            | Self::Go
            | Self::Java
            | Self::Rust
            | Self::ObjectStore
            | Self::DebianRuby => return Ok(None),
        }))
    }

    fn words(self) -> Result<Vec<String>> {
        let script = |name: &str| sources().join(name).display().to_string();
        let path = |path: PathBuf| path.display().to_string();
        Ok(match self {
            Self::Boto3 | Self::OldBoto3 => vec![path(tool("python")?), script("boto3_client.py")],
            Self::CommonRuntime => vec![path(tool("python")?), script("awscrt_client.py")],
            Self::AwsCli => vec![path(tool("python")?), "-m".into(), "awscli".into()],
            Self::DebianAwsCli => vec!["/usr/bin/aws".into()],
            Self::JavaScript | Self::OldJavaScript => vec!["node".into(), script("js_v3_client.mjs")],
            Self::JavaScriptV2 => vec!["node".into(), script("js_v2_client.cjs")],
            Self::Go => vec![path(tool("sdk-go")?.join("client"))],
            Self::Java => {
                let folder = path(tool("sdk-java")?);
                vec!["java".into(), "-cp".into(), format!("{folder}:{folder}/lib/*"), "Client".into()]
            }
            Self::Rust => vec![path(rust_client()?)],
            Self::ObjectStore => vec![path(tool("sdk-object-store")?.join("client"))],
            Self::DebianRuby => vec!["ruby".into(), script("ruby_client.rb")],
        })
    }
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "Arn")]
    arn: String,
}

/// What the pods see of this machine.
fn folders() -> Result<Vec<PathBuf>> {
    let python = tool("python")?.canonicalize()?;
    let python = python.parent().and_then(Path::parent).context("python is in a folder")?;
    let rust = rust_client()?;
    let mut folders = vec![
        PathBuf::from("/usr"),
        PathBuf::from("/etc/alternatives"),
        PathBuf::from("/etc/ssl"),
        sources(),
        tool("python")?.parent().and_then(Path::parent).context("python is in a folder")?.to_owned(),
        python.to_owned(),
        tool("node")?.parent().context("the packages are in a folder")?.to_owned(),
        tool("sdk-go")?,
        tool("sdk-java")?,
        tool("sdk-node")?.parent().context("the packages are in a folder")?.to_owned(),
        tool("sdk-python")?,
        tool("sdk-object-store")?,
        rust.parent().context("the client is in a folder")?.to_owned(),
    ];
    // Debian's Java has its settings there.
    for entry in std::fs::read_dir("/etc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("java-") {
            folders.push(entry.path());
        }
    }
    folders.retain(|folder| folder.exists());
    // What lies within another of them is there already.
    let all = folders.clone();
    folders.retain(|folder| !all.iter().any(|other| folder != other && folder.starts_with(other)));
    folders.dedup();
    Ok(folders)
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// It is built with this program, and lies beside it.
fn rust_client() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("rust-sdk-client");
    ensure!(path.exists(), "{} is missing: cargo build -p rolecall-e2e --bins", path.display());
    Ok(path)
}

/// What a file of this repository pins.
fn package_version(file: &str, start: &str, end: char) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(after(&text, start, end)?.to_owned())
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn after<'a>(text: &'a str, start: &str, end: char) -> Result<&'a str> {
    let (_, rest) = text.split_once(start).with_context(|| format!("{start} is not there"))?;
    Ok(rest.split(end).next().unwrap_or(rest))
}
