//! The check: real clients ask for both pods' credentials, and each gets its own role's.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rolecall_contract::endpoint;
use rolecall_sandbox::{World, WorldPod};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{REGION, http};

/// Asks for credentials as any program with boto3 does, and asks STS whose they are.
const SCRIPT: &str = include_str!("../../demo/check.py");

/// Runs every check, prints a line for each, and succeeds if all did.
pub(super) async fn run(
    python: &Path,
    world: &World,
    endpoint: SocketAddr,
    pods: &[WorldPod],
) -> Result<ExitCode> {
    let uri = format!("http://{endpoint}{}", endpoint::CREDENTIALS_PATH);
    let mut failures = 0;
    println!();
    for (index, pod) in pods.iter().enumerate() {
        let other = &pods[(index + 1) % pods.len()];
        for (what, outcome) in [
            ("boto3", with_boto3(python, world, &uri, pod).await),
            ("curl", with_curl(world, &uri, pod).await),
            ("other's role", anothers_role(endpoint, pod, other).await),
            ("no token", without_token(endpoint).await),
        ] {
            let name = format!("{}/{}", pod.namespace(), pod.name());
            match outcome {
                Ok(got) => println!("ok    {name:<13} {what:<13} {got}"),
                Err(error) => {
                    failures += 1;
                    println!("FAIL  {name:<13} {what:<13} {error:#}");
                }
            }
        }
    }
    if failures == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nWhat STS was asked:");
    for call in world.sts.calls() {
        let role = call.role_arn.as_deref().unwrap_or("-");
        println!("  {} {role} {}: {}", call.action, call.subject.as_deref().unwrap_or("-"), call.outcome);
    }
    Ok(ExitCode::FAILURE)
}

async fn with_boto3(python: &Path, world: &World, uri: &str, pod: &WorldPod) -> Result<String> {
    let token_file = pod.token_path().context("the pod has no token")?;
    let mut command = Command::new(python);
    command
        .arg("-")
        .env(endpoint::FULL_URI_ENV, uri)
        .env(endpoint::TOKEN_FILE_ENV, token_file)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_ENDPOINT_URL_STS", world.sts.url())
        // Whatever else this machine knows of AWS comes first for boto3, so it must not be found.
        .envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")])
        .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")]);
    for variable in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        endpoint::RELATIVE_URI_ENV,
    ] {
        command.env_remove(variable);
    }
    let identity = run_with_input(command, SCRIPT).await?;
    let arn = identity["Arn"].as_str().context("boto3 was told no ARN")?;
    let expect = format!("arn:aws:sts::111122223333:assumed-role/{}/", pod.name());
    ensure!(arn.starts_with(&expect), "is {arn}, not a session of {}", pod.role().unwrap_or("-"));
    Ok(format!("is {arn}"))
}

async fn with_curl(world: &World, uri: &str, pod: &WorldPod) -> Result<String> {
    let mut command = Command::new("curl");
    // The header comes on standard input: arguments can be read by everybody.
    command.args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--header", "@-", uri]);
    let reply = run_with_input(command, &format!("Authorization: {}\n", pod.token()?)).await?;
    let text = |name: &str| reply[name].as_str().with_context(|| format!("the answer has no {name}"));
    let session = world.sts.session(text("AccessKeyId")?).context("these credentials are not of this STS")?;
    let role = pod.role().context("the pod has no role")?;
    ensure!(session.role_arn == role && text("RoleArn")? == role, "has {session:?}, not a session of {role}");
    Ok(format!("has {role} until {}", text("Expiration")?))
}

async fn anothers_role(endpoint: SocketAddr, pod: &WorldPod, other: &WorldPod) -> Result<String> {
    let path = format!("{}/{}", endpoint::CREDENTIALS_PATH, other.role().context("the pod has no role")?);
    refused(endpoint, &path, Some(&pod.token()?)).await
}

async fn without_token(endpoint: SocketAddr) -> Result<String> {
    refused(endpoint, endpoint::CREDENTIALS_PATH, None).await
}

async fn refused(endpoint: SocketAddr, path: &str, token: Option<&str>) -> Result<String> {
    let (status, body) = http::get(endpoint, path, token).await?;
    let reply: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    ensure!(status == ::http::StatusCode::FORBIDDEN, "is answered with {status}");
    Ok(format!("is refused: {} {}", status.as_u16(), reply["code"].as_str().unwrap_or("without a code")))
}

/// Runs a command and reads the JSON it prints.
async fn run_with_input(mut command: Command, input: &str) -> Result<Value> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    stdin.write_all(input.as_bytes()).await.with_context(|| format!("write to {program}"))?;
    drop(stdin);
    let output = child.wait_with_output().await.with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("read what {program} printed"))
}
