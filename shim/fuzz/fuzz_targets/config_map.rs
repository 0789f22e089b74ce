//! Searches for an input that breaks `targets::config_map`.
#![no_main]

#[allow(dead_code, reason = "each fuzzer calls one")]
#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::config_map(input));
