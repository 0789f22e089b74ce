//! The security decision with pods on real addresses.

use crate::{
    daemon::Surroundings,
    network::{ENDPOINT, Link, Node, ask},
};

pub fn own_address_alone() {
    let (node, surroundings) = (Node::new(), Surroundings::new());
    let [a, b] = [node.pod(Link::Bridge, 2), node.pod(Link::Bridge, 3)];
    let [c, nobody] = [node.pod(Link::Routed, 2), node.pod(Link::Routed, 3)];
    let known = [("a", &a), ("b", &b), ("c", &c)].map(|(name, pod)| surroundings.pod(name, pod));
    let [token_a, token_b, token_c] = known.each_ref().map(|pod| pod.token().unwrap());
    let without_address = surroundings.world.pod(surroundings.builder("new")).unwrap();
    let on_host = surroundings.world.pod(surroundings.builder("host").host_network(true)).unwrap();
    let (token_new, token_host) = (without_address.token().unwrap(), on_host.token().unwrap());
    let daemon = surroundings.start(&["--metadata-firewall=off"]);
    for endpoint in ENDPOINT {
        for (pod, token, expect) in [
            (&a, Some(&token_a), "200 orders"),
            (&b, Some(&token_b), "200 orders"),
            (&c, Some(&token_c), "200 orders"),
            // Stolen, over the bridge and over a route.
            (&b, Some(&token_a), "403 wrong_pod"),
            (&c, Some(&token_a), "403 wrong_pod"),
            (&a, Some(&token_c), "403 wrong_pod"),
            // A pod that has an address does not come from nowhere.
            (&nobody, Some(&token_a), "403 wrong_pod"),
            // One whose address is not known yet does, but not from where another pod lives.
            (&nobody, Some(&token_new), "200 orders"),
            (&a, Some(&token_new), "403 wrong_pod"),
            (&nobody, Some(&token_host), "403 wrong_pod"),
            (&a, None, "401 token_required"),
            (&nobody, None, "503 pod_unknown"),
        ] {
            assert_eq!(pod.asks(endpoint, token.map(String::as_str)), expect, "{pod:?}: {}", daemon.log());
        }
        for (token, expect) in [
            (Some(&token_host), "200 orders"),
            (Some(&token_a), "403 wrong_pod"),
            (Some(&token_new), "403 wrong_pod"),
            (None, "403 host_network_needs_token"),
        ] {
            assert_eq!(ask(endpoint, token.map(String::as_str)), expect, "the node: {}", daemon.log());
        }
    }
}
