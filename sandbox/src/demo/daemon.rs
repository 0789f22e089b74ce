//! The daemon as a child process.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rolecall_sandbox::World;
use rolecall_sandbox::world::NODE;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Addresses, REGION};

/// Time to drain.
const GRACE: Duration = Duration::from_secs(10);

/// Variables that would send requests elsewhere than to the sandbox.
pub(super) const PROXY_VARIABLES: [&str; 6] =
    ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// A running daemon. Dropping it kills the process.
pub(super) struct Daemon(Child);

impl Daemon {
    /// Starts `binary` on the demo's node; its files go to `directory`, its log to this terminal.
    pub(super) fn start(
        binary: &Path,
        world: &World,
        directory: &Path,
        addresses: Addresses,
    ) -> Result<Self> {
        let kubeconfig = directory.join("kubeconfig");
        fs::write(&kubeconfig, world.cluster.kubeconfig()).context("write the kubeconfig")?;
        let mut command = Command::new(binary);
        command
            .args(["--node-name", NODE, "--region", REGION, "--log-format", "text"])
            .args(["--log-level", "info,rolecall_daemon::credentials::fetch=debug"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--pods-dir")
            .arg(world.kubelet.path())
            .args(["--sts-endpoint", &world.sts.url()])
            .args(["--listen", &addresses.endpoint.to_string()])
            // The demo runs without rights, and leaves this machine as it is.
            .args(["--metadata-firewall", "off"])
            .args(["--admin-listen", &addresses.admin.to_string()])
            .arg("--admin-socket")
            .arg(directory.join("admin.sock"))
            .args(["--metrics-listen", &addresses.metrics.to_string()])
            // Ctrl-C in the terminal is for the demo alone, which then ends the daemon in order.
            .process_group(0)
            .kill_on_drop(true);
        for variable in PROXY_VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        Ok(Self(child))
    }

    /// Waits until the process ends.
    pub(super) async fn exited(&mut self) -> Result<ExitStatus> {
        self.0.wait().await.context("wait for the daemon")
    }

    /// Ends the process as the kubelet would: a request, some time, and force.
    pub(super) async fn stop(mut self) -> Result<()> {
        // None: it has ended, and been waited for.
        let Some(id) = self.0.id() else { return Ok(()) };
        let id = Pid::from_raw(id.try_into().context("read the daemon's process id")?);
        kill(id, Signal::SIGTERM).context("end the daemon")?;
        if timeout(GRACE, self.0.wait()).await.is_err() {
            self.0.kill().await.context("kill the daemon")?;
        }
        Ok(())
    }
}
