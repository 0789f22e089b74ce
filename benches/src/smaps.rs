//! What a process's resident memory consists of, as the kernel's list of its mappings has it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// Bytes that are resident, by what they are.
pub(crate) type Parts = BTreeMap<Part, u64>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Code,
    Constants,
    Libraries,
    ChangedData,
    Heap,
    Stacks,
}

impl Part {
    pub(crate) const ALL: [Self; 6] =
        [Self::Code, Self::Constants, Self::Libraries, Self::ChangedData, Self::Heap, Self::Stacks];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Code => "the program's code",
            Self::Constants => "its constants",
            Self::Libraries => "libraries, as they are on disk",
            Self::ChangedData => "data that was changed since it was loaded, relocated pointers above all",
            Self::Heap => "heap",
            Self::Stacks => "stacks",
        }
    }
}

/// Stack of a thread, in KiB: what Rust asks for unless told otherwise.
const STACK: u64 = 2048;

/// Reads them of the process `id`, which runs `program`.
pub(crate) fn read(id: u32, program: &str) -> Result<Parts> {
    let path = format!("/proc/{id}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(parts(&text, program))
}

fn parts(smaps: &str, program: &str) -> Parts {
    let mut parts = Parts::new();
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        match first.strip_suffix(':') {
            None => {
                let permissions = words.next().unwrap_or_default().to_owned();
                mapping = Mapping {
                    permissions,
                    path: words.nth(3).unwrap_or_default().to_owned(),
                    ..Mapping::default()
                };
            }
            Some(field) => {
                let kibibytes = words.next().and_then(|number| number.parse().ok()).unwrap_or_default();
                match field {
                    "Size" => mapping.size = kibibytes,
                    "Rss" => mapping.resident = kibibytes,
                    "Anonymous" => {
                        for (part, kibibytes) in mapping.parts(kibibytes, program) {
                            *parts.entry(part).or_default() += kibibytes * 1024;
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    parts
}

/// One mapping, in KiB.
#[derive(Default)]
struct Mapping {
    permissions: String,
    path: String,
    size: u64,
    resident: u64,
}

impl Mapping {
    /// What it is, where `changed` of it is no file's any more.
    fn parts(&self, changed: u64, program: &str) -> [(Part, u64); 2] {
        let unchanged = self.resident.saturating_sub(changed);
        let (of_file, own) = match self.path.as_str() {
            "[heap]" => (Part::Heap, Part::Heap),
            "[stack]" => (Part::Stacks, Part::Stacks),
            "" if self.size == STACK => (Part::Stacks, Part::Stacks),
            "" => (Part::Heap, Part::Heap),
            path if !path.ends_with(program) => (Part::Libraries, Part::ChangedData),
            _ if self.permissions.contains('x') => (Part::Code, Part::ChangedData),
            _ => (Part::Constants, Part::ChangedData),
        };
        [(of_file, unchanged), (own, changed)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resident_byte_is_counted_once_and_as_what_it_is() {
        let mapping = |head: &str, size: u64, resident: u64, anonymous: u64| {
            format!(
                "{head}\nSize: {size} kB\nRss: {resident} kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let smaps = [
            mapping("55d0-55d1 r-xp 00001000 08:01 42 /opt/rolecall-daemon", 5000, 4000, 0),
            mapping("55d1-55d2 r--p 00002000 08:01 42 /opt/rolecall-daemon", 900, 800, 300),
            mapping("55d3-55d4 rw-p 00000000 00:00 0 [heap]", 700, 600, 600),
            mapping("7f00-7f01 rw-p 00000000 00:00 0", 2048, 40, 40),
            mapping("7f02-7f03 rw-p 00000000 00:00 0", 132, 100, 100),
            mapping("7f04-7f05 r-xp 00000000 08:01 43 /lib/libc.so.6", 1500, 900, 0),
        ];
        let parts = parts(&smaps.concat(), "rolecall-daemon");
        let kibibytes = Part::ALL.map(|part| parts.get(&part).copied().unwrap_or_default() / 1024);
        assert_eq!(kibibytes, [4000, 500, 900, 300, 700, 40]);
    }
}
