//! The tools that `make tools` installs, found by their variables or in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where the tool is that `scripts/tools` knows by this name.
pub fn path(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
    let output = Command::new(&script)
        .args(["path", name])
        .output()
        .with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    ensure!(
        path.exists(),
        "{name} is needed for this test and is not at {}: run `make tools` once, which installs it",
        path.display()
    );
    Ok(path)
}
