//! The programs of the clients: how each is run, what it needs of this machine, and which version it is.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use rolecall_e2e::tool;

/// An SDK with the program that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Boto3,
    OldBoto3,
    Aiobotocore,
    AwsCli,
    OldAwsCli,
    DebianAwsCli,
    JavaScript,
    OldJavaScript,
    JavaScriptV2,
    Go,
    OldGo,
    GoV1,
    OldGoV1,
    Java,
    OldJava,
    JavaV1,
    Kotlin,
    Rust,
    ObjectStore,
    Arrow,
    CommonRuntime,
    DebianRuby,
    DebianPhp,
}

/// The variable that the shim injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uri {
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`
    Full,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`
    Relative,
}

impl Uri {
    /// The one that the first container of the pod has.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let variables = pod.spec.as_ref()?.containers.first()?.env.as_deref()?;
        let has = |name: &str| variables.iter().any(|variable| variable.name == name);
        match (has("AWS_CONTAINER_CREDENTIALS_FULL_URI"), has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")) {
            (true, false) => Some(Self::Full),
            (false, true) => Some(Self::Relative),
            (true, true) | (false, false) => None,
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full URI",
            Self::Relative => "relative URI",
        })
    }
}

impl Program {
    /// What it is told where to ask.
    pub(super) const fn uri(self) -> Uri {
        match self {
            // Older than what they would have to know: the address of the full URI, or the file with the token.
            Self::OldBoto3
            | Self::OldAwsCli
            | Self::DebianAwsCli
            | Self::OldJavaScript
            | Self::OldGo
            | Self::OldGoV1
            | Self::OldJava
            | Self::DebianRuby
            | Self::DebianPhp => Uri::Relative,
            Self::Boto3
            | Self::Aiobotocore
            | Self::AwsCli
            | Self::JavaScript
            | Self::JavaScriptV2
            | Self::Go
            | Self::GoV1
            | Self::Java
            | Self::JavaV1
            | Self::Kotlin
            | Self::Rust
            | Self::ObjectStore
            | Self::Arrow
            | Self::CommonRuntime => Uri::Full,
        }
    }

    /// Whether one process makes many calls. Each call of a command line is a process, which fetches for itself.
    pub(super) const fn keeps_credentials(self) -> bool {
        !matches!(self, Self::AwsCli | Self::OldAwsCli | Self::DebianAwsCli)
    }

    /// Whether it is to be had on this machine: the distribution's own may be missing.
    pub(super) fn is_here(self) -> bool {
        let Some(file) = self.of_the_distribution() else { return true };
        Path::new(file).exists()
    }

    /// A file that is there where the distribution's package is.
    const fn of_the_distribution(self) -> Option<&'static str> {
        match self {
            Self::DebianAwsCli => Some("/usr/lib/python3/dist-packages/awscli"),
            Self::DebianRuby => Some("/usr/share/doc/ruby-aws-sdk-core"),
            Self::DebianPhp => Some("/usr/share/php/AsyncAws/Core/autoload.php"),
            Self::Boto3
            | Self::OldBoto3
            | Self::Aiobotocore
            | Self::AwsCli
            | Self::OldAwsCli
            | Self::JavaScript
            | Self::OldJavaScript
            | Self::JavaScriptV2
            | Self::Go
            | Self::OldGo
            | Self::GoV1
            | Self::OldGoV1
            | Self::Java
            | Self::OldJava
            | Self::JavaV1
            | Self::Kotlin
            | Self::Rust
            | Self::ObjectStore
            | Self::Arrow
            | Self::CommonRuntime => None,
        }
    }

    /// The variable that says where its packages are, of programs that would not find them.
    pub(super) fn packages(self) -> Result<Option<(&'static str, PathBuf)>> {
        let node = |name| Ok(Some(("ROLECALL_NODE_MODULES", tool(name)?)));
        let python = |folder| Ok(Some(("PYTHONPATH", tool("sdk-python")?.join(folder))));
        match self {
            Self::JavaScript => node("node"),
            Self::OldJavaScript | Self::JavaScriptV2 => node("sdk-node"),
            Self::OldBoto3 => python("boto3"),
            Self::Aiobotocore => python("aiobotocore"),
            Self::OldAwsCli => python("awscli"),
            Self::Arrow => python("pyarrow"),
            Self::CommonRuntime => python("awscrt"),
            Self::Boto3
            | Self::AwsCli
            | Self::DebianAwsCli
            | Self::Go
            | Self::OldGo
            | Self::GoV1
            | Self::OldGoV1
            | Self::Java
            | Self::OldJava
            | Self::JavaV1
            | Self::Kotlin
            | Self::Rust
            | Self::ObjectStore
            | Self::DebianRuby
            | Self::DebianPhp => Ok(None),
        }
    }

    /// The program and its first arguments.
    pub(super) fn words(self) -> Result<Vec<String>> {
        let script = |name: &str| sources().join(name).display().to_string();
        let path = |path: PathBuf| path.display().to_string();
        let python = |name: &str| Ok(vec![path(tool("python")?), script(name)]);
        let node = |name: &str| Ok(vec!["node".into(), script(name)]);
        let go = |name: &str| Ok(vec![path(tool("sdk-go")?.join(name))]);
        let java = |folder: &str, class: &str| {
            let folder = path(tool("sdk-java")?.join(folder));
            Ok(vec![
                "java".into(),
                "-cp".into(),
                format!("{folder}:{folder}/classes:{folder}/lib/*"),
                class.into(),
            ])
        };
        match self {
            Self::Boto3 | Self::OldBoto3 => python("boto3_client.py"),
            Self::Aiobotocore => python("aiobotocore_client.py"),
            Self::Arrow => python("arrow_client.py"),
            Self::CommonRuntime => python("awscrt_client.py"),
            Self::AwsCli | Self::OldAwsCli => Ok(vec![path(tool("python")?), "-m".into(), "awscli".into()]),
            Self::DebianAwsCli => Ok(vec!["/usr/bin/aws".into()]),
            Self::JavaScript | Self::OldJavaScript => node("js_v3_client.mjs"),
            Self::JavaScriptV2 => node("js_v2_client.mjs"),
            Self::Go => go("v2"),
            Self::OldGo => go("v2-old"),
            Self::GoV1 => go("v1"),
            Self::OldGoV1 => go("v1-old"),
            Self::Java => java("v2", "Client"),
            Self::OldJava => java("v2-old", "Client"),
            Self::JavaV1 => java("v1", "ClientV1"),
            Self::Kotlin => java("kotlin", "ClientKt"),
            Self::Rust => Ok(vec![path(rust_client()?)]),
            Self::ObjectStore => Ok(vec![path(tool("sdk-object-store")?.join("client"))]),
            Self::DebianRuby => Ok(vec!["ruby".into(), script("ruby_client.rb")]),
            Self::DebianPhp => Ok(vec!["php".into(), script("php_client.php")]),
        }
    }

    /// What it needs of this machine.
    pub(super) fn folders(self) -> Result<BTreeSet<PathBuf>> {
        let mut folders: BTreeSet<PathBuf> =
            ["/usr", "/etc/alternatives", "/etc/ssl"].into_iter().map(PathBuf::from).collect();
        folders.extend(self.packages()?.map(|(_, folder)| folder));
        folders.extend(match self {
            Self::Boto3 | Self::OldBoto3 | Self::Aiobotocore | Self::Arrow | Self::CommonRuntime => {
                [python()?, vec![sources()]].concat()
            }
            Self::AwsCli | Self::OldAwsCli => python()?,
            Self::DebianAwsCli => vec![],
            Self::JavaScript | Self::OldJavaScript | Self::JavaScriptV2 | Self::DebianRuby => vec![sources()],
            Self::Go | Self::OldGo | Self::GoV1 | Self::OldGoV1 => vec![tool("sdk-go")?],
            Self::Java | Self::OldJava | Self::JavaV1 | Self::Kotlin => {
                [settings_of_java()?, vec![tool("sdk-java")?]].concat()
            }
            Self::Rust => vec![rust_client()?.parent().context("the client is in a folder")?.to_owned()],
            Self::ObjectStore => vec![tool("sdk-object-store")?],
            // Debian's PHP has its extensions listed there.
            Self::DebianPhp => vec![sources(), PathBuf::from("/etc/php")],
        });
        // Others than Debian have their own.
        folders.retain(|folder| folder.exists());
        Ok(folders)
    }

    /// The version that is run.
    pub(super) fn version(self) -> Result<String> {
        let python = |file: &str, name: &str| pinned(file, &format!("{name}=="), ' ');
        let node = |folder: &str, name: &str| {
            pinned(&format!("scripts/{folder}/package.json"), &format!("\"{name}\": \""), '"')
        };
        let java = |file: &str, artifact: &str| {
            let start = format!("<artifactId>{artifact}</artifactId>\n      <version>");
            pinned(&format!("e2e/sdk/{file}"), &start, '<')
        };
        match self {
            Self::Boto3 => python("scripts/python/requirements.txt", "boto3"),
            Self::AwsCli => python("scripts/python/requirements.txt", "awscli"),
            Self::OldBoto3 => python("scripts/sdk-python/boto3.txt", "boto3"),
            Self::Aiobotocore => python("scripts/sdk-python/aiobotocore.txt", "aiobotocore"),
            Self::OldAwsCli => python("scripts/sdk-python/awscli.txt", "awscli"),
            Self::CommonRuntime => python("scripts/sdk-python/awscrt.txt", "awscrt"),
            // The SDK says its own version nowhere but in its requests.
            Self::Arrow => Ok(format!("pyarrow {}", python("scripts/sdk-python/pyarrow.txt", "pyarrow")?)),
            Self::DebianAwsCli => {
                let line = said(Command::new("/usr/bin/aws").arg("--version"))?;
                Ok(after(&line, "aws-cli/", ' ')?.to_owned())
            }
            Self::JavaScript => node("node", "@aws-sdk/client-sts"),
            Self::OldJavaScript => node("sdk-node", "@aws-sdk/client-sts"),
            Self::JavaScriptV2 => node("sdk-node", "aws-sdk"),
            Self::Go => pinned("e2e/sdk/go/go.mod", "aws-sdk-go-v2 v", '\n'),
            Self::OldGo => pinned("e2e/sdk/go/old.mod", "aws-sdk-go-v2 v", '\n'),
            Self::GoV1 => pinned("e2e/sdk/go-v1/go.mod", "aws-sdk-go v", '\n'),
            Self::OldGoV1 => pinned("e2e/sdk/go-v1/old.mod", "aws-sdk-go v", '\n'),
            Self::Java => java("java/pom.xml", "sts"),
            Self::OldJava => java("java/old.xml", "sts"),
            Self::JavaV1 => java("java-v1/pom.xml", "aws-java-sdk-sts"),
            Self::Kotlin => java("kotlin/pom.xml", "sts-jvm"),
            Self::Rust => pinned("Cargo.lock", "name = \"aws-config\"\nversion = \"", '"'),
            Self::ObjectStore => {
                pinned("e2e/sdk/object-store/Cargo.toml", "object_store = { version = \"=", '"')
            }
            Self::DebianRuby => said(
                Command::new("/usr/bin/ruby")
                    .args(["-e", "require 'aws-sdk-core'; puts Aws::CORE_GEM_VERSION"]),
            ),
            Self::DebianPhp => said(Command::new("dpkg-query").args([
                "-W",
                "-f=${source:Upstream-Version}",
                "php-async-aws-core",
            ])),
        }
    }
}

/// The program that waits in a client's container until the daemon listens.
pub(super) fn probe() -> Result<PathBuf> {
    Ok(tool("probe")?.join("probe"))
}

/// Those that lie within none of the others.
pub(super) fn outermost(folders: &BTreeSet<PathBuf>) -> Vec<&PathBuf> {
    let is_within = |folder: &PathBuf| folder.ancestors().skip(1).any(|above| folders.contains(above));
    folders.iter().filter(|folder| !is_within(folder)).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// The virtual environment, and the interpreter that it was made of.
fn python() -> Result<Vec<PathBuf>> {
    let program = tool("python")?;
    let prefix = |program: &Path| Some(program.parent()?.parent()?.to_owned());
    let folders = [prefix(&program), prefix(&program.canonicalize()?)];
    folders.into_iter().collect::<Option<_>>().context("python is in a folder")
}

/// Debian's Java has its settings there.
fn settings_of_java() -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir("/etc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("java-") {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// It is built with this program, and lies beside it.
fn rust_client() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("rust-sdk-client");
    ensure!(path.exists(), "{} is missing: cargo build -p rolecall-e2e --bins", path.display());
    Ok(path)
}

/// What a file of this repository pins.
fn pinned(file: &str, start: &str, end: char) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(after(&text, start, end).with_context(|| format!("look into {file}"))?.to_owned())
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

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::*;

    #[track_caller]
    fn check_outermost(folders: &[&str], expect: &[&str]) {
        let folders = folders.iter().map(PathBuf::from).collect();
        assert_eq!(outermost(&folders), expect.iter().map(Path::new).collect::<Vec<_>>());
    }

    #[test]
    fn a_folder_within_another_is_there_with_it() {
        check_outermost(&["/usr", "/root/sdk", "/usr", "/usr/lib/sdk"], &["/root/sdk", "/usr"]);
        check_outermost(&["/usr", "/usr-local"], &["/usr", "/usr-local"]);
    }

    #[test]
    fn every_version_that_is_pinned_here_is_found() {
        for client in client::available() {
            let version = client.version().unwrap_or_else(|error| format!("{error:#}"));
            let number = version.rsplit(' ').next().unwrap_or_default();
            let is_number =
                number.split('.').count() >= 3 && number.starts_with(|c: char| c.is_ascii_digit());
            assert!(is_number, "{}: {version}", client.name);
        }
    }
}
