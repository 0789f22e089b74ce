//! How much of a program's code is resident, and why it is as much.

use std::{fs, ops::Range, os::unix::fs::FileExt};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::memory::MIB;

/// What the kernel maps at once around a page that is needed, unless `fault_around_bytes` says otherwise.
const WINDOW: u64 = 64 * 1024;

/// The code of a running program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    windows: usize,
    /// Those of them of which any page is mapped.
    mapped: usize,
    /// Bytes of its relocations, which are among its constants.
    relocations: u64,
}

/// Reads it of the process `id`, which runs `program`.
pub(crate) fn read(id: u32, program: &str) -> Result<Code> {
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page")?)?;
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).context("read the mappings")?;
    let pages = fs::File::open(format!("/proc/{id}/pagemap")).context("open the map of pages")?;
    let (mut windows, mut mapped) = (0, 0);
    for range in code(&maps, program) {
        let mut entries = vec![0; usize::try_from((range.end - range.start) / page * 8)?];
        pages.read_exact_at(&mut entries, range.start / page * 8).context("read the map of pages")?;
        let (of_these, are_mapped) = count(range.start, page, &present(&entries));
        windows += of_these;
        mapped += are_mapped;
    }
    let elf = fs::read(format!("/proc/{id}/exe")).context("read the program")?;
    let relocations = [".rela.dyn", ".relr.dyn"].iter().filter_map(|name| section_size(&elf, name)).sum();
    Ok(Code { windows, mapped, relocations })
}

impl Code {
    pub(crate) fn told(self) -> String {
        let mib = |windows: usize| windows as f64 * WINDOW as f64 / MIB;
        format!(
            "Of the {} windows of 64 KiB that the program's code has ({:.1} MiB), {} are mapped ({:.1} MiB): \
             the kernel maps up to 64 KiB (`fault_around_bytes`) around each page that is needed, so a program that needs a little of nearly everywhere has nearly all of it.\n\
             Of its constants, {:.2} MiB are relocations, which are read once at the start.",
            self.windows,
            mib(self.windows),
            self.mapped,
            mib(self.mapped),
            self.relocations as f64 / MIB
        )
    }
}

/// Where the code of `program` is, by `/proc/<pid>/maps`.
fn code(maps: &str, program: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let is_code = words.next()?.contains('x') && words.nth(3)?.ends_with(program);
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        is_code.then_some(number(from)?..number(to)?)
    };
    maps.lines().filter_map(range).collect()
}

/// Which pages are mapped, by entries of `/proc/<pid>/pagemap`, of eight bytes each.
fn present(entries: &[u8]) -> Vec<bool> {
    let present = |entry: &[u8]| entry[7] & 0x80 != 0;
    entries.chunks_exact(8).map(present).collect()
}

/// The windows of a mapping that begins at `start`, and those of which any page is there.
fn count(start: u64, page: u64, present: &[bool]) -> (usize, usize) {
    let (mut windows, mut mapped) = (0, 0);
    let mut last = None;
    let mut is_counted = false;
    for (index, &is_present) in (0..).zip(present) {
        let window = (start + index * page) / WINDOW;
        if last.replace(window) != Some(window) {
            windows += 1;
            is_counted = false;
        }
        if is_present && !is_counted {
            mapped += 1;
            is_counted = true;
        }
    }
    (windows, mapped)
}

/// Bytes of a section of a 64-bit ELF file (elf(5)) in this machine's order of bytes.
fn section_size(elf: &[u8], name: &str) -> Option<u64> {
    let number = |at: u64, length: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(elf.get(at..at.checked_add(length)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let (headers, size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, of_names) = (number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: u64| headers.checked_add(index * size);
    let names = number(header(of_names)? + 0x18, 8)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let at = usize::try_from(names.checked_add(number(header, 4)?)?).ok()?;
        let its_name = elf.get(at..)?.split(|byte| *byte == 0).next()?;
        (its_name == name.as_bytes()).then(|| number(header + 0x20, 8))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_can_be_executed_of_the_program() {
        let maps = "55d0000000-55d0001000 r--p 00000000 08:01 42 /opt/rolecall-daemon\n\
                    55d0001000-55d0005000 r-xp 00001000 08:01 42 /opt/rolecall-daemon\n\
                    7f0000000000-7f0000001000 r-xp 00000000 08:01 43 /lib/libc.so.6\n\
                    7f0000002000-7f0000003000 rw-p 00000000 00:00 0\n";
        let found: Vec<_> =
            code(maps, "rolecall-daemon").iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(found, [(0x55_d000_1000, 0x55_d000_5000)]);
    }

    #[track_caller]
    fn check(start: u64, present: &[usize], pages: usize, expect: (usize, usize)) {
        let present: Vec<bool> = (0..pages).map(|page| present.contains(&page)).collect();
        assert_eq!(count(start, 4096, &present), expect);
    }

    #[test]
    fn windows_are_counted_by_their_addresses_and_once_each() {
        check(0, &[], 32, (2, 0));
        check(0, &[3, 4, 15], 32, (2, 1));
        check(0, &[15, 16], 32, (2, 2));
        // One page of the first window, and the mapping ends within the third.
        check(15 * 4096, &[0, 17], 18, (3, 2));
    }

    #[test]
    fn a_page_is_there_by_the_highest_bit_of_its_entry() {
        assert_eq!(present(&[(1_u64 << 63) | 42, 1 << 62].map(u64::to_le_bytes).concat()), [true, false]);
    }

    #[test]
    fn a_program_that_runs_has_some_of_its_code() {
        let ourselves = std::env::current_exe().unwrap();
        let code = read(std::process::id(), ourselves.file_name().unwrap().to_str().unwrap()).unwrap();
        assert!(0 < code.mapped && code.mapped <= code.windows, "{code:?}");
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let ourselves = fs::read("/proc/self/exe").unwrap();
        assert!(section_size(&ourselves, ".text").is_some_and(|size| 4096 < size));
        assert_eq!(section_size(&ourselves, ".nowhere"), None);
        assert_eq!(section_size(b"\x7fELF", ".text"), None);
    }
}
