//! Other programs that do one thing and end.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Directories of system programs, which an ordinary user's path may lack, and that of the network plug-ins.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a line of words between blanks to its end, which must be a success, and returns what it wrote.
pub(crate) fn run(line: &str) -> Result<String> {
    let mut words = line.split_ascii_whitespace();
    let mut command = Command::new(words.next().context("no program")?);
    command.args(words);
    output(command)
}

/// Runs a command to its end, which must be a success, and returns what it wrote.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let described = format!("{command:?}");
    let ended = command
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {described}"))?;
    ensure!(ended.status.success(), "{described}: {}", String::from_utf8_lossy(&ended.stderr).trim());
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
