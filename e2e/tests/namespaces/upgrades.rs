//! One daemon takes over from another, with pods that ask all the time from networks of their own.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::{
    daemon::{Surroundings, cleaned, cleanup as run_cleanup},
    network::{ENDPOINT, Link, Node, Pod, run, wait_until},
};

pub fn without_a_failed_request() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let pods = [(Link::Bridge, 2), (Link::Bridge, 3), (Link::Routed, 2), (Link::Routed, 3)];
    let pods: Vec<(Pod, String)> = pods
        .into_iter()
        .enumerate()
        .map(|(index, (link, number))| {
            let pod = node.pod(link, number);
            let token = surroundings.pod(&format!("orders-{index}"), &pod).token().unwrap();
            (pod, token)
        })
        .collect();
    let handover = format!("--handover-socket={}", surroundings.path("handover/handover.sock").display());
    let mut serving = surroundings.start_as("first", &[&handover]);
    let (stop, answered) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let wait_for_more = || {
        let enough = answered.load(Ordering::SeqCst) + 2 * ENDPOINT.len() * pods.len();
        wait_until("every pod was answered", || {
            stop.load(Ordering::SeqCst) || enough <= answered.load(Ordering::SeqCst)
        });
    };
    thread::scope(|scope| {
        for (pod, token) in &pods {
            scope.spawn(move || {
                // One that fails ends the others, and the test.
                let stops = StopsOnPanic(stop);
                while !stop.load(Ordering::SeqCst) {
                    for endpoint in ENDPOINT {
                        assert_eq!(pod.asks(endpoint, Some(token)), "200 orders", "{pod:?}");
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                }
                drop(stops);
            });
        }
        let stops = StopsOnPanic(stop);
        wait_for_more();
        for name in ["second", "third", "fourth", "fifth"] {
            let mut next = surroundings.spawn_as(name, &[&handover]);
            next.wait_for_log("took over from the daemon before");
            wait_for_more();
            serving.terminate();
            assert!(serving.end().success(), "{}", serving.log());
            serving = next;
            wait_until("the daemon is ready", || serving.is_ready());
        }
        wait_for_more();
        drop(stops);
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(surroundings.world.sts.call_count(), pods.len(), "{}", serving.log());
    assert_eq!(serving.metric("metadata_firewall_in_force"), 1.0);
}

pub fn cleanup() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    let path = surroundings.path("handover/handover.sock");
    let handover = format!("--handover-socket={}", path.display());
    let mut daemon = surroundings.start(&[&handover]);
    let while_it_runs = run_cleanup(&[&handover]);
    assert!(!while_it_runs.status.success());
    assert!(String::from_utf8_lossy(&while_it_runs.stderr).contains("still listens"), "{while_it_runs:?}");
    daemon.kill();
    assert!(path.exists(), "it stays");
    let removed = cleaned(&[&handover]);
    assert!(removed.contains(&format!("removed {}", path.display())), "{removed:?}");
    assert!(!path.exists());
    assert_eq!(cleaned(&[&handover]), ["nothing to remove"]);
}

pub fn replaces_the_way_of_blocking() {
    let (_node, surroundings) = (Node::new(), Surroundings::new());
    let handover = format!("--handover-socket={}", surroundings.path("handover/handover.sock").display());
    let _old = surroundings.start_as("old", &[&handover, "--metadata-firewall=nftables"]);
    // As long as the old one serves, it puts its rules back.
    surroundings.set_outage(true);
    let flags = ["--metadata-firewall=iptables", "--iptables=iptables-nft"];
    let mut new = surroundings.spawn_as("new", &[&[handover.as_str()][..], &flags].concat());
    new.wait_for_log("which a daemon with another --metadata-firewall has left");
    let is_there = || run("nft list tables inet").contains("rolecall");
    wait_until("the old daemon has put its rules back", is_there);
    surroundings.set_outage(false);
    new.wait_for_log("took over from the daemon before");
    wait_until("the rules of the old daemon are gone for good", || !is_there());
    wait_until("those of the new one are in force", || run("iptables-nft-save").contains("ROLECALL"));
}

/// Ends the loops of all when one of them fails.
struct StopsOnPanic<'a>(&'a AtomicBool);

impl Drop for StopsOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
