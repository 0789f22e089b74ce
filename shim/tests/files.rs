//! Files that others change: the certificate of cert-manager, the identities in a ConfigMap's volume.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rolecall_process::{drain, readiness::Readiness};
use rolecall_shim::{
    cache::{identities, latest::Latest},
    certificate::{
        FilesConfig, Names, Serving, files,
        mint::{self, Facts, Pair},
    },
    identities::Identities,
};
use tempfile::TempDir;
use tokio::time::sleep;

/// Longer than the pause between two readings.
const A_WHILE: Duration = Duration::from_secs(6);

/// A volume as the kubelet fills it: the files' names lead through `..data`, which is exchanged as a whole.
struct Volume {
    folder: TempDir,
    version: u32,
}

impl Volume {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), version: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn fill(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = self.folder.path().join(format!("..v{}", self.version));
        fs::create_dir(&version).unwrap();
        for (name, content) in files {
            fs::write(version.join(name), content).unwrap();
            let link = self.path(name);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        let next = self.path("..data_tmp");
        symlink(&version, &next).unwrap();
        fs::rename(next, self.path("..data")).unwrap();
    }
}

fn pair() -> Pair {
    let day = Duration::from_secs(86_400);
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let authority = mint::authority(now, day).unwrap();
    let facts = Facts::read(authority.certificate.as_bytes()).unwrap();
    mint::serving(&authority, &facts, &Names::of_service("a", "b", &[]), now + day).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_read_again_and_what_was_good_stays_while_it_is_not() {
    let mut volume = Volume::new();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let serving = Serving::new(provider, &mut Registry::default());
    let (readiness, errors) = (Readiness::default(), Counter::default());
    let (trigger, watch) = drain::new();
    let config = FilesConfig { certificate: volume.path("tls.crt"), key: volume.path("tls.key") };
    let loaded = readiness.latch("certificate loaded");
    trigger.tasks().spawn("files", files::follow(config, serving.clone(), errors.clone(), loaded, watch));

    sleep(A_WHILE).await;
    assert!(!readiness.is_ready() && 0 < errors.get());

    let (first, second) = (pair(), pair());
    let der = |pair: &Pair| Facts::read(pair.certificate.as_bytes()).unwrap().der;
    volume.fill(&[("tls.crt", &first.certificate), ("tls.key", &first.key)]);
    sleep(A_WHILE).await;
    assert!(readiness.is_ready());
    assert_eq!(serving.facts().unwrap().der, der(&first));

    // The certificate of the one with the key of the other, and then nothing that could be served at all.
    for broken in [&first.key, "nothing", ""] {
        volume.fill(&[("tls.crt", &second.certificate), ("tls.key", broken)]);
        let before = errors.get();
        sleep(A_WHILE).await;
        assert!(before < errors.get());
        assert_eq!(serving.facts().unwrap().der, der(&first));
    }
    volume.fill(&[("tls.crt", &second.certificate), ("tls.key", &second.key)]);
    sleep(A_WHILE).await;
    assert_eq!(serving.facts().unwrap().der, der(&second));
    assert_eq!(trigger.finish(A_WHILE).await, []);
}

#[tokio::test(start_paused = true)]
async fn identities_are_read_again_when_their_volume_is_exchanged() {
    let mut volume = Volume::new();
    let (readiness, latest) = (Readiness::default(), Latest::<Identities>::default());
    let (trigger, watch) = drain::new();
    let known = readiness.latch("identities read");
    let metrics = identities::Metrics::register(&mut Registry::default());
    let path = volume.path("config.json");
    trigger.tasks().spawn("identities", identities::run(path.clone(), latest.clone(), metrics, known, watch));
    let text = |name: &str| format!(r#"{{"identities":[{{"namespace":"shop","serviceAccount":"{name}"}}]}}"#);

    volume.fill(&[("config.json", r#"{"identities":[{"#)]);
    sleep(A_WHILE).await;
    assert!(!readiness.is_ready());
    volume.fill(&[("config.json", &text("orders"))]);
    sleep(A_WHILE).await;
    assert!(readiness.is_ready() && latest.get().contains("shop", "orders"));

    volume.fill(&[("config.json", &text("carts"))]);
    sleep(A_WHILE).await;
    assert!(latest.get().contains("shop", "carts") && !latest.get().contains("shop", "orders"));

    volume.fill(&[("config.json", r#"{"identities":[{"#)]);
    sleep(A_WHILE).await;
    fs::remove_file(&path).unwrap();
    sleep(A_WHILE).await;
    assert!(latest.get().contains("shop", "carts"));
    assert_eq!(trigger.finish(A_WHILE).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_file_of_identities_that_is_not_there_keeps_nobody_waiting_and_is_read_when_it_comes() {
    let mut volume = Volume::new();
    let (readiness, latest) = (Readiness::default(), Latest::<Identities>::default());
    let (trigger, watch) = drain::new();
    let known = readiness.latch("identities read");
    let mut registry = Registry::default();
    let metrics = identities::Metrics::register(&mut registry);
    let path = volume.path("config.json");
    trigger.tasks().spawn("identities", identities::run(path, latest.clone(), metrics, known, watch));
    let errors = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("shim_identities_errors_total "));
        line.unwrap().parse::<u64>().unwrap()
    };

    sleep(A_WHILE).await;
    assert!(readiness.is_ready() && latest.get().is_empty() && 0 < errors());
    volume.fill(&[("config.json", r#"{"identities":[{"namespace":"shop","serviceAccount":"orders"}]}"#)]);
    sleep(A_WHILE).await;
    assert!(latest.get().contains("shop", "orders"));
    assert_eq!(trigger.finish(A_WHILE).await, []);
}
