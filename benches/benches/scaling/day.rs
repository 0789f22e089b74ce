//! A day of one node on virtual time: does what renews the credentials of its pods grow?

use std::{
    fs,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rolecall_daemon::{
    credentials::{Issued, SessionRequest, Sts, StsError},
    token::{Token, volume::TokenSource},
};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{HOUR, STS_TIME, epoch, issued, request, start, tokens};

const PODS: usize = 250;
const HOURS: u32 = 24;

/// How often each pod asks.
const ASKS_EVERY: Duration = Duration::from_secs(300);

/// The hours over which memory is averaged, early and late.
const EARLY: [usize; 3] = [3, 4, 5];
const LATE: [usize; 2] = [22, 23];

/// Prints how much memory the process had, and how many exchanges it took.
pub(crate) async fn run() -> Result<()> {
    let tokens = tokens(PODS)?;
    let began = Instant::now();
    let sts = Steady { began, exchanges: Arc::default() };
    let (manager, worker) = start(sts.clone(), TokenSource::new(tokens.path().to_owned()), began);
    tokio::spawn(worker.run(pending()));
    let requests = (0..PODS).map(|pod| request(0, pod)).collect::<Result<Vec<_>>>()?;
    for request in &requests {
        manager.warm(request.clone());
    }
    sleep(ASKS_EVERY).await;
    let mut memory = Vec::new();
    for hour in 1..=HOURS {
        while began.elapsed() < hour * HOUR {
            for request in &requests {
                let valid = manager.valid(&request.key).context("a pod was without credentials")?;
                ensure!(!valid.reply().is_empty(), "a pod has an empty answer");
            }
            sleep_until((Instant::now() + ASKS_EVERY).min(began + hour * HOUR)).await;
        }
        memory.push(own_memory()?);
    }
    let mean = |hours: &[usize]| hours.iter().map(|hour| memory[*hour]).sum::<f64>() / hours.len() as f64;
    let result = json!({
        "pods": PODS,
        "renewals": sts.exchanges.load(Ordering::Relaxed) - PODS as u64,
        "early_mib": mean(&EARLY),
        "late_mib": mean(&LATE),
    });
    println!("result: {result}");
    Ok(())
}

/// Grants sessions of an hour, and counts them; keeps nothing else, so that it does not grow itself.
#[derive(Clone)]
struct Steady {
    began: Instant,
    exchanges: Arc<AtomicU64>,
}

impl Sts for Steady {
    async fn assume_role_with_web_identity(
        &self,
        _request: &SessionRequest,
        _token: &Token,
    ) -> Result<Issued, StsError> {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        sleep(STS_TIME).await;
        // As long as AWS's token is.
        Ok(issued(&"t".repeat(800), epoch() + self.began.elapsed() + HOUR))
    }
}

/// Memory of this process that is no file's, in MiB.
fn own_memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes / 1024.0)
}
