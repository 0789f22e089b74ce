//! `lookup`: the pod at an address or with a uid, and the warm credentials of a pod, on nodes with few and many pods.

use std::{
    future::pending,
    hint::black_box,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use criterion::{BenchmarkId, Criterion};
use fastrand::Rng;
use prometheus_client::registry::Registry;
use rolecall_contract::SessionDuration;
use rolecall_daemon::{
    credentials::{
        Config, CredentialManager, Issued, Metrics, SessionNameTemplate, SessionRequest, Sts, StsError,
    },
    identity::PodUid,
    pods::{AddressOwner, PodTable, UidLookup},
    sessions::{self, Sessions},
    token::{Token, volume::TokenSource},
};
use rolecall_process::time::Clock;
use rolecall_sandbox::KubeletDir;
use tokio::{runtime::Runtime, time::sleep};
use zeroize::Zeroizing;

use crate::{
    cpu_time::CpuTime,
    pods::{self, COUNTS, NODE, address, uid},
};

pub(crate) fn run(criterion: &mut Criterion<CpuTime>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut group = criterion.benchmark_group("lookup");
    for count in COUNTS {
        let table = pods::table(count)?;
        // Another pod each time, as on a node where all of them ask.
        let addresses = shuffled((0..count).map(address).collect());
        let uids = shuffled((0..count).map(|index| uid(index).parse()).collect::<Result<Vec<PodUid>, _>>()?);
        let (manager, requests) = warm(&runtime, &table)?;
        let requests = shuffled(requests);
        // To find nothing would take another time.
        let at_address = |address: &IpAddr| matches!(table.by_address(*address), AddressOwner::One(_));
        let with_uid = |uid: &PodUid| matches!(table.by_uid(uid), UidLookup::Live(_));
        let is_warm = |request: &SessionRequest| manager.valid(&request.key).is_some();
        ensure!(addresses.iter().all(at_address), "there is an address without its pod");
        ensure!(uids.iter().all(with_uid), "there is a uid without its pod");
        ensure!(
            requests.len() == count && requests.iter().all(is_warm),
            "there is a pod without credentials"
        );
        let mut turns = addresses.iter().cycle();
        group.bench_function(BenchmarkId::new("the pod at an address", count), |bencher| {
            bencher.iter(|| table.by_address(black_box(*next(&mut turns))));
        });
        let mut turns = uids.iter().cycle();
        group.bench_function(BenchmarkId::new("the pod with a uid", count), |bencher| {
            bencher.iter(|| table.by_uid(black_box(next(&mut turns))));
        });
        let mut turns = requests.iter().cycle();
        group.bench_function(BenchmarkId::new("the warm answer of a key", count), |bencher| {
            bencher.iter(|| manager.valid(black_box(&next(&mut turns).key)).map(|it| it.reply()));
        });
    }
    group.finish();
    Ok(())
}

/// In an order that no cache foresees, the same in each run.
fn shuffled<T>(mut items: Vec<T>) -> Vec<T> {
    Rng::with_seed(1).shuffle(&mut items);
    items
}

fn next<'a, T: 'a>(turns: &mut impl Iterator<Item = &'a T>) -> &'a T {
    turns.next().expect("turns are taken without an end, among one pod at least")
}

/// Credentials of every pod of the table, and what was asked for.
fn warm(runtime: &Runtime, table: &PodTable) -> Result<(CredentialManager, Vec<SessionRequest>)> {
    let kubelet = KubeletDir::new()?;
    let sessions = Sessions::new(sessions::Config {
        name: SessionNameTemplate::default(),
        duration: SessionDuration::MAX,
        cluster: String::new(),
        node: NODE.to_owned(),
    });
    let mut requests: Vec<_> = table.live().iter().filter_map(|pod| sessions.own(pod)).collect();
    // The table has them in another order in each run.
    requests.sort_by(|a, b| a.key.pod.cmp(&b.key.pod));
    let (manager, worker) = CredentialManager::new(
        Config::default(),
        Grants,
        TokenSource::new(kubelet.path().to_owned()),
        Clock::system(),
        Metrics::register(&mut Registry::default()),
    );
    for request in &requests {
        let volume = request.volumes.first().context("each pod has a token volume")?;
        kubelet.write_token(request.key.pod.as_str(), &volume.volume, &volume.path, "token")?;
        manager.warm(request.clone());
    }
    let all_are_warm = async {
        while !requests.iter().all(|request| manager.valid(&request.key).is_some()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = worker.run(pending()) => {}
            () = all_are_warm => {}
        }
    });
    Ok((manager, requests))
}

/// Grants a session of 12 hours, with values as long as AWS's.
struct Grants;

impl Sts for Grants {
    async fn assume_role_with_web_identity(
        &self,
        _request: &SessionRequest,
        _token: &Token,
    ) -> Result<Issued, StsError> {
        Ok(Issued {
            access_key_id: "ASIAEXAMPLEEXAMPLE12".to_owned(),
            secret_access_key: Zeroizing::new("s".repeat(40)),
            session_token: Zeroizing::new("t".repeat(800)),
            expires_at: SystemTime::now() + Duration::from_secs(12 * 3600),
            assumed_role_arn: None,
            request_id: None,
        })
    }
}
