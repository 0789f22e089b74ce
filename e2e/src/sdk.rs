//! The AWS SDKs and the AWS CLI, unmodified, as child processes of their own.
//!
//! Each SDK has a client program under `e2e/sdk/` that does what applications do, with the SDK's own defaults for
//! everything: chain, timeouts, retries, caching. They share three commands and print a line of JSON per answer:
//!
//! - `credentials`: asks the default chain once.
//! - `identity <endpoint>`: a first call of an application, `GetCallerIdentity` at that STS.
//! - `refresh <endpoint> <seconds> [<beyond>]`: the same call again and again by one client, until it signs with
//!   another key than at first or the time is over; prints the first answer and the one that differed. With `beyond`
//!   it goes on for at least that many seconds, so that the first key has expired meanwhile; unless a call fails,
//!   which differs too.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{binaries, tools};

/// Longer than any SDK holds on to an endpoint that is silent or fails.
const LIMIT: Duration = Duration::from_secs(120);

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// boto3, for Python.
    Boto3,
    /// The AWS SDK for JavaScript v3, on Node.js.
    JavaScript,
    /// aws-config and aws-sdk-sts, for Rust.
    Rust,
    /// The AWS CLI v1, which carries a botocore of its own. Each call is a process: it fetches each time.
    AwsCli,
}

/// What a client had in the end.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Answer {
    /// The access key id that it found, or signed its request with. The AWS CLI does not say.
    pub access_key_id: Option<String>,
    /// SHA-256 of the secret access key, in hexadecimal. This and the next two only of [`Sdk::credentials`].
    pub secret_sha256: Option<String>,
    /// SHA-256 of the session token, in hexadecimal.
    pub token_sha256: Option<String>,
    /// When the SDK believes that they expire, as `YYYY-MM-DDTHH:MM:SSZ`.
    pub expires_at: Option<String>,
    /// Who STS says the caller is.
    pub arn: Option<String>,
    /// What the application sees when it gets no credentials or no answer.
    pub error: Option<String>,
    /// From the call to its outcome, without the start of the program (but for the AWS CLI, which is one call).
    pub elapsed_seconds: f64,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Boto3, Self::JavaScript, Self::Rust, Self::AwsCli];

    /// Asks the default chain for credentials. Not for the AWS CLI, which shows nobody its credentials.
    ///
    /// `environment` is all that the client knows, but for a path, a region and an empty home.
    pub async fn credentials(self, environment: &[(&str, &str)]) -> Result<Answer> {
        if self == Self::AwsCli {
            bail!("the AWS CLI v1 cannot show credentials: use its identity");
        }
        only(self.run(&["credentials"], environment, LIMIT).await?)
    }

    /// Calls `GetCallerIdentity` at an STS, as an application's first call.
    pub async fn identity(self, environment: &[(&str, &str)], endpoint: &str) -> Result<Answer> {
        match self {
            Self::AwsCli => cli_identity(environment, endpoint).await,
            Self::Boto3 | Self::JavaScript | Self::Rust => {
                only(self.run(&["identity", endpoint], environment, LIMIT).await?)
            }
        }
    }

    /// Calls `GetCallerIdentity` with one client until the access key changes; the first answer and the changed one.
    /// Fails if it has not changed after `limit`. Not for the AWS CLI, which keeps nothing between calls.
    pub async fn refresh(
        self,
        environment: &[(&str, &str)],
        endpoint: &str,
        limit: Duration,
    ) -> Result<(Answer, Answer)> {
        if self == Self::AwsCli {
            bail!("the AWS CLI keeps no credentials between calls: there is nothing to refresh");
        }
        let seconds = limit.as_secs_f64().to_string();
        let answers = self.run(&["refresh", endpoint, &seconds], environment, limit + LIMIT).await?;
        match <[Answer; 2]>::try_from(answers) {
            Ok([first, changed]) => Ok((first, changed)),
            Err(answers) => bail!("{self:?} did not change its credentials within {limit:?}: {answers:?}"),
        }
    }

    async fn run(
        self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Vec<Answer>> {
        let mut command = match self {
            Self::Boto3 => {
                let mut command = isolated(tools::path("python")?);
                command.arg(script("boto3_client.py"));
                command
            }
            Self::JavaScript => {
                let mut command = isolated("node");
                command.arg(script("js_v3_client.mjs")).env("ROLECALL_NODE_MODULES", tools::path("node")?);
                command
            }
            Self::Rust => isolated(binaries::binary("rust-sdk-client")?),
            Self::AwsCli => bail!("the AWS CLI is no client program of ours"),
        };
        command.args(arguments);
        let ended = run(self, command, environment, limit).await?;
        ensure!(ended.success, "the client for {self:?} failed\n{}", ended.logs);
        let lines = ended.stdout.lines();
        lines.map(|line| serde_json::from_str(line).with_context(|| format!("read {line}"))).collect()
    }
}

async fn cli_identity(environment: &[(&str, &str)], endpoint: &str) -> Result<Answer> {
    #[derive(Deserialize)]
    struct Identity {
        #[serde(rename = "Arn")]
        arn: String,
    }

    let mut command = isolated(tools::path("python")?);
    command.args([
        "-m",
        "awscli",
        "sts",
        "get-caller-identity",
        "--output",
        "json",
        "--endpoint-url",
        endpoint,
    ]);
    let started = Instant::now();
    let ended = run(Sdk::AwsCli, command, environment, LIMIT).await?;
    let elapsed_seconds = started.elapsed().as_secs_f64();
    let (arn, error) = match ended.success {
        true => (Some(serde_json::from_str::<Identity>(&ended.stdout).context(ended.stdout)?.arn), None),
        false => (None, Some(ended.logs)),
    };
    let (access_key_id, secret_sha256, token_sha256, expires_at) = (None, None, None, None);
    Ok(Answer { access_key_id, secret_sha256, token_sha256, expires_at, arn, error, elapsed_seconds })
}

struct Ended {
    success: bool,
    stdout: String,
    logs: String,
}

/// A command with nothing of our own environment that could give it credentials or a proxy.
fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Process::command(program);
    command.env_clear();
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
    // The machine that the tests run on may have a metadata service, which is no business of theirs.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Runs an [`isolated`] command to its end.
async fn run(sdk: Sdk, mut command: Command, environment: &[(&str, &str)], limit: Duration) -> Result<Ended> {
    let scratch = Scratch::new("sdk")?;
    command.env("HOME", scratch.path()).current_dir(scratch.path()).envs(environment.iter().copied());
    let process = Process::spawn_with_stdout(&format!("{sdk:?}").to_lowercase(), command, scratch.path())?;
    let success = process.exit(limit).await?.success();
    Ok(Ended { success, stdout: process.stdout()?, logs: process.logs() })
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name)
}

fn only(answers: Vec<Answer>) -> Result<Answer> {
    match <[Answer; 1]>::try_from(answers) {
        Ok([answer]) => Ok(answer),
        Err(answers) => bail!("one answer was expected: {answers:?}"),
    }
}
