//! The text of the ConfigMap, and looking names up in what came of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rolecall_shim::config_map::parse_config_map;

fuzz_target!(|input: (&str, &str, &str)| {
    let (text, namespace, service_account) = input;
    if let Ok((bindings, errors)) = parse_config_map(text) {
        let _ = bindings.find(namespace, service_account);
        for error in errors {
            let _ = error.to_string();
        }
    }
});
