//! Container images made on this machine, from nothing: archives that `ctr images import` takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::output;

/// The sandbox container of every pod.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// An image with one layer.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its whole name, such as `localhost/pause:1`.
    pub name: &'a str,
    /// The folder whose content it has.
    pub root: &'a Path,
    /// What a container of it runs unless the pod says otherwise.
    pub entrypoint: &'a [&'a str],
}

impl Image<'_> {
    /// Writes the OCI archive beside its root and returns where it is.
    pub fn write(&self) -> Result<PathBuf> {
        let layout = self.root.with_extension("oci");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;

        let layer = layout.join("layer");
        archive(self.root, &layer)?;
        let digest = sha256(&layer)?;
        let size = fs::metadata(&layer)?.len();
        fs::rename(&layer, blobs.join(&digest))?;
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", &digest, size);

        let config = write_blob(
            &blobs,
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture(),
                "os": "linux",
                "config": {
                    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"],
                    "Entrypoint": self.entrypoint,
                },
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
            }),
        )?;
        let mut manifest = write_blob(
            &blobs,
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": [layer],
            }),
        )?;
        manifest["annotations"] = json!({"io.containerd.image.name": self.name});
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string())?;

        let image = self.root.with_extension("tar");
        archive(&layout, &image)?;
        fs::remove_dir_all(&layout)?;
        Ok(image)
    }
}

/// Compiles the program that does nothing into `folder`.
pub(super) fn compile_pause(folder: &Path) -> Result<PathBuf> {
    let source = folder.join("pause.c");
    fs::write(&source, include_str!("../../cluster/pause.c")).context("write pause.c")?;
    let program = folder.join("pause");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-static", "-s", "-Wall", "-o"]).arg(&program).arg(&source);
    output(compiler)
        .context("compile pause: a C compiler and a static libc (Debian: gcc libc6-dev) are needed")?;
    Ok(program)
}

/// Writes the image of the sandbox containers.
pub(super) fn pause(folder: &Path, program: &Path) -> Result<PathBuf> {
    let root = folder.join("pause-root");
    fs::create_dir_all(&root)?;
    fs::copy(program, root.join("pause")).context("copy pause")?;
    Image { name: PAUSE, root: &root, entrypoint: &["/pause"] }.write()
}

/// The same bytes for the same files, whoever owns them here.
fn archive(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg("-C").arg(folder).arg("-cf").arg(file).arg(".");
    output(tar).map(drop)
}

fn write_blob(blobs: &Path, media_type: &str, content: &Value) -> Result<Value> {
    let content = content.to_string();
    let file = blobs.join("new");
    fs::write(&file, &content)?;
    let digest = sha256(&file)?;
    fs::rename(&file, blobs.join(&digest))?;
    Ok(descriptor(media_type, &digest, u64::try_from(content.len())?))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

fn sha256(file: &Path) -> Result<String> {
    let mut program = Command::new("sha256sum");
    program.arg(file);
    let line = output(program)?;
    Ok(line.split_ascii_whitespace().next().context("sha256sum wrote nothing")?.to_owned())
}

/// In the words of OCI, which are Go's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
