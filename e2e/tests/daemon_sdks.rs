//! Unmodified SDKs get and refresh their credentials through the daemon, however slow STS is.
//!
//! The pods are on the host network: on loopback the peer is the node's own address, from which the daemon takes
//! nothing but the token of such a pod.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use futures_util::future::join_all;
use rolecall_e2e::daemon::{Daemon, Settings};
use rolecall_e2e::{Moto, Sdk};
use rolecall_sandbox::cluster::pod::PodBuilder;
use rolecall_sandbox::world::{NODE, World, WorldPod};

const SDKS: [Sdk; 3] = [Sdk::Boto3, Sdk::JavaScript, Sdk::Rust];

async fn daemon(world: &World, sts: &str) -> Daemon {
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), world.cluster.kubeconfig()).unwrap();
    let settings = Settings {
        node: NODE,
        kubeconfig: kubeconfig.path(),
        pods_dir: world.kubelet.path(),
        sts,
        // Without a second attempt beside a slow one there is one call for each pod, to be counted.
        flags: &["--sts-hedge-after=15s"],
    };
    Daemon::start(settings).await.unwrap()
}

fn pod(world: &World, name: &str) -> WorldPod {
    let role = format!("arn:aws:iam::111122223333:role/{name}");
    let builder = PodBuilder::new("shop", name).service_account(name).role(&role).host_network(true);
    world.pod(builder).unwrap()
}

fn name(sdk: Sdk) -> String {
    format!("{sdk:?}").to_lowercase()
}

fn environment(daemon: &Daemon, pod: &WorldPod) -> Vec<(&'static str, String)> {
    daemon.environment(&pod.token_path().unwrap())
}

fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    environment.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

/// Each SDK asks before anything was fetched, once; STS answers only when all of them have asked, and so much later.
async fn first_requests_succeed_when_credentials_come_after(delay: Duration) {
    let world = World::start().await.unwrap();
    let daemon = daemon(&world, &world.sts.url()).await;
    let gate = world.sts.hold();
    let pods = SDKS.map(|sdk| pod(&world, &name(sdk)));
    let asking = join_all(SDKS.iter().zip(&pods).map(async |(sdk, pod)| {
        let environment = environment(&daemon, pod);
        sdk.credentials(&borrowed(&environment)).await.unwrap()
    }));
    let answering = async {
        daemon.wait_for_metric("rolecall_requests_in_progress", |waiting| waiting == 3.0).await.unwrap();
        tokio::time::sleep(delay).await;
        gate.release_all();
    };
    let (answers, ()) = tokio::join!(asking, answering);
    for (sdk, answer) in SDKS.into_iter().zip(answers) {
        let Some(key) = &answer.access_key_id else { panic!("{sdk:?} after {delay:?}: {answer:?}") };
        let issued = world.sts.session(key).unwrap();
        assert_eq!(issued.role_arn, format!("arn:aws:iam::111122223333:role/{}", name(sdk)), "{sdk:?}");
    }
    assert_eq!(world.sts.call_count(), 3, "one exchange for each pod");
}

#[tokio::test]
async fn first_requests_succeed_after_a_tenth_of_a_second() {
    first_requests_succeed_when_credentials_come_after(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn first_requests_succeed_after_one_second() {
    first_requests_succeed_when_credentials_come_after(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn first_requests_succeed_after_three_seconds() {
    first_requests_succeed_when_credentials_come_after(Duration::from_secs(3)).await;
}

#[tokio::test]
async fn first_requests_succeed_after_ten_seconds() {
    first_requests_succeed_when_credentials_come_after(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn every_sdk_is_who_its_pod_is() {
    let world = World::start().await.unwrap();
    let daemon = daemon(&world, &world.sts.url()).await;
    for sdk in Sdk::ALL {
        let pod = pod(&world, &name(sdk));
        let environment = environment(&daemon, &pod);
        let answer = sdk.identity(&borrowed(&environment), &world.sts.url()).await.unwrap();
        let expect = format!("arn:aws:sts::111122223333:assumed-role/{0}/shop.{0}", name(sdk));
        assert_eq!(answer.arn.as_deref(), Some(expect.as_str()), "{sdk:?}: {answer:?}");
    }
}

#[tokio::test]
async fn every_sdk_refreshes_across_an_expiry() {
    let world = World::start().await.unwrap();
    // Said to expire after 20 s, handed out for 15 s; the SDKs begin to ask again 5 s to 15 min before.
    world.sts.set_session_seconds(Some(80));
    let daemon = daemon(&world, &world.sts.url()).await;
    let refreshing = SDKS.map(|sdk| {
        let (daemon, world) = (&daemon, &world);
        async move {
            let pod = pod(world, &name(sdk));
            let environment = environment(daemon, &pod);
            let limit = Duration::from_secs(90);
            let (first, changed) =
                sdk.refresh(&borrowed(&environment), &world.sts.url(), limit).await.unwrap();
            assert_eq!(first.arn, changed.arn, "{sdk:?}: the session keeps its name: {changed:?}");
            assert_ne!(first.access_key_id, changed.access_key_id, "{sdk:?}");
        }
    });
    join_all(refreshing).await;
}

#[tokio::test]
async fn the_exchange_works_with_an_sts_that_is_not_ours() {
    let world = World::start().await.unwrap();
    let moto = Moto::start().await.unwrap();
    let daemon = daemon(&world, &moto.url()).await;
    for sdk in Sdk::ALL {
        let pod = pod(&world, &name(sdk));
        let environment = environment(&daemon, &pod);
        let answer = sdk.identity(&borrowed(&environment), &moto.url()).await.unwrap();
        let expect = format!("arn:aws:sts::111122223333:assumed-role/{0}/shop.{0}", name(sdk));
        assert_eq!(answer.arn.as_deref(), Some(expect.as_str()), "{sdk:?}: {answer:?}\n{}", moto.logs());
    }
    assert_eq!(world.sts.call_count(), 0);
}
