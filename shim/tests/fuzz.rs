//! Replays the fuzzers' corpus, and mutations of it that are the same each time: `make fuzz` searches for more.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "figures and inputs are shown where a test fails, or by --nocapture")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

/// Mutations of each file.
const MUTATIONS: u64 = 400;

/// Gives every file of the corpus, and mutations of it, to `target`.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(2 < files.len(), "the corpus of {name} is not there");
    let inputs: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, input) in files.iter().zip(&inputs) {
        println!("{}", path.display());
        target(input);
        for seed in 0..MUTATIONS {
            let mutated = mutate(input, &inputs, seed);
            println!("{}, mutation {seed}", path.display());
            target(&mutated);
        }
    }
}

/// The input with a few bytes changed, taken away, or exchanged for a piece of another one.
fn mutate(input: &[u8], others: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut mutated = input.to_vec();
    for _ in 0..=random.usize(..4) {
        let at = random.usize(..=mutated.len());
        let end = (at + random.usize(..16)).min(mutated.len());
        let replacement: Vec<u8> = match random.u8(..4) {
            0 => Vec::new(),
            1 => (at..end).map(|_| random.u8(..)).collect(),
            2 => vec![*random.choice(b"{}[]\",:\\0*-/ \n").unwrap()],
            _ => {
                let other = random.choice(others).unwrap();
                let from = random.usize(..=other.len());
                other[from..(from + random.usize(..64)).min(other.len())].to_vec()
            }
        };
        mutated.splice(at..end, replacement);
    }
    mutated
}

#[test]
fn no_review_of_the_corpus_breaks_the_shim() {
    replay("review", targets::review);
}

#[test]
fn no_config_map_of_the_corpus_breaks_the_shim() {
    replay("config_map", targets::config_map);
}

#[test]
fn no_role_of_the_corpus_breaks_the_shim() {
    replay("role_arn", targets::role_arn);
}
