//! A role as somebody wrote it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rolecall_contract::{RoleArn, endpoint};

fuzz_target!(|text: &str| {
    let Ok(role) = text.parse::<RoleArn>() else { return };
    assert_eq!(role.as_str(), text);
    assert!(!role.name().is_empty() && role.account().len() == 12);
    if let Some(path) = endpoint::uri_path_of(text) {
        let named = endpoint::parse_path(&path);
        assert_eq!(named, Some(endpoint::PathRole::Named(text)));
    }
});
