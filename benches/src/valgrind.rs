//! Programs under valgrind, and how to speak with it while they run.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{Process, Wrapper};

/// What a report says where there is no valgrind.
pub(crate) const MISSING: &str = "Left out: this machine has no valgrind, or no C compiler.\n";

/// A tool of valgrind's, and a place for what it writes.
pub(crate) struct Valgrind {
    flags: &'static [&'static str],
    scratch: TempDir,
}

impl Valgrind {
    /// One with the flags of a tool; none without valgrind or a C compiler.
    pub(crate) fn new(flags: &'static [&'static str]) -> Result<Option<Self>> {
        if !has("valgrind") || !has("vgdb") || !has("cc") {
            return Ok(None);
        }
        let valgrind = Self { flags, scratch: tempfile::tempdir()? };
        let source = valgrind.path("openat2.c");
        fs::write(&source, include_str!("openat2.c"))?;
        let mut cc = Command::new("cc");
        let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).args([&valgrind.preload(), &source]).status();
        ensure!(built.context("run cc")?.success(), "cc cannot build openat2.c");
        Ok(Some(valgrind))
    }

    /// What a program runs under; the file of this flag begins with this name.
    pub(crate) fn wrapper(&self, flag_of_file: &str, name: &str) -> Wrapper {
        let mut preload = OsString::from("LD_PRELOAD=");
        preload.push(self.preload());
        let mut wrapper: Wrapper = vec!["env".into(), preload, "valgrind".into(), "-q".into()];
        wrapper.extend(self.flags.iter().map(OsString::from));
        wrapper.extend([flag(flag_of_file, &self.path(name)), self.prefix()]);
        wrapper
    }

    /// Gives the tool an order while its program runs.
    pub(crate) fn tell(&self, process: &Process, order: &str) -> Result<()> {
        let output = Command::new("vgdb")
            .arg(self.prefix())
            .arg(format!("--pid={}", process.id()))
            .args(order.split(' '))
            .output()
            .context("run vgdb")?;
        ensure!(output.status.success(), "vgdb {order}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// What callgrind has counted in `process` since it began, was told `zero`, or was asked before. The process is that
    /// which has the wrapper of this `name`.
    pub(crate) fn dump(&self, process: &Process, name: &str) -> Result<String> {
        self.tell(process, "dump")?;
        // It numbers its dumps: `name.1`, `name.2`.
        let dumps = (1..).map(|number| self.path(&format!("{name}.{number}")));
        let newest = dumps.take_while(|path| path.exists()).last().context("callgrind has dumped nothing")?;
        fs::read_to_string(newest).context("read what callgrind wrote")
    }

    /// Where it writes a file of this name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn preload(&self) -> PathBuf {
        self.path("openat2.so")
    }

    fn prefix(&self) -> OsString {
        flag("--vgdb-prefix=", &self.path("vgdb"))
    }
}

fn flag(name: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(value);
    flag
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok()
}
