//! The registry of metrics, and what the process says of itself.

use prometheus_client::{metrics::info::Info, registry::Registry};

/// What every metric's name starts with.
const PREFIX: &str = "rolecall";

/// A registry that holds `rolecall_build_info`; each part registers its own metrics in it.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The build of the program that answers", build);
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_told() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry()).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("rolecall_build_info{{version=\"{version}\"}} 1\n")), "{text}");
    }
}
