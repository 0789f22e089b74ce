//! Runs the programs that talk to netfilter.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Longer than any of them takes, waiting for another one's lock included.
const LIMIT: Duration = Duration::from_secs(20);

/// How much of what a program complains about is kept.
const MAX_COMPLAINT: usize = 1000;

/// A program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("talk to {}", program.display())]
    Talk { program: PathBuf, source: io::Error },
    #[error("{} does not end", program.display())]
    Stuck { program: PathBuf },
    #[error("{} {arguments} failed: {complaint}", program.display())]
    Failed { program: PathBuf, arguments: String, complaint: String },
}

impl ProgramError {
    /// Whether there is no such program.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What the program wrote when it failed.
    pub(super) fn complaint(&self) -> &str {
        match self {
            Self::Failed { complaint, .. } => complaint,
            Self::Start { .. } | Self::Talk { .. } | Self::Stuck { .. } => "",
        }
    }
}

/// Runs `program`, feeds it `input`, and returns what it wrote if it succeeds.
pub(super) async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    let name = || program.to_owned();
    let mut command = Command::new(program);
    command
        .args(arguments)
        // What they complain is compared.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // To start a program waits until it is read from the disk; requests must not wait with it.
    let started =
        tokio::task::spawn_blocking(move || command.spawn()).await.map_err(io::Error::from).flatten();
    let mut child = started.map_err(|source| ProgramError::Start { program: name(), source })?;
    let stdin = child.stdin.take();
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read tells why by its status.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        tokio::join!(feed, child.wait_with_output()).1
    };
    let output = match timeout(LIMIT, work).await {
        Ok(output) => output.map_err(|source| ProgramError::Talk { program: name(), source })?,
        Err(_) => return Err(ProgramError::Stuck { program: name() }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let mut complaint: String =
        complaint.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_COMPLAINT).collect();
    if complaint.is_empty() {
        complaint = output.status.to_string();
    }
    Err(ProgramError::Failed { program: name(), arguments: arguments.join(" "), complaint })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, input: &str) -> Result<String, ProgramError> {
        run(Path::new("sh"), &["-c", script], input).await
    }

    #[tokio::test]
    async fn a_program_reads_writes_and_complains() {
        assert_eq!(shell("cat", "text").await.unwrap(), "text");
        // One that does not read is not waited for.
        assert_eq!(shell("echo done", &"x".repeat(1 << 20)).await.unwrap(), "done\n");
        let error = shell("echo no such thing >&2; exit 3", "").await.unwrap_err();
        assert_eq!(error.complaint(), "no such thing");
        assert!(!error.is_missing());
        assert_eq!(shell("exit 3", "").await.unwrap_err().complaint(), "exit status: 3");
        assert!(run(Path::new("/no/such/program"), &[], "").await.unwrap_err().is_missing());
    }
}
