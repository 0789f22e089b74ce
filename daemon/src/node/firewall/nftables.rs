//! The rules as an nftables table of our own: its text, and how what the kernel has is read back.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use serde_json::{Value, json};

use super::ruleset::{METADATA_V4, METADATA_V6, Ruleset, Verdict};

/// Family and name of the table. Nobody else has a say in it.
pub(super) const FAMILY: &str = "inet";
pub(super) const TABLE: &str = "rolecall";

/// The priority of the table raw: before connection tracking and before kube-proxy translates addresses.
const PRIORITY: i32 = -300;

/// The protocol TCP by its number, as `nft --numeric-protocol` lists it.
const TCP: u8 = 6;

/// What the answer of `nft` holds if it is not understood.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("read what nft lists")]
    Json(#[from] serde_json::Error),
    #[error("nft lists no array named nftables")]
    Shape,
}

/// A script for `nft -f -` that replaces the table, whether it is there or not, in one transaction.
pub(super) fn script(ruleset: &Ruleset) -> String {
    let mut text = String::new();
    // The first line makes the second one valid where there is no table.
    let _ = writeln!(text, "table {FAMILY} {TABLE}");
    let _ = writeln!(text, "delete table {FAMILY} {TABLE}");
    let _ = writeln!(text, "table {FAMILY} {TABLE} {{");
    set(&mut text, "exempt4", "ipv4_addr", ruleset.exempt_v4());
    set(&mut text, "exempt6", "ipv6_addr", ruleset.exempt_v6());
    let _ = write!(
        text,
        "\tchain refuse {{
\t\tmeta l4proto tcp reject with tcp reset
\t\treject with icmpx type admin-prohibited
\t}}

\tchain metadata {{
\t\ttype filter hook prerouting priority {PRIORITY}; policy accept;
\t\tip daddr {METADATA_V4} ip saddr != @exempt4 jump refuse
\t\tip6 daddr {METADATA_V6} ip6 saddr != @exempt6 jump refuse
\t}}
}}
"
    );
    text
}

/// A script that removes the table.
pub(super) fn removal() -> String {
    format!("delete table {FAMILY} {TABLE}\n")
}

/// Compares what `nft --json --numeric-protocol list table` said with what `ruleset` means.
pub(super) fn compare(ruleset: &Ruleset, listed: &str) -> Result<Verdict, ReadError> {
    let found = objects(listed)?;
    let expected = expected(ruleset);
    for (wanted, found) in expected.iter().zip(&found) {
        if !covers(wanted, found) {
            return Ok(Verdict::Different(format!("{found} is there for {wanted}")));
        }
    }
    Ok(match expected.len().cmp(&found.len()) {
        std::cmp::Ordering::Equal => Verdict::Same,
        std::cmp::Ordering::Less => Verdict::Different(format!("{} is too much", found[expected.len()])),
        std::cmp::Ordering::Greater => Verdict::Different(format!("{} is missing", expected[found.len()])),
    })
}

/// The addresses that the listed table lets pass.
pub(super) fn exempt(listed: &str) -> Result<BTreeSet<IpAddr>, ReadError> {
    let objects = objects(listed)?;
    let elements = objects.iter().filter_map(|object| object.get("set")?.get("elem")?.as_array()).flatten();
    Ok(elements.filter_map(|element| element.as_str()?.parse().ok()).collect())
}

fn set(text: &mut String, name: &str, kind: &str, elements: impl Iterator<Item = impl ToString>) {
    let _ = writeln!(text, "\tset {name} {{\n\t\ttype {kind}");
    let elements: Vec<String> = elements.map(|element| element.to_string()).collect();
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
    }
    let _ = writeln!(text, "\t}}\n");
}

/// The table as `nft` lists it.
fn expected(ruleset: &Ruleset) -> Vec<Value> {
    let rule = |chain: &str, expr: Value| json!({"rule": {"family": FAMILY, "table": TABLE, "chain": chain, "expr": expr}});
    let is = |op: &str, left: Value, right: Value| json!({"match": {"op": op, "left": left, "right": right}});
    let field = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    let refusal = |protocol: &str, address: &str, set: &str| {
        json!([
            is("==", field(protocol, "daddr"), json!(address)),
            is("!=", field(protocol, "saddr"), json!(set)),
            {"jump": {"target": "refuse"}},
        ])
    };
    let set = |name: &str, kind: &str, elements: Vec<String>| json!({"set": {"family": FAMILY, "table": TABLE, "name": name, "type": kind, "elem": elements}});
    let mut objects = vec![
        json!({"table": {"family": FAMILY, "name": TABLE}}),
        set("exempt4", "ipv4_addr", ruleset.exempt_v4().map(|address| address.to_string()).collect()),
        set("exempt6", "ipv6_addr", ruleset.exempt_v6().map(|address| address.to_string()).collect()),
        json!({"chain": {"family": FAMILY, "table": TABLE, "name": "refuse"}}),
        json!({"chain": {"family": FAMILY, "table": TABLE, "name": "metadata", "type": "filter",
            "hook": "prerouting", "prio": PRIORITY, "policy": "accept"}}),
        rule(
            "refuse",
            json!([is("==", json!({"meta": {"key": "l4proto"}}), json!(TCP)), {"reject": {"type": "tcp reset"}}]),
        ),
        rule("refuse", json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}])),
        rule("metadata", refusal("ip", &METADATA_V4.to_string(), "@exempt4")),
        rule("metadata", refusal("ip6", &METADATA_V6.to_string(), "@exempt6")),
    ];
    objects.sort_by_key(place);
    objects
}

/// What was listed, without what is about `nft` itself.
fn objects(listed: &str) -> Result<Vec<Value>, ReadError> {
    let listed: Value = serde_json::from_str(listed)?;
    let objects = listed.get("nftables").and_then(Value::as_array).ok_or(ReadError::Shape)?;
    let mut objects: Vec<Value> =
        objects.iter().filter(|object| object.get("metainfo").is_none()).cloned().collect();
    objects.sort_by_key(place);
    Ok(objects)
}

/// Where an object goes to be compared. Releases of `nft` differ in the order of sets and chains; the rules of a
/// chain keep theirs.
fn place(object: &Value) -> (usize, String) {
    let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next()) else {
        return (usize::MAX, String::new());
    };
    let kinds = ["table", "set", "chain", "rule"];
    let name = object.get(if kind == "rule" { "chain" } else { "name" }).and_then(Value::as_str);
    (kinds.iter().position(|known| known == kind).unwrap_or(kinds.len()), name.unwrap_or_default().to_owned())
}

/// Whether `found` is what was `wanted`. Handles, and what a later `nft` may tell beside, do not count.
fn covers(wanted: &Value, found: &Value) -> bool {
    let (Some((kind, wanted)), Some(found)) =
        (wanted.as_object().and_then(|object| object.iter().next()), found.as_object())
    else {
        return false;
    };
    let Some(found) = found.get(kind).and_then(Value::as_object) else { return false };
    let Some(wanted) = wanted.as_object() else { return false };
    // A dormant table has no effect, and a hook more than wanted has one.
    let telling = ["flags", "hook"];
    telling.iter().all(|key| wanted.contains_key(*key) == found.contains_key(*key))
        && wanted.iter().all(|(key, wanted)| match key.as_str() {
            "elem" => elements(Some(wanted)) == elements(found.get(key)),
            _ => found.get(key) == Some(wanted),
        })
}

fn elements(list: Option<&Value>) -> BTreeSet<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.map(|element| element.as_str().map_or_else(|| element.to_string(), str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 with --numeric-protocol lists the table of [`ruleset`].
    const LISTED: &str = include_str!("testdata/nft-list.json");

    fn ruleset() -> Ruleset {
        Ruleset { exempt: ["10.0.0.9", "10.0.0.7", "fd00::7"].map(|a| a.parse().unwrap()).into() }
    }

    #[test]
    fn the_script_replaces_the_table_in_one_transaction() {
        assert_eq!(script(&ruleset()), include_str!("testdata/exempt.nft"));
        assert_eq!(script(&Ruleset::default()), include_str!("testdata/empty.nft"));
    }

    #[test]
    fn what_nft_lists_is_what_was_meant() {
        assert_eq!(compare(&ruleset(), LISTED).unwrap(), Verdict::Same);
        assert_eq!(exempt(LISTED).unwrap(), ruleset().exempt);
    }

    #[test]
    fn every_tampering_with_the_table_is_seen() {
        for (from, to) in [
            ("\"10.0.0.9\"", "\"10.0.0.8\""),
            ("\"10.0.0.7\", \"10.0.0.9\"", "\"10.0.0.7\", \"10.0.0.9\", \"10.0.0.8\""),
            ("169.254.169.254", "169.254.169.253"),
            ("\"prio\": -300", "\"prio\": -100"),
            ("\"prerouting\"", "\"output\""),
            ("\"policy\": \"accept\"", "\"policy\": \"drop\""),
            ("\"!=\"", "\"==\""),
            ("tcp reset", "icmpx"),
            (
                "\"name\": \"rolecall\", \"handle\"",
                "\"name\": \"rolecall\", \"flags\": [\"dormant\"], \"handle\"",
            ),
            ("{\"jump\": {\"target\": \"refuse\"}}", "{\"accept\": null}"),
            ("fd00:ec2::254", "fd00:ec2::253"),
        ] {
            let changed = LISTED.replacen(from, to, 1);
            assert_ne!(changed, LISTED, "{from}");
            assert!(
                matches!(compare(&ruleset(), &changed).unwrap(), Verdict::Different(_)),
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn a_rule_too_many_or_too_few_is_seen() {
        let mut listed: Value = serde_json::from_str(LISTED).unwrap();
        let objects = listed["nftables"].as_array_mut().unwrap();
        let last = objects.pop().unwrap();
        assert!(matches!(compare(&ruleset(), &listed.to_string()).unwrap(), Verdict::Different(_)));
        let objects = listed["nftables"].as_array_mut().unwrap();
        objects.extend([last.clone(), last]);
        assert!(matches!(compare(&ruleset(), &listed.to_string()).unwrap(), Verdict::Different(_)));
        assert!(compare(&ruleset(), "{}").is_err());
        assert!(compare(&ruleset(), "").is_err());
    }
}
