//! Searches for an input that breaks `targets::role_arn`.
#![no_main]

#[allow(dead_code, reason = "each fuzzer calls one")]
#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::role_arn(input));
