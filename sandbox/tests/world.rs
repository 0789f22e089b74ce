//! The parts of a world fit together.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use rolecall_sandbox::{PodBuilder, TokenClaims, World};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ROLE: &str = "arn:aws:iam::111122223333:role/orders";

fn orders() -> PodBuilder {
    PodBuilder::new("demo", "orders-0").service_account("orders").role(ROLE)
}

/// Status of the exchange of this token for the role's credentials.
async fn exchange(world: &World, token: &str) -> u16 {
    let body = format!(
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=test\
         &WebIdentityToken={token}"
    );
    let request = format!(
        "POST / HTTP/1.1\r\nHost: sts\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", world.sts.port())).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_pods_token_on_disk_gets_its_roles_credentials() {
    let world = World::start().await.unwrap();
    let pod = world.pod(orders()).unwrap();
    assert_eq!(exchange(&world, &pod.token().unwrap()).await, 200);
    let session = &world.sts.issued()[0];
    assert_eq!(session.subject.as_deref(), Some("system:serviceaccount:demo:orders"));

    let stored = world.cluster.get("demo", "orders-0").unwrap();
    assert_eq!(stored["metadata"]["uid"], *pod.uid());
    assert_eq!(stored["spec"]["nodeName"], "demo-node");
    let other = world.pod(
        PodBuilder::new("demo", "reports-0")
            .service_account("reports")
            .role("arn:aws:iam::111122223333:role/reports"),
    );
    assert_eq!(exchange(&world, &other.unwrap().token().unwrap()).await, 403);
}

#[tokio::test]
async fn two_service_accounts_may_share_a_role() {
    let world = World::start().await.unwrap();
    let one = world.pod(orders()).unwrap();
    let other = world.pod(PodBuilder::new("prod", "orders-0").service_account("orders").role(ROLE)).unwrap();
    assert_eq!(exchange(&world, &one.token().unwrap()).await, 200);
    assert_eq!(exchange(&world, &other.token().unwrap()).await, 200);
    one.distrust();
    assert_eq!(exchange(&world, &one.token().unwrap()).await, 403);
}

#[tokio::test]
async fn the_parts_of_a_pod_are_made_one_by_one() {
    let world = World::start().await.unwrap();
    let pod = world.prepare(orders());
    assert_eq!(world.cluster.get("demo", "orders-0"), None);
    assert!(pod.token().is_err());
    pod.write_token().unwrap();
    let first = pod.token().unwrap();
    assert_eq!(exchange(&world, &first).await, 403);
    pod.trust();
    assert_eq!(exchange(&world, &first).await, 200);
    pod.write_token().unwrap();
    assert_ne!(pod.token().unwrap(), first);

    pod.register();
    pod.run_at(&["10.0.0.1"]);
    let status =
        |world: &World| world.cluster.get("demo", "orders-0").map(|pod: Value| pod["status"].clone());
    assert_eq!(status(&world).unwrap()["podIP"], "10.0.0.1");
    pod.set_phase("Succeeded");
    assert_eq!(status(&world).unwrap()["phase"], "Succeeded");
    pod.delete();
    assert_eq!(status(&world), None);
    assert!(pod.token().is_ok());
    pod.remove().unwrap();
    assert!(pod.token().is_err());
}

#[tokio::test]
async fn a_pod_without_a_token_volume_gets_no_token() {
    let world = World::start().await.unwrap();
    let pod = world.pod(PodBuilder::new("demo", "plain")).unwrap();
    assert_eq!(pod.token_path(), None);
    assert!(!world.kubelet.path().join(pod.uid()).exists());
}

#[tokio::test]
async fn a_token_of_one_pod_can_be_put_in_the_place_of_anothers() {
    let world = World::start().await.unwrap();
    let pod = world.pod(orders()).unwrap();
    let expired = world.issuer.mint(&TokenClaims { ..pod.claims().expired() });
    pod.write(&expired).unwrap();
    assert_eq!(pod.token().unwrap(), expired);
    assert_eq!(exchange(&world, &expired).await, 400);
}

#[tokio::test]
async fn the_last_handle_takes_the_world_with_it() {
    let world = World::start().await.unwrap();
    let pod = world.pod(orders()).unwrap();
    let (path, port) = (world.kubelet.path().to_owned(), world.sts.port());
    drop(world);
    assert!(path.exists(), "a pod is a handle to its world");
    let mut open = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    drop(pod);
    assert!(!path.exists());
    assert!(matches!(open.read(&mut [0; 8]).await, Ok(0) | Err(_)));
}
