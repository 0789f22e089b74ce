//! Images for another architecture than this machine's: what is refused, and where their Debian comes from.
//!
//! `make multi-arch` shows that such images work. That takes a compiler for them and minutes, and this neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rolecall_e2e::Scratch;
use serde_json::{Value, json};

/// Debian's name of an architecture that is not this machine's, and that of its libraries' folder.
const FOREIGN: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("amd64", "x86_64-linux-gnu")
} else {
    ("arm64", "aarch64-linux-gnu")
};

#[test]
fn an_image_for_an_unknown_architecture_is_refused() {
    let scratch = Scratch::new("architecture").unwrap();
    let said = refused(build(&scratch).env("ARCH", "sparc").env("SYSROOT", scratch.path()));
    assert!(said.contains("choose amd64 or arm64"), "{said}");
}

#[test]
fn an_image_without_a_root_of_its_architecture_says_how_to_get_one() {
    let scratch = Scratch::new("architecture").unwrap();
    let said = refused(build(&scratch).env("ARCH", FOREIGN.0).env("SYSROOT", scratch.path()));
    assert!(said.contains(&format!("scripts/tools install image-{}", FOREIGN.0)), "{said}");
}

#[test]
fn a_program_of_this_machine_gets_into_no_image_for_another() {
    let scratch = Scratch::new("architecture").unwrap();
    let root = scratch.path();
    for (file, content) in [
        (format!("usr/lib/{}/libc.so.6", FOREIGN.1), ""),
        ("etc/os-release".to_owned(), ""),
        ("etc/ca-certificates.conf".to_owned(), "mozilla/one.crt\n"),
        ("usr/share/ca-certificates/mozilla/one.crt".to_owned(), "-----BEGIN CERTIFICATE-----\n"),
    ] {
        write(&root.join(file), content);
    }
    let said = refused(build(&scratch).env("ARCH", FOREIGN.0).env("SYSROOT", root));
    assert!(said.contains(&format!("is no program for {}", FOREIGN.0)), "{said}");
    assert!(!root.join("image/rolecall-daemon.tar").exists());
}

#[test]
fn images_of_two_architectures_go_under_one_name() {
    let scratch = Scratch::new("join").unwrap();
    let folders = ["amd64", "arm64"].map(|architecture| {
        let folder = scratch.path().join(architecture);
        for program in ["rolecall-daemon", "rolecall-shim"] {
            write_image(&folder.join(format!("{program}.tar")), program, architecture);
        }
        folder
    });
    let output = scratch.path().join("output");
    run(Command::new(from_top("deploy/image/join")).arg(&output).args(&folders));

    for program in ["rolecall-daemon", "rolecall-shim"] {
        let read = |file: &str| -> Value {
            let mut tar = Command::new("tar");
            let archive = output.join(format!("{program}.oci.tar"));
            serde_json::from_str(&run(tar.arg("-xOf").arg(archive).arg(file))).unwrap()
        };
        let blob = |descriptor: &Value| {
            read(&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
        };
        let index = blob(&read("index.json")["manifests"][0]);
        let images = index["manifests"].as_array().unwrap();
        let platforms: Vec<_> = images.iter().map(|image| &image["platform"]["architecture"]).collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        for image in images {
            let config = blob(&blob(image)["config"]);
            assert_eq!(config["architecture"], image["platform"]["architecture"]);
        }
    }
}

#[test]
fn a_root_is_made_of_what_the_systems_sources_have_and_is_known_to_dpkg() {
    let sources = Sources::new("[trusted=yes] ");
    let root = sources.scratch.path().join("root");
    let output = sources.make_root(&root);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(root.join("usr/lib/hello")).unwrap(), "a library\n");
    assert_eq!(fs::read_to_string(root.join("etc/ca-certificates.conf")).unwrap(), "mozilla/one.crt\n");
    let mut query = Command::new("dpkg-query");
    query.arg("--admindir").arg(root.join("var/lib/dpkg")).args(["-S", "/lib/hello"]);
    let owner = query.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&owner.stdout), format!("hello:{}: /lib/hello\n", FOREIGN.0));
    let left: Vec<_> = fs::read_dir(sources.scratch.path()).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("root.apt.")), "{left:?}");
}

#[test]
fn nothing_is_taken_from_a_source_that_nobody_has_signed() {
    let sources = Sources::new("");
    let root = sources.scratch.path().join("root");
    let output = sources.make_root(&root);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is not signed"), "{said}");
    assert!(!root.join("usr").exists());
}

/// A system's package sources: one, with one package for the foreign architecture.
struct Sources {
    scratch: Scratch,
    configuration: PathBuf,
}

impl Sources {
    /// `options` is what the administrator has said about the source.
    fn new(options: &str) -> Self {
        let scratch = Scratch::new("sources").unwrap();
        let path = |name: &str| scratch.path().join(name);
        let package = path("package");
        let control = format!(
            "Package: hello\nVersion: 1\nArchitecture: {}\nMulti-Arch: same\nMaintainer: Nobody <nobody@example.com>\n\
             Description: A library\n",
            FOREIGN.0
        );
        write(&package.join("DEBIAN/control"), &control);
        write(&package.join("lib/hello"), "a library\n");
        write(&package.join("etc/hello"), "");
        write(&package.join("usr/share/ca-certificates/mozilla/one.crt"), "");
        let archive = path("source/hello.deb");
        for folder in ["source", "etc/apt.conf.d", "etc/preferences.d"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        let mut dpkg = Command::new("dpkg-deb");
        run(dpkg.args(["--root-owner-group", "--build"]).arg(&package).arg(&archive));
        let (digest, size) = (sha256(&archive), size(&archive));
        let packages = path("source/Packages");
        write(&packages, &format!("{control}Filename: ./hello.deb\nSize: {size}\nSHA256: {digest}\n"));
        let (digest, size) = (sha256(&packages), self::size(&packages));
        let release = format!("Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {size} Packages\n");
        write(&path("source/Release"), &release);
        let source = format!("deb {options}copy:{} ./\n", path("source").display());
        write(&path("etc/sources.list"), &source);
        let configuration = path("apt.conf");
        let folders = format!("Dir::Etc \"{}\";\n", path("etc").display());
        write(&configuration, &folders);
        Self { scratch, configuration }
    }

    fn make_root(&self, root: &Path) -> Output {
        let mut script = Command::new(from_top("scripts/debian/root"));
        script.env("APT_CONFIG", &self.configuration).arg(FOREIGN.0).arg(root).arg("hello");
        script.output().unwrap()
    }
}

fn sha256(file: &Path) -> String {
    let line = run(Command::new("sha256sum").arg(file));
    line.split(' ').next().unwrap().to_owned()
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

/// An archive as `docker save` writes it, of an image with one file.
fn write_image(archive: &Path, name: &str, architecture: &str) {
    let folder = archive.with_extension("parts");
    write(&folder.join("architecture"), architecture);
    let layer = folder.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&layer).arg("architecture"));
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    });
    write(&folder.join("config.json"), &config.to_string());
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [format!("{name}:1")], "Layers": ["layer.tar"]}]);
    write(&folder.join("manifest.json"), &manifest.to_string());
    let parts = ["config.json", "manifest.json", "layer.tar"];
    run(Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(archive).args(parts));
}

/// The script that builds the images; the programs in them are this test, which is for this machine too.
fn build(scratch: &Scratch) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut script = Command::new(from_top("deploy/image/build"));
    script.arg(scratch.path().join("image")).env("DAEMON", &program).env("SHIM", &program);
    script
}

/// What a command says that fails.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// What a command prints that succeeds.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write(file: &Path, content: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
}

fn from_top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
