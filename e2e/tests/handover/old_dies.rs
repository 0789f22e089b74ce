//! Deaths of the old daemon, at each step and under load: two real daemons, and a go-between that holds the step.

use nix::sys::signal::Signal;

use super::{
    between::{Between, Meeting},
    load::Load,
    node::{Daemon, Node},
};

/// What has happened when the old daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// The new one has asked, and was not heard.
    Unheard,
    /// Its offer has left, and was not read.
    Offered,
    /// The new one has everything and has said so, and was not heard.
    Committed,
    /// It has told the new one to serve, and was not heard.
    Releasing,
    /// The new one serves, and was not heard. Both accept.
    Released,
    /// The new one alone accepts.
    Retired,
}

const OLD_DIES: [Dies; 6] =
    [Dies::Unheard, Dies::Offered, Dies::Committed, Dies::Releasing, Dies::Released, Dies::Retired];

/// How often in a row.
const ROUNDS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_times_the_old_daemon_dies_and_breaks_nothing_but_what_it_has_accepted() {
    let node = Node::new().await;
    let pods: Vec<_> = (0..4).map(|number| node.pod(&format!("orders-{number}"))).collect();
    let tokens: Vec<String> = pods.iter().map(|pod| pod.token().unwrap()).collect();
    let mut serving = node.start(&[]).await;
    let mut its_socket = node.handover_socket();
    node.warm(&pods).await;
    let load = Load::start(node.endpoint, &tokens);
    load.wait_for(16).await;
    let mut exchanges = pods.len();
    for round in 0..ROUNDS {
        let dies = OLD_DIES[round % OLD_DIES.len()];
        let meeting = Meeting::at(node.scratch.path().join(format!("meeting-{round}/handover.sock")));
        let path = meeting.path().to_owned();
        let new = node.spawn_at(&path);
        let (between, hello) = meeting.begins(&its_socket);
        let broken = load.broken();
        if dies == Dies::Unheard {
            // Nobody else has the sockets yet: until the new one has bound its own, pods find nobody.
            load.death(true);
            serving.process.kill().unwrap();
            drop(between);
            new.is_ready_soon().await;
            load.death_is_over();
            exchanges += pods.len();
            node.world.sts.wait_for_requests(exchanges).await;
            assert!(!new.process.logs().contains("took over"), "{}", new.process.logs());
        } else {
            between.to_old(&hello);
            go_to(dies, &between, &serving, &new).await;
            serving.stand_still().await;
            // From here on it accepts nothing. Whoever connects now waits in the sockets that both have.
            load.death(false);
            load.death_is_over();
            let fresh = Load::start(node.endpoint, &tokens);
            fresh.wait_for_connections(2 * tokens.len()).await;
            serving.process.kill().unwrap();
            drop(between);
            if dies == Dies::Offered {
                new.process.signal(Signal::SIGCONT).unwrap();
            }
            new.is_ready_soon().await;
            fresh.wait_for(4 * tokens.len()).await;
            let (answered, failures) = fresh.stop().await;
            assert_eq!(failures, [""; 0], "{dies:?}, of {answered} that came after it stood still");
            new.logged("took over").await;
        }
        load.wait_for(4 * tokens.len()).await;
        assert_eq!(load.failures(), [""; 0], "{dies:?}, round {round}");
        match dies {
            // Those who kept a connection had it with the old one: that it was killed under load shows in them.
            Dies::Unheard | Dies::Offered | Dies::Committed | Dies::Releasing => {
                load.wait_until_broken(broken + tokens.len()).await;
            }
            Dies::Released | Dies::Retired => {}
        }
        if dies != Dies::Unheard {
            // Each client had one connection when it died.
            let broken = load.broken() - broken;
            assert!(broken <= 2 * tokens.len(), "{dies:?}: {broken} broken");
        }
        assert_eq!(node.world.sts.call_count(), exchanges, "{dies:?}, round {round}");
        (serving, its_socket) = (new, path);
    }
    let (answered, failures) = load.stop().await;
    assert_eq!(failures, [""; 0], "of {answered}");
}

/// Lets the two come as far as `dies` says; the old one has heard the hello.
async fn go_to(dies: Dies, between: &Between, old: &Daemon, new: &Daemon) {
    let offer = between.of_old("Offer");
    if dies == Dies::Offered {
        new.stand_still().await;
        return between.to_new(&offer);
    }
    between.to_new(&offer);
    drop(offer);
    let commit = between.of_new("Commit");
    if dies == Dies::Committed {
        return;
    }
    between.to_old(&commit);
    let release = between.of_old("Release");
    if dies == Dies::Releasing {
        return;
    }
    between.to_new(&release);
    let serving = between.of_new("Serving");
    if dies == Dies::Released {
        return;
    }
    between.to_old(&serving);
    old.logged("handed over to the next daemon").await;
}
