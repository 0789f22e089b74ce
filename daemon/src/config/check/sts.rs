//! The rules for reaching STS.

use std::time::Duration;

use url::{Host, Url};

use rolecall_process::setting::Checked;

use super::SDK_PATIENCE;
use crate::{
    args::{Environment, StsArgs},
    config::{ProxyConfig, StsConfig},
};

pub(super) fn check_sts(checked: &mut Checked, args: StsArgs, environment: Environment) -> StsConfig {
    let region = args.region.filter(|region| !region.is_empty()).or(environment.aws_region.clone());
    let given = args.sts_endpoint.filter(|endpoint| !endpoint.is_empty());
    let endpoint = given.as_deref().and_then(|text| check_sts_endpoint(checked, text));
    match &region {
        Some(region) => checked.that(
            is_region(region),
            "--region",
            region,
            "a region has lower-case letters, digits and dashes, such as eu-west-1",
        ),
        None if given.is_none() => checked.mistake(
            "--region",
            "is missing".to_owned(),
            "give the cluster's region, such as eu-west-1, by the flag, ROLECALL_REGION or AWS_REGION",
        ),
        None => {}
    }
    for (flag, set) in [("--sts-fips", args.sts_fips), ("--sts-dual-stack", args.sts_dual_stack)] {
        checked.that(
            !(set && given.is_some()),
            flag,
            set,
            "it chooses among the region's own endpoints; drop it or --sts-endpoint",
        );
    }
    checked.that(
        !args.sts_connect_timeout.is_zero() && args.sts_connect_timeout <= args.sts_attempt_timeout,
        "--sts-connect-timeout",
        args.sts_connect_timeout,
        "choose more than 0 and no more than --sts-attempt-timeout; 1s suits most networks",
    );
    checked.that(
        SDK_PATIENCE <= args.sts_attempt_timeout && args.sts_attempt_timeout <= Duration::from_secs(120),
        "--sts-attempt-timeout",
        args.sts_attempt_timeout,
        "choose 1s to 2m; a slow STS is not a dead one, so 20s suits most",
    );
    StsConfig {
        region,
        endpoint,
        fips: args.sts_fips,
        dual_stack: args.sts_dual_stack,
        connect_timeout: args.sts_connect_timeout,
        attempt_timeout: args.sts_attempt_timeout,
        proxy: ProxyConfig::parse(&environment).unwrap_or_else(|mistakes| {
            checked.mistakes.extend(mistakes);
            ProxyConfig::default()
        }),
    }
}

/// Whether `url` leads to this machine itself.
pub(in crate::config) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn check_sts_endpoint(checked: &mut Checked, text: &str) -> Option<Url> {
    const REMEDY: &str =
        "give the URL of STS with scheme and host, such as https://sts.eu-west-1.amazonaws.com";
    let url = match text.parse::<Url>() {
        Ok(url) => url,
        Err(error) => {
            checked.mistake("--sts-endpoint", format!("{text:?}"), format!("{error}; {REMEDY}"));
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        // What was given is not repeated: it holds a password.
        checked.mistake(
            "--sts-endpoint",
            "with a user name".to_owned(),
            "STS takes none: the pod's token is all that it asks for; drop what stands before the @",
        );
        return None;
    }
    let is_endpoint = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none();
    checked.that(is_endpoint, "--sts-endpoint", text, REMEDY);
    Some(url)
}

/// The region becomes part of a host name.
fn is_region(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
