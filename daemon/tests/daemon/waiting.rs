//! What happens to a daemon while another one serves that is to hand over to it.

use std::sync::Arc;

use rolecall_daemon::{app::StartError, node::FollowError};
use rolecall_process::{drain::End, program::Error};
use rolecall_sandbox::world::World;
use tokio::net::UnixListener;

use super::app::start;

#[tokio::test]
async fn a_part_that_ends_while_another_daemon_serves_ends_the_one_that_waits() {
    let world = World::start().await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("handover.sock");
    let serving = Arc::new(UnixListener::bind(&socket).unwrap());
    let looked_at = serving.clone();
    let follow = async move {
        // First it is looked for whether it is alone; by the second time it waits.
        for _ in 0..2 {
            drop(looked_at.accept().await.unwrap());
        }
        FollowError::Closed
    };
    let flags = format!("--handover-socket={}", socket.display());
    let Err(error) = start(&world, scratch.path(), &flags, follow).await else { panic!("it serves") };
    let StartError::EssentialTask(ended) = &error else { panic!("{error}") };
    assert_eq!((ended.name, ended.end), ("node addresses", End::Returned));
    // By which the process says that a part of it ended that must not.
    assert!(matches!(Error::from(error), Error::EssentialTask(_)));
    drop(serving);
}
