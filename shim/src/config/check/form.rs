//! The forms of values that end up in a pod: what the API server or an SDK would refuse, and with it every pod.

use std::net::IpAddr;

use rolecall_contract::endpoint;
use rolecall_process::setting::Checked;

/// The name of most objects.
pub(super) fn check_name(checked: &mut Checked, flag: &'static str, name: &str) {
    let remedy = "a name has 1 to 253 lower-case letters, digits, dashes and dots";
    checked.that(is_dns_name(name), flag, name, remedy);
}

/// The name of a namespace, Service or volume.
pub(super) fn check_label(checked: &mut Checked, flag: &'static str, name: &str) {
    let remedy =
        "such a name has 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends";
    checked.that(is_dns_label(name), flag, name, remedy);
}

/// A subdomain of RFC 1123, as most objects are named.
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_alphanumeric_with_dashes)
}

/// A label of RFC 1123, as namespaces, Services and volumes are named.
pub(super) fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_alphanumeric_with_dashes(name)
}

/// A path at which a volume can be mounted and which can be written into a variable: Kubernetes would take `$(…)` there
/// for another variable.
pub(super) fn is_mount_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(is_path_inside) && !path.contains(':')
}

/// A path of a file inside of a projected volume.
///
/// <https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.33/#serviceaccounttokenprojection-v1-core>
pub(super) fn is_path_inside(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && part != "." && !part.starts_with(".."))
        && is_plain(path)
        && path.len() <= 4096
}

/// A word for a token or a variable: no blank in it, and nothing that Kubernetes would take for another variable.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace) && is_plain(text)
}

/// A region as AWS writes one, such as `eu-central-1`; SDKs make host names of it.
pub(super) fn is_region(text: &str) -> bool {
    is_dns_label(text)
}

/// Where SDKs ask for credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CredentialsUri {
    /// All of them do.
    Good,
    /// They refuse to send a token there without TLS.
    Refused,
    /// It is no URI of HTTP.
    Malformed,
}

/// How SDKs take this value of `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
///
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
pub(super) fn credentials_uri(text: &str) -> CredentialsUri {
    let Ok(uri) = text.parse::<http::Uri>() else { return CredentialsUri::Malformed };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    if !is_web || host.is_empty() || !is_word(text) {
        return CredentialsUri::Malformed;
    }
    let is_near = |address: IpAddr| {
        let known = [IpAddr::V4(endpoint::ADDRESS_V4), IpAddr::V6(endpoint::ADDRESS_V6)];
        address.is_loopback() || known.contains(&address) || address == endpoint::RELATIVE_ADDRESS_V4
    };
    if uri.scheme_str() == Some("https") || host == "localhost" || host.parse().is_ok_and(is_near) {
        CredentialsUri::Good
    } else {
        CredentialsUri::Refused
    }
}

fn is_alphanumeric_with_dashes(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_plain(text: &str) -> bool {
    !text.contains(char::is_control) && !text.contains("$(")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_would_refuse_is_refused_before() {
        let long = "a".repeat(64);
        for (is_good, good, bad) in [
            (
                is_dns_label as fn(&str) -> bool,
                &["a", "eks-pod-identity-token", "0"][..],
                &["", "A", "a.b", "-a", "a-", "a_b", &long][..],
            ),
            (is_dns_name, &["a.b", "a"], &["", "a..b", ".a", "A"]),
            (
                is_mount_path,
                &["/var/run/secrets/x", "/a.b", "/a/.b"],
                &["", "/", "a", "/a:b", "/a/../b", "/a//b", "/a/", "/a\nb", "/$(HOME)"],
            ),
            (
                is_path_inside,
                &["token", "a/b", ".hidden"],
                &["", "/token", "../token", "a/../b", "..data", "a/"],
            ),
            (is_word, &["sts.amazonaws.com", "https://example.com/x"], &["", "a b", "a\n", "$(A)"]),
            (is_region, &["eu-central-1", "us-gov-west-1"], &["", "eu central 1", "EU-CENTRAL-1", "a/b"]),
        ] {
            for text in good {
                assert!(is_good(text), "{text:?}");
            }
            for text in bad {
                assert!(!is_good(text), "{text:?}");
            }
        }
    }

    #[test]
    fn a_uri_is_taken_as_the_sdks_take_it() {
        for (text, expect) in [
            ("http://169.254.170.23/v1/credentials", CredentialsUri::Good),
            ("http://[fd00:ec2::23]/v1/credentials", CredentialsUri::Good),
            ("http://169.254.170.2/x", CredentialsUri::Good),
            ("http://127.0.0.1:9911/x", CredentialsUri::Good),
            ("http://localhost/x", CredentialsUri::Good),
            ("https://credentials.example/x", CredentialsUri::Good),
            ("http://credentials.example/x", CredentialsUri::Refused),
            ("http://10.0.0.1/x", CredentialsUri::Refused),
            ("ftp://169.254.170.23/", CredentialsUri::Malformed),
            ("169.254.170.23", CredentialsUri::Malformed),
            ("/v1/credentials", CredentialsUri::Malformed),
            ("http://169.254.170.23/$(X)", CredentialsUri::Malformed),
            ("", CredentialsUri::Malformed),
        ] {
            assert_eq!(credentials_uri(text), expect, "{text:?}");
        }
    }
}
