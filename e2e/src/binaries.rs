//! The programs of this workspace, built as they ship.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

static BINARIES: LazyLock<Result<BTreeMap<String, PathBuf>>> = LazyLock::new(build);

/// The path of a program of this workspace, such as `rolecall-daemon`, up to date.
///
/// Cargo builds a test's own package before the test but not the programs of others, and an old one would be
/// tested in silence. So this asks cargo, once per process; with nothing to do that takes half a second. It also
/// leaves out what tests switch on in the dependencies, so that what is tested is what ships.
pub fn binary(name: &str) -> Result<PathBuf> {
    // Cargo names those of the package under test, which it has just built.
    if let Some(path) = std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        return Ok(path.into());
    }
    match BINARIES.as_ref() {
        Ok(binaries) => {
            binaries.get(name).cloned().with_context(|| format!("the workspace has no program {name}"))
        }
        Err(error) => bail!("build {name}: {error:#}"),
    }
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn build() -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // The same selection as `make demo`. Ours are left out: a test that uses one should not see it replaced.
        .args(["build", "--locked", "--quiet", "--workspace", "--exclude", env!("CARGO_PKG_NAME"), "--bins"])
        .arg("--message-format=json")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("cargo build failed; its messages are above");
    }
    let mut binaries = BTreeMap::new();
    for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Message = serde_json::from_slice(line).context("read cargo's messages")?;
        if let (Some(target), Some(executable)) = (message.target, message.executable) {
            binaries.insert(target.name, executable);
        }
    }
    Ok(binaries)
}
