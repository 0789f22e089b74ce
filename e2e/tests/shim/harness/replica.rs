//! A replica in this process, whose settings and certificate a test can reach.

use std::net::Ipv4Addr;
use std::ops::Deref;

use rolecall_process::telemetry;
use rolecall_shim::app::App;
use rolecall_shim::args;
use rolecall_shim::certificate::mint::Facts;
use rolecall_shim::config::Config;
use tempfile::TempDir;

use super::{Deployed, until};

/// The whole of the shim, less its process.
pub(crate) struct Replica {
    app: App,
    _folder: TempDir,
}

impl Replica {
    /// Starts one with these flags more, and settings `change`d that have no flag.
    pub(crate) async fn start(
        deployed: &Deployed,
        (address, port): (Ipv4Addr, u16),
        flags: &[String],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut line = vec!["rolecall-shim".to_owned()];
        line.extend(deployed.flags(address, port));
        line.extend(["--admin-listen=off".to_owned(), "--metrics-listen=off".to_owned()]);
        line.push(format!("--admin-socket={}", folder.path().join("admin.sock").display()));
        line.extend_from_slice(flags);
        let mut config = Config::try_from(args::parse_from(line).unwrap().run).unwrap();
        change(&mut config);
        let (_, log) = telemetry::with_writer(&config.log, std::io::sink);
        Self { app: App::start(config, log).await.unwrap(), _folder: folder }
    }

    /// Waits until it serves a certificate that `is_it`.
    pub(crate) async fn serves(&self, what: &str, is_it: impl Fn(&Facts) -> bool) {
        until(&format!("the replica serves {what}"), async || {
            self.certificate().is_some_and(|facts| is_it(&facts))
        })
        .await;
    }

    pub(crate) async fn drain(self) {
        self.app.drain().await;
    }
}

impl Deref for Replica {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}
