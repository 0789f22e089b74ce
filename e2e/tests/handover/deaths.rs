//! Deaths of the new daemon in the middle, and of either at moments that nobody chooses.

use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    load::Load,
    node::{Daemon, LIMIT, Node},
    peer::Peer,
};

/// How far a new daemon comes before it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// Started, as a process of its own.
    Starting,
    /// Knows the pods and asks, as a process of its own; the old one has not come to hear of it.
    Unheard,
    /// Connected.
    Silent,
    /// Said hello, and reads no answer.
    Asking,
    /// Has the sockets.
    Offered,
    /// Has said that it is ready to serve.
    Committed,
    /// Was told to serve, listens for the next daemon, and does not serve yet.
    Released,
}

const NEW_DIES: [Dies; 7] = [
    Dies::Starting,
    Dies::Unheard,
    Dies::Silent,
    Dies::Asking,
    Dies::Offered,
    Dies::Committed,
    Dies::Released,
];

/// How often in a row.
const ROUNDS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_times_a_new_daemon_dies_the_old_one_serves_on_and_the_next_takes_over() {
    let node = Node::new().await;
    let pods: Vec<_> = (0..4).map(|number| node.pod(&format!("orders-{number}"))).collect();
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    let mut serving = node.start(&[]).await;
    node.warm(&pods).await;
    let load = Load::start(node.endpoint, &tokens);
    for round in 0..ROUNDS {
        let dies = NEW_DIES[round % NEW_DIES.len()];
        if let Dies::Starting | Dies::Unheard = dies {
            // It cannot come further than is wanted here.
            serving.process.signal(Signal::SIGSTOP).unwrap();
            let new = node.spawn(&[]);
            let moment = if dies == Dies::Starting { "starting" } else { "the pods of the node are known" };
            new.logged(moment).await;
            new.process.kill().unwrap();
            serving.process.signal(Signal::SIGCONT).unwrap();
            serving = next_takes_over(&node, serving, &load, dies).await;
            continue;
        }
        let mut new = Peer::connect(&node.handover_socket());
        let mut its_own = None;
        match dies {
            Dies::Starting | Dies::Unheard | Dies::Silent => {}
            Dies::Asking => new.say_hello(1),
            Dies::Offered => {
                new.say_hello(1);
                assert!(new.hear().unwrap()["Offer"].is_object());
            }
            Dies::Committed => {
                new.say_hello(1);
                assert!(new.hear().unwrap()["Offer"].is_object());
                // It finds the message and the death together.
                serving.process.signal(Signal::SIGSTOP).unwrap();
                new.say(&json!("Commit"));
            }
            Dies::Released => {
                new.say_hello(1);
                assert!(new.hear().unwrap()["Offer"].is_object());
                new.say(&json!("Commit"));
                assert_eq!(new.hear(), Some(json!("Release")));
                let draft = node.scratch.path().join("handover/draft");
                its_own = Some(UnixListener::bind(&draft).unwrap());
                std::fs::rename(draft, node.handover_socket()).unwrap();
                // However long it takes, somebody accepts.
                load.wait_for(32).await;
            }
        }
        // In the order in which the kernel closes the files of a process that dies.
        drop(new);
        drop(its_own);
        if dies == Dies::Committed {
            serving.process.signal(Signal::SIGCONT).unwrap();
        }
        serving = next_takes_over(&node, serving, &load, dies).await;
    }
    let (answered, failures) = load.stop().await;
    assert_eq!(failures, [""; 0], "of {answered}");
    assert_eq!(node.world.sts.call_count(), pods.len(), "one exchange for each pod, ever");
}

/// After a death of a new daemon: `serving` serves, and the next one takes over from it.
async fn next_takes_over(node: &Node, serving: Daemon, load: &Load, dies: Dies) -> Daemon {
    load.wait_for(8).await;
    assert!(serving.is_ready().await, "{dies:?}\n{}", serving.process.logs());
    let next = node.start(&[]).await;
    next.logged("took over from the daemon before").await;
    serving.logged("what is under way is finished here").await;
    // Those who keep a connection to the old one are told to connect anew.
    load.wait_for(16).await;
    serving.stop().await;
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_old_daemon_dies_with_the_sockets_shared_the_new_one_serves_on_them() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    std::fs::create_dir(node.handover_socket().parent().unwrap()).unwrap();
    for (commits, dies_slowly) in [(false, false), (true, false), (true, true)] {
        let path = node.handover_socket();
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let bind = |address| std::net::TcpListener::bind(address).unwrap();
        let sockets = [bind(node.endpoint), bind(node.admin), bind(node.metrics)];
        let new = node.spawn(&[]);
        let mut old = Peer::accept(&listener);
        // Connections that came in at the old one and that it has not accepted: they are in the socket.
        let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
        let doors = ["Endpoint", "Admin", "Metrics"];
        old.offer(&[(doors[0], &sockets[0]), (doors[1], &sockets[1]), (doors[2], &sockets[2])]);
        if commits {
            assert_eq!(old.hear(), Some(json!("Commit")));
        }
        drop(old);
        // The kernel closes one file after another: the new one comes to see who is there before the last has gone.
        let looks = dies_slowly.then(|| listener.accept().unwrap());
        drop((listener, sockets, looks));
        new.is_ready_soon().await;
        new.logged("took over from the daemon before").await;
        load.wait_for(8).await;
        assert_eq!(load.stop().await.1, [""; 0], "commits: {commits}");
        new.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_of_either_at_any_moment_leaves_one_healthy_daemon() {
    let node = Node::new().await;
    let pods: Vec<_> = (0..4).map(|number| node.pod(&format!("orders-{number}"))).collect();
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    let mut serving = node.start(&[]).await;
    node.warm(&pods).await;
    let load = Load::start(node.endpoint, &tokens);
    load.wait_for(16).await;
    // What is said by either daemon on the way, in this order.
    let moments = [
        (false, "starting"),
        (false, "the pods of the node are known"),
        (true, "offer to hand over"),
        (false, "took over from the daemon before"),
        (true, "handed over to the next daemon"),
    ];
    for (by_old, moment) in moments {
        for kills_old in [false, true] {
            let new = node.spawn(&[]);
            let speaker = if by_old { &serving } else { &new };
            speaker.logged(moment).await;
            let (dead, alive) = if kills_old { (serving, new) } else { (new, serving) };
            // How far they have come by now, nobody knows: it may be that only the dead one had the sockets.
            load.death(true);
            dead.process.kill().unwrap();
            if !kills_old && has_handed_over(&alive).await {
                // The only daemon died; the kubelet starts it again.
                serving = node.start(&[]).await;
                alive.stop().await;
            } else {
                alive.is_ready_soon().await;
                serving = alive;
            }
            load.death_is_over();
            load.wait_for(16).await;
            assert_eq!(load.failures(), [""; 0], "killed the old one: {kills_old}, at {moment:?}");
        }
    }
    assert_eq!(load.stop().await.1, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_of_the_only_daemon_the_next_starts_cold_at_its_socket() {
    let node = Node::new().await;
    let pods = [node.pod("orders")];
    let first = node.start(&[]).await;
    node.warm(&pods).await;
    first.process.kill().unwrap();
    assert!(node.handover_socket().exists(), "a stale file");
    let second = node.start(&[]).await;
    let load = Load::start(node.endpoint, &[pods[0].token().unwrap()]);
    load.wait_for(4).await;
    assert_eq!(load.stop().await.1, [""; 0]);
    assert_eq!(node.world.sts.call_count(), 2);
    let third = node.start(&[]).await;
    third.logged("took over from the daemon before").await;
    assert_eq!(node.world.sts.call_count(), 2);
    second.stop().await;
}

/// Whether it has handed over, once it knows.
async fn has_handed_over(daemon: &Daemon) -> bool {
    const DONE: &str = "handed over to the next daemon";
    daemon
        .process
        .wait_until_ready(LIMIT, async || {
            let log = daemon.process.logs();
            let count = |text| log.matches(text).count();
            // Not "cannot offer to hand over", which is one that did not come about.
            count(": offer to hand over") == count(DONE) + count("the hand-over did not come about")
        })
        .await
        .unwrap();
    daemon.process.logs().contains(DONE)
}
