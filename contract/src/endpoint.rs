//! The container credentials endpoint: addresses, path and the variables that point an SDK at it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::RoleArn;

/// The address every AWS SDK accepts in a plain-http full URI.
///
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);

/// The same for nodes with IPv6.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);

/// The address of SDKs that only know [`RELATIVE_URI_ENV`].
pub const RELATIVE_ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

/// TCP port of the endpoint.
pub const PORT: u16 = 80;

/// Path that answers with the credentials of the pod's own role.
pub const CREDENTIALS_PATH: &str = "/v1/credentials";

/// Variable with the full URI of the endpoint.
pub const FULL_URI_ENV: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";

/// Variable with the path alone, resolved against [`RELATIVE_ADDRESS_V4`].
pub const RELATIVE_URI_ENV: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";

/// Variable with the path of the token's file, which an SDK sends as `Authorization`.
pub const TOKEN_FILE_ENV: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// The role that a request path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRole<'a> {
    /// `/v1/credentials`: the pod's own role.
    Own,
    /// `/v1/credentials/<role-arn>`: what follows the last slash of the prefix, not yet parsed.
    Named(&'a str),
}

/// Reads a request path; `None` for any other path. Paths are exact: nothing is decoded or normalised.
#[must_use]
pub fn parse_path(path: &str) -> Option<PathRole<'_>> {
    match path.strip_prefix(CREDENTIALS_PATH)? {
        "" => Some(PathRole::Own),
        rest => rest.strip_prefix('/').map(PathRole::Named),
    }
}

/// The path that asks for `role`.
#[must_use]
pub fn path_of(role: &RoleArn) -> String {
    format!("{CREDENTIALS_PATH}/{role}")
}

/// The path that asks for the role that `text` names, right or wrong; `None` where a URI cannot carry the text as
/// it is.
///
/// The daemon decodes nothing, so nothing can be escaped: the text has to consist of the characters of a path
/// (<https://www.rfc-editor.org/rfc/rfc3986#section-3.3>), without segments that a client would resolve, and
/// without `$`, which Kubernetes expands in the value of a variable.
#[must_use]
pub fn uri_path_of(text: &str) -> Option<String> {
    let is_carried = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!&'()*+,;=:@/".contains(&byte);
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
    (text.bytes().all(is_carried) && text.split('/').all(is_segment))
        .then(|| format!("{CREDENTIALS_PATH}/{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_exact() {
        assert_eq!(parse_path("/v1/credentials"), Some(PathRole::Own));
        assert_eq!(parse_path("/v1/credentials/"), Some(PathRole::Named("")));
        assert_eq!(parse_path("/v1/credentials/arn:x"), Some(PathRole::Named("arn:x")));
        for other in [
            "/",
            "",
            "/v1/credential",
            "/v1/credentialsX",
            "/V1/credentials",
            "//v1/credentials",
            "/v1//credentials",
        ] {
            assert_eq!(parse_path(other), None, "{other}");
        }
    }

    #[test]
    fn a_uri_carries_only_what_no_client_changes() {
        for text in ["arn:aws:iam::111122223333:role/team/orders", "orders", "arn:aws:iam::1:role/a_+=,.@-b"]
        {
            let path = uri_path_of(text).unwrap();
            assert_eq!(parse_path(&path), Some(PathRole::Named(text)));
        }
        for text in
            ["", "role/../x", "role/./x", "role//x", "role/", "a b", "a?b", "a#b", "a%41", "$(HOME)", "é"]
        {
            assert_eq!(uri_path_of(text), None, "{text}");
        }
    }

    #[test]
    fn the_path_of_a_role_leads_back_to_it() {
        let role: RoleArn = "arn:aws-us-gov:iam::111122223333:role/team/a/orders".parse().unwrap();
        let path = path_of(&role);
        let Some(PathRole::Named(named)) = parse_path(&path) else { panic!("{path}") };
        assert_eq!(named.parse::<RoleArn>().unwrap(), role);
    }
}
