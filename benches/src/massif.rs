//! Bytes on the heap by who asked for them, as massif writes them.

use std::collections::BTreeMap;

use crate::callgrind::part_of;

/// Bytes by the part of the program that allocated them, kept for somebody else's sake or not.
pub(crate) type Parts = BTreeMap<String, u64>;

/// Flags for the tool: every frame that could name a part, and no small one left out.
pub(crate) const FLAGS: [&str; 3] = ["--tool=massif", "--depth=60", "--threshold=0.05"];

/// Frames that allocate for their callers, beside those without a part of their own.
const FOR_OTHERS: [&str; 5] = ["std", "bytes", "http_body_util", "tracing", "libc and others"];

/// Sums up the last snapshot of a file of massif's (<https://valgrind.org/docs/manual/ms-manual.html>).
///
/// Its tree has a line for each caller, a space deeper than the callee, `n2: 4096 0x1A2B: crate::function (in /file)`:
/// the bytes that came this way and how many callers follow.
pub(crate) fn parts(text: &str) -> Parts {
    let tree = text.rsplit_once("heap_tree=").map_or("", |(_, tree)| tree);
    let mut parts = Parts::new();
    // The part on the way to each depth.
    let mut path: Vec<Option<String>> = Vec::new();
    for line in tree.lines().skip(1) {
        let depth = line.len() - line.trim_start().len();
        let Some((callers, rest)) = line.trim_start().split_once(": ") else { break };
        let mut words = rest.splitn(2, ' ');
        let bytes = words.next().and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default();
        path.truncate(depth);
        let known = path.last().cloned().flatten();
        let known =
            known.or_else(|| words.next().and_then(function).map(part_of).filter(|part| is_own(part)));
        if callers == "n0" {
            *parts.entry(known.clone().unwrap_or_else(|| "others".to_owned())).or_default() += bytes;
        }
        path.push(known);
    }
    parts
}

/// The function of `0x1A2B: crate::function (in /file)`.
fn function(frame: &str) -> Option<&str> {
    let (_, function) = frame.strip_prefix("0x")?.split_once(": ")?;
    Some(function.rsplit_once(" (").map_or(function, |(function, _)| function))
}

fn is_own(part: &str) -> bool {
    !FOR_OTHERS.contains(&part) && !part.starts_with("libc: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_of_the_first_part_that_asks_for_itself() {
        let text = "\
heap_tree=detailed
n1: 7 (heap allocation functions) malloc/new/new[], --alloc-fns, etc.
 n0: 7 0x1: hyper::old (in /daemon)
#-----------
snapshot=3
heap_tree=detailed
n3: 9000 (heap allocation functions) malloc/new/new[], --alloc-fns, etc.
 n2: 8700 0x2B: alloc::raw_vec::RawVecInner<A>::reserve (in /daemon)
  n1: 8200 0x2C: bytes::bytes_mut::BytesMut::reserve_inner (in /daemon)
   n1: 8200 0x2D: hyper::proto::h1::io::Buffered<T,B>::poll_read (in /daemon)
    n0: 8200 0x2E: tokio::runtime::task::raw::poll (in /daemon)
  n0: 500 0x2F: rolecall_daemon::server::limits::Limits::of (in /daemon)
 n0: 200 0x30: malloc (in /libc.so.6)
 n0: 100 in 3 places, all below massif's threshold (0.05%)
";
        let expect = [("hyper", 8200), ("others", 300), ("rolecall: server::limits", 500)];
        assert_eq!(parts(text), Parts::from(expect.map(|(part, bytes)| (part.to_owned(), bytes))));
    }
}
