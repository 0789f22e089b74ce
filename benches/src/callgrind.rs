//! Instructions by function, as callgrind writes them.

use std::collections::BTreeMap;

/// Flags for the tool.
///
/// Who called a function is a part of its name, as far up as may be needed to find a caller that has a part of its own.
/// Caches are of one size whatever the machine has, so that figures can be compared: 32 KiB for code and for data each,
/// and 256 KiB behind both, the least that a core of a server has had for years.
pub(crate) const FLAGS: [&str; 6] = [
    "--tool=callgrind",
    "--separate-callers=10",
    "--cache-sim=yes",
    "--I1=32768,8,64",
    "--D1=32768,8,64",
    "--LL=262144,8,64",
];

/// Instructions by the part of the program that they are for, calls not included.
pub(crate) type Parts = BTreeMap<String, u64>;

/// Sums up a file of callgrind's (<https://valgrind.org/docs/manual/cl-format.html>).
pub(crate) fn parts(text: &str) -> Parts {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut parts = Parts::new();
    let mut part = String::new();
    let mut is_cost_of_call = false;
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            part = part_of_call(resolve(&mut names, function));
        } else if let Some(function) = line.strip_prefix("cfn=") {
            // A name is given once, wherever it comes first.
            resolve(&mut names, function);
        } else if line.starts_with("calls=") {
            is_cost_of_call = true;
        } else if line.starts_with(['+', '-', '*']) || line.starts_with(|first: char| first.is_ascii_digit())
        {
            let instructions = line.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok());
            if !std::mem::take(&mut is_cost_of_call) {
                *parts.entry(part.clone()).or_default() += instructions.unwrap_or_default();
            }
        }
    }
    parts
}

/// The functions of `program` that ran, by their names in a file of callgrind's, in its order.
pub(crate) fn functions<'a>(text: &'a str, program: &str) -> Vec<&'a str> {
    let (mut names, mut objects) = (BTreeMap::new(), BTreeMap::new());
    let mut is_of_program = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            is_of_program = resolve(&mut objects, object).ends_with(program);
        } else if let Some(object) = line.strip_prefix("cob=") {
            // A name is given once, wherever it comes first.
            resolve(&mut objects, object);
        } else if let Some(function) = line.strip_prefix("cfn=") {
            resolve(&mut names, function);
        } else if let Some(function) = line.strip_prefix("fn=") {
            let name = resolve(&mut names, function);
            // One that calls itself is told apart by how deep it is.
            let name = name.split('\'').next().unwrap_or(name);
            if is_of_program {
                found.push(name);
            }
        }
    }
    found
}

/// The name of `(7) name` or, later, of `(7)`.
fn resolve<'a>(names: &mut BTreeMap<&'a str, &'a str>, function: &'a str) -> &'a str {
    let (id, name) = function.split_once(' ').unwrap_or((function, ""));
    if name.is_empty() {
        return names.get(id).copied().unwrap_or(id);
    }
    names.insert(id, name);
    name
}

/// The part that callgrind overstates: valgrind does not offer the processor's SHA instructions to a program.
pub(crate) const SHA_256: &str = "AWS-LC: SHA-256";

/// The first part that is somebody's of a function and its callers, `callee'caller'its caller`: what the library does
/// is done for whoever called it. Where none is, that of the function itself.
fn part_of_call(function: &str) -> String {
    let mut frames = function.split('\'').map(part_of);
    let own = frames.clone().find(|part| part != "std" && !part.starts_with("libc"));
    own.or_else(|| frames.next()).unwrap_or_default()
}

/// Crates whose functions do something for another one, which their type parameters name.
const GENERIC: [&str; 6] = ["core", "alloc", "std", "__rustc", "hashbrown", "futures_util"];

/// The crate that a function is of, and for the daemon's own its module.
pub(crate) fn part_of(function: &str) -> String {
    let mut paths = function
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|path| path.contains("::") && !path.starts_with(':'))
        .peekable();
    if paths.peek().is_none() {
        return match function {
            "malloc"
            | "free"
            | "calloc"
            | "realloc"
            | "_int_malloc"
            | "_int_free"
            | "malloc_consolidate"
            | "unlink_chunk.constprop.0"
            | "unlink_chunk"
            | "posix_memalign"
            | "aligned_alloc"
            | "_int_realloc" => "libc: memory allocation".to_owned(),
            _ if function.contains("mem") && !function.contains("pthread") => {
                "libc: copying and comparing".to_owned()
            }
            _ if function.contains("sha256") => SHA_256.to_owned(),
            _ if function.contains("aws_lc") => "AWS-LC: other".to_owned(),
            _ => "libc and others".to_owned(),
        };
    }
    let crate_of = |path: &str| path.split("::").next().unwrap_or_default().to_owned();
    let all: Vec<&str> = paths.collect();
    let own = all.iter().find(|path| !GENERIC.contains(&crate_of(path).as_str()));
    match own {
        None => "std".to_owned(),
        Some(path) => {
            let mut names =
                path.split("::").filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
            match names.next() {
                Some("rolecall_daemon") => {
                    let module: Vec<&str> = names.take(2).collect();
                    format!("rolecall: {}", module.join("::"))
                }
                Some("rolecall_process" | "rolecall_contract") => "rolecall: process".to_owned(),
                Some("rolecall_benches") => "the floor's own".to_owned(),
                Some(name) => name.to_owned(),
                None => "others".to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_its_own_instructions_and_not_those_of_its_callees() {
        let text = "events: Ir\n\nfl=(1) a.rs\nfn=(1) hyper::proto::h1::conn::poll\n12 30\ncfn=(2) _int_malloc\n\
                    calls=3 0\n13 900\n+2 4\n\nfn=(2)\n0 700\n* 200\n";
        let expect = [("hyper".to_owned(), 34), ("libc: memory allocation".to_owned(), 900)];
        assert_eq!(parts(text), Parts::from(expect));
    }

    #[test]
    fn functions_are_those_of_the_program_itself() {
        let text = "ob=(1) /lib/libc.so.6\nfn=(1) malloc\n1 5\ncob=(2) /opt/rolecall-daemon\ncfn=(2) _RNvC1a1b\ncalls=1 0\n1 9\n\n\
                    ob=(2)\nfn=(2)\n3 4\n\nfn=(3) _RNvC1a1c'2\n1 1\n";
        assert_eq!(functions(text, "rolecall-daemon"), ["_RNvC1a1b", "_RNvC1a1c"]);
    }

    #[test]
    fn what_the_library_does_is_of_its_first_caller_that_is_somebody() {
        for (function, part) in [
            (
                "_int_malloc'malloc'alloc::raw_vec::RawVecInner<A>::reserve'hyper::proto::h1::role::encode",
                "hyper",
            ),
            ("hyper::proto::h1::role::encode'tokio::runtime::task::raw::poll", "hyper"),
            ("__memcpy_avx_unaligned'2'tokio::io::poll_evented::read'2", "tokio"),
            ("_int_free'free'start_thread'clone3", "libc: memory allocation"),
            ("core::fmt::write'(below main)", "std"),
        ] {
            assert_eq!(part_of_call(function), part, "{function}");
        }
    }

    #[test]
    fn what_is_done_for_a_part_is_its_own() {
        for (function, part) in [
            ("core::ptr::drop_in_place<rolecall_daemon::server::caller::Memory>", "rolecall: server::caller"),
            ("<hyper::proto::h1::io::Buffered<T,B> as core::fmt::Debug>::fmt", "hyper"),
            ("<alloc::vec::Vec<T,A> as core::ops::drop::Drop>::drop", "std"),
            ("tokio::runtime::task::raw::poll", "tokio"),
            ("__memcpy_avx_unaligned_erms", "libc: copying and comparing"),
        ] {
            assert_eq!(part_of(function), part, "{function}");
        }
    }
}
