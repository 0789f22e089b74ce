//! The rules as a chain of our own in the table raw: its text, and how what the kernel has is read back.
//!
//! One family at a time; `iptables` and `ip6tables` speak alike, and so do their nft and legacy variants.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use super::ruleset::{METADATA_V4, METADATA_V6, Ruleset, Verdict};

/// The name of the chain. Nobody else has a say in it.
pub(super) const CHAIN: &str = "ROLECALL-METADATA";

/// The table whose rules come before connection tracking and before kube-proxy translates addresses.
pub(super) const TABLE: &str = "raw";

const HOOK: &str = "PREROUTING";

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// The file in which the kernel names the legacy tables that there are.
    pub(super) fn legacy_tables(self) -> &'static str {
        match self {
            Self::V4 => "/proc/self/net/ip_tables_names",
            Self::V6 => "/proc/self/net/ip6_tables_names",
        }
    }
}

/// Input for `iptables-restore --noflush` that brings about `ruleset` in one transaction, given what
/// `iptables-save` says there is. Rules of others are not touched.
pub(super) fn script(family: Family, ruleset: &Ruleset, saved: &str) -> String {
    let mut text = format!("*{TABLE}\n");
    // Declaring a chain makes it, or empties it where it is.
    let _ = writeln!(text, ":{CHAIN} - [0:0]");
    for rule in rules(family, ruleset) {
        let _ = writeln!(text, "{rule}");
    }
    for jump in jumps(saved) {
        let _ = writeln!(text, "-D {jump}");
    }
    let _ = writeln!(text, "-I {HOOK} 1 {}", jump(family));
    text.push_str("COMMIT\n");
    text
}

/// Input for `iptables-restore --noflush` that removes the chain and every way into it; `None` if there is none.
pub(super) fn removal(saved: &str) -> Option<String> {
    let declared = saved.lines().any(|line| line.starts_with(&format!(":{CHAIN} ")));
    declared.then(|| {
        let mut text = format!("*{TABLE}\n");
        for jump in jumps(saved) {
            let _ = writeln!(text, "-D {jump}");
        }
        let _ = write!(text, "-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n");
        text
    })
}

/// Compares what `iptables-save` said with what `ruleset` means.
///
/// The jump has to be the first rule of its hook: whoever accepts a packet before it lets it pass.
pub(super) fn compare(family: Family, ruleset: &Ruleset, saved: &str) -> Verdict {
    let first = saved.lines().find(|line| line.starts_with(&format!("-A {HOOK} ")));
    let wanted_first = format!("-A {HOOK} {}", jump(family));
    if removal(saved).is_none() {
        return Verdict::Absent;
    }
    if first != Some(wanted_first.as_str()) {
        return Verdict::Different(format!("{wanted_first:?} is not the first rule of {HOOK}"));
    }
    if jumps(saved).count() != 1 {
        return Verdict::Different(format!("there are several ways into {CHAIN}"));
    }
    let found: Vec<&str> = own(saved).collect();
    let wanted = rules(family, ruleset);
    if found == wanted {
        Verdict::Same
    } else {
        Verdict::Different(format!(
            "{CHAIN} has {} rules that are not the {} of ours",
            found.len(),
            wanted.len()
        ))
    }
}

/// The addresses that the saved chain lets pass.
pub(super) fn exempt(saved: &str) -> BTreeSet<IpAddr> {
    let sources = own(saved).filter_map(|line| {
        let source = line.strip_prefix(&format!("-A {CHAIN} -s "))?.strip_suffix(" -j RETURN")?;
        let (address, prefix) = source.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        (prefix == if address.is_ipv4() { "32" } else { "128" }).then_some(address)
    });
    sources.collect()
}

fn rules(family: Family, ruleset: &Ruleset) -> Vec<String> {
    let sources: Vec<String> = match family {
        Family::V4 => ruleset.exempt_v4().map(|address| format!("{address}/32")).collect(),
        Family::V6 => ruleset.exempt_v6().map(|address| format!("{address}/128")).collect(),
    };
    let exempt = sources.into_iter().map(|source| format!("-A {CHAIN} -s {source} -j RETURN"));
    // The table raw knows no REJECT.
    exempt.chain([format!("-A {CHAIN} -j DROP")]).collect()
}

fn jump(family: Family) -> String {
    match family {
        Family::V4 => format!("-d {METADATA_V4}/32 -j {CHAIN}"),
        Family::V6 => format!("-d {METADATA_V6}/128 -j {CHAIN}"),
    }
}

/// The rules of our chain.
fn own(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().filter(|line| line.starts_with(&format!("-A {CHAIN} ")))
}

/// The rules of any chain that lead into ours, without their `-A`.
fn jumps(saved: &str) -> impl Iterator<Item = &str> {
    let leads_here = |rule: &str| {
        let mut words = rule.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g"));
        words.nth(1) == Some(CHAIN)
    };
    saved.lines().filter_map(|line| line.strip_prefix("-A ")).filter(move |rule| leads_here(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "\
# Generated by iptables-save v1.8.9
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:cali-PREROUTING - [0:0]
-A PREROUTING -m comment --comment \"to ROLECALL-METADATA or not\" -j cali-PREROUTING
-A cali-PREROUTING -s 10.0.0.9/32 -j ACCEPT
COMMIT
";

    const SAVED: &str = include_str!("testdata/iptables-save");

    fn ruleset() -> Ruleset {
        Ruleset { exempt: ["10.0.0.9", "10.0.0.7", "fd00::7"].map(|a| a.parse().unwrap()).into() }
    }

    #[test]
    fn the_input_is_of_one_family_and_leaves_foreign_rules_alone() {
        let expect = "\
*raw
:ROLECALL-METADATA - [0:0]
-A ROLECALL-METADATA -s 10.0.0.7/32 -j RETURN
-A ROLECALL-METADATA -s 10.0.0.9/32 -j RETURN
-A ROLECALL-METADATA -j DROP
-I PREROUTING 1 -d 169.254.169.254/32 -j ROLECALL-METADATA
COMMIT
";
        assert_eq!(script(Family::V4, &ruleset(), ""), expect);
        assert_eq!(script(Family::V4, &ruleset(), FOREIGN), expect);
        let expect = "\
*raw
:ROLECALL-METADATA - [0:0]
-A ROLECALL-METADATA -s fd00::7/128 -j RETURN
-A ROLECALL-METADATA -j DROP
-I PREROUTING 1 -d fd00:ec2::254/128 -j ROLECALL-METADATA
COMMIT
";
        assert_eq!(script(Family::V6, &ruleset(), FOREIGN), expect);
    }

    #[test]
    fn a_jump_in_the_wrong_place_is_moved() {
        let moved = script(Family::V4, &ruleset(), &SAVED.replace("-A PREROUTING -d", "-A OUTPUT -d"));
        assert!(
            moved.ends_with(
                "-D OUTPUT -d 169.254.169.254/32 -j ROLECALL-METADATA\n\
                 -I PREROUTING 1 -d 169.254.169.254/32 -j ROLECALL-METADATA\nCOMMIT\n"
            ),
            "{moved}"
        );
    }

    #[test]
    fn what_is_saved_is_what_was_meant() {
        assert_eq!(compare(Family::V4, &ruleset(), SAVED), Verdict::Same);
        assert_eq!(exempt(SAVED), ["10.0.0.9", "10.0.0.7"].map(|a| a.parse().unwrap()).into());
        assert_eq!(compare(Family::V4, &ruleset(), FOREIGN), Verdict::Absent);
        assert_eq!(compare(Family::V4, &ruleset(), ""), Verdict::Absent);
    }

    #[test]
    fn every_tampering_with_the_chain_is_seen() {
        let first = "-A PREROUTING -d 169.254.169.254/32 -j ROLECALL-METADATA\n";
        for (from, to) in [
            ("-A ROLECALL-METADATA -j DROP\n", ""),
            ("-j DROP", "-j ACCEPT"),
            ("10.0.0.9/32", "10.0.0.0/24"),
            (first, ""),
            (first, &format!("{first}{first}")),
            (first, &format!("-A PREROUTING -j ACCEPT\n{first}")),
            ("-d 169.254.169.254/32", "-d 169.254.169.253/32"),
            (
                "-A ROLECALL-METADATA -s 10.0.0.7/32",
                "-A ROLECALL-METADATA -s 10.9.9.9/32 -j RETURN\n-A ROLECALL-METADATA -s 10.0.0.7/32",
            ),
        ] {
            let changed = SAVED.replacen(from, to, 1);
            assert_ne!(changed, SAVED, "{from}");
            assert!(
                matches!(compare(Family::V4, &ruleset(), &changed), Verdict::Different(_)),
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn removal_takes_every_way_into_the_chain_and_nothing_else() {
        let twice = SAVED.replace("COMMIT", "-A OUTPUT -g ROLECALL-METADATA\nCOMMIT");
        assert_eq!(
            removal(&twice).as_deref(),
            Some(
                "*raw\n-D PREROUTING -d 169.254.169.254/32 -j ROLECALL-METADATA\n-D OUTPUT -g ROLECALL-METADATA\n\
                 -F ROLECALL-METADATA\n-X ROLECALL-METADATA\nCOMMIT\n"
            )
        );
        assert_eq!(removal(FOREIGN), None);
    }
}
