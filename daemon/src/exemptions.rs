//! Which pods may reach the instance metadata service: the operator says by ServiceAccount, never the pod.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use tokio::sync::watch;

use crate::pods::{Pod, PodTable};

/// A `namespace/serviceaccount` in which `*` stands for any text and `?` for any character of one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    namespace: String,
    service_account: String,
}

/// A text that is no [`Exemption`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write namespace/serviceaccount, where * and ? stand for other characters, such as kube-system/aws-*"
)]
pub struct ExemptionError;

impl Exemption {
    /// Whether it lets every pod pass.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        [&self.namespace, &self.service_account].iter().all(|part| part.bytes().all(|b| b == b'*'))
    }

    /// Whether `pod` is one of those meant.
    #[must_use]
    pub fn matches(&self, pod: &Pod) -> bool {
        is_match(&self.namespace, &pod.identity.namespace)
            && is_match(&self.service_account, &pod.identity.service_account)
    }
}

impl FromStr for Exemption {
    type Err = ExemptionError;

    fn from_str(text: &str) -> Result<Self, ExemptionError> {
        let (namespace, service_account) = text.trim().split_once('/').ok_or(ExemptionError)?;
        let is_pattern = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'*' | b'?')
                })
        };
        if is_pattern(namespace) && is_pattern(service_account) {
            Ok(Self { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
        } else {
            Err(ExemptionError)
        }
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

/// Tells the addresses of exempt pods, from the table's first complete list on, for as long as somebody listens.
pub async fn follow(
    exemptions: Vec<Exemption>,
    table: PodTable,
    addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
) {
    let mut changes = table.changes();
    loop {
        if table.synced() {
            let now = Some(exempt_addresses(&exemptions, &table.live()));
            addresses.send_if_modified(|last| {
                let is_new = *last != now;
                *last = now;
                is_new
            });
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = addresses.closed() => return,
        }
    }
}

/// The addresses that exempt pods have, and no other live pod.
fn exempt_addresses(exemptions: &[Exemption], live: &[impl AsRef<Pod>]) -> BTreeSet<IpAddr> {
    let is_exempt = |pod: &Pod| exemptions.iter().any(|exemption| exemption.matches(pod));
    let addresses = |exempt: bool| {
        let pods = live.iter().map(AsRef::as_ref).filter(move |pod| is_exempt(pod) == exempt);
        pods.flat_map(|pod| pod.addresses.iter().copied()).collect::<BTreeSet<IpAddr>>()
    };
    &addresses(true) - &addresses(false)
}

/// Matches from the left; where it fails, the last `*` takes one character more.
fn is_match(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::pods::{Event, object::PodObject};

    fn pod(uid: &str, service_account: &str, address: &str, phase: &str) -> Pod {
        let object: PodObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": uid, "namespace": "shop", "name": uid},
            "spec": {"containers": [], "serviceAccountName": service_account},
            "status": {"phase": phase, "podIP": address},
        }))
        .unwrap();
        Pod::read(&object, "sts.amazonaws.com").unwrap()
    }

    fn exemptions(texts: &[&str]) -> Vec<Exemption> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(exempt: &[&str], pods: Vec<Pod>, expect: &[&str]) {
        let live: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let expect: BTreeSet<IpAddr> = expect.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(exempt_addresses(&exemptions(exempt), &live), expect);
    }

    #[test]
    fn a_pattern_has_a_namespace_and_a_service_account() {
        for good in ["kube-system/aws-node", "*/node-exporter", "shop/*", "a?/b.c", " a/b "] {
            assert_eq!(good.parse::<Exemption>().unwrap().to_string(), good.trim());
        }
        for bad in ["", "*", "kube-system", "/x", "x/", "a/b/c", "Shop/x", "a b/c", "a/[bc]", "a/b,c"] {
            assert_eq!(bad.parse::<Exemption>(), Err(ExemptionError), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text_and_a_question_mark_for_one_character() {
        for (pattern, text, expect) in [
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("orders2", "orders", false),
            ("*", "", true),
            ("*", "anything", true),
            ("aws-*", "aws-node", true),
            ("aws-*", "aws-", true),
            ("aws-*", "xaws-node", false),
            ("*-node", "aws-node", true),
            ("*-node", "aws-node-2", false),
            ("*a*b", "xaxbxab", true),
            ("*a*b", "xaxbxa", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*?", "", false),
        ] {
            assert_eq!(is_match(pattern, text), expect, "{pattern} {text}");
        }
    }

    #[test]
    fn the_addresses_of_exempt_pods_are_exempt_and_no_others() {
        let pods =
            || vec![pod("a", "agent", "10.0.0.1", "Running"), pod("b", "orders", "10.0.0.2", "Running")];
        check(&["shop/agent"], pods(), &["10.0.0.1"]);
        check(&["shop/*"], pods(), &["10.0.0.1", "10.0.0.2"]);
        check(&["other/*"], pods(), &[]);
        check(&[], pods(), &[]);
    }

    #[test]
    fn an_address_that_a_pod_without_exemption_has_too_is_not_exempt() {
        let pods = vec![pod("a", "agent", "10.0.0.1", "Running"), pod("b", "orders", "10.0.0.1", "Running")];
        check(&["shop/agent"], pods, &[]);
    }

    #[tokio::test]
    async fn an_address_is_told_once_the_list_is_complete_and_leaves_with_its_pod() {
        let (table, mut writer) = PodTable::new();
        let (sender, mut receiver) = watch::channel(None);
        let following = follow(exemptions(&["shop/agent"]), table, sender);
        let addresses = |texts: &[&str]| Some(texts.iter().map(|text| text.parse().unwrap()).collect());
        let test = async {
            writer.apply(Event::Apply(pod("z", "agent", "10.0.0.9", "Running")));
            writer.apply(Event::Init);
            tokio::task::yield_now().await;
            assert_eq!(*receiver.borrow_and_update(), None);
            writer.apply(Event::InitApply(pod("a", "agent", "10.0.0.1", "Running")));
            writer.apply(Event::InitDone);
            receiver.changed().await.unwrap();
            assert_eq!(*receiver.borrow_and_update(), addresses(&["10.0.0.1"]));
            writer.apply(Event::Apply(pod("b", "agent", "10.0.0.2", "Running")));
            receiver.changed().await.unwrap();
            assert_eq!(*receiver.borrow_and_update(), addresses(&["10.0.0.1", "10.0.0.2"]));
            writer.apply(Event::Apply(pod("a", "agent", "10.0.0.1", "Succeeded")));
            receiver.changed().await.unwrap();
            assert_eq!(*receiver.borrow_and_update(), addresses(&["10.0.0.2"]));
            writer.apply(Event::Delete("b".parse().unwrap()));
            receiver.changed().await.unwrap();
            assert_eq!(*receiver.borrow_and_update(), addresses(&[]));
            drop(receiver);
        };
        tokio::join!(following, test);
    }
}
