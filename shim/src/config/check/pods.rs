//! The rules of what pods get.

use rolecall_contract::{annotation, endpoint};

use rolecall_process::setting::Checked;

use super::{
    error_text, filled,
    form::{
        self, CredentialsUri, credentials_uri, is_dns_name, is_mount_path, is_path_inside, is_region, is_word,
    },
};
use crate::{
    args::{IdentityArgs, PodArgs},
    binding::{MAX_LIFETIME, MIN_LIFETIME},
    policy::{ContainerCredentials, Policy},
    session_name::SessionName,
};

pub(super) fn check_policy(checked: &mut Checked, args: PodArgs, identities: &IdentityArgs) -> Policy {
    let base_role_arn = filled(args.base_role_arn).and_then(|text| match text.parse() {
        Ok(base) => Some(base),
        Err(error) => {
            checked.mistake("--base-role-arn", format!("{text:?}"), error_text(&error));
            None
        }
    });
    if args.compose_role_arn && base_role_arn.is_none() {
        checked.warnings.push(
            "--compose-role-arn: the node's metadata is not asked here, so bare role names are not completed; \
             give the account and the partition by --base-role-arn, such as arn:aws:iam::111122223333:role/"
                .to_owned(),
        );
    }
    let prefix = Some(args.compatibility_prefix).filter(|prefix| !prefix.is_empty());
    if let Some(prefix) = &prefix {
        checked.that(
            is_dns_name(prefix),
            "--compatibility-prefix",
            prefix,
            "an annotation's prefix is a DNS name, such as eks.amazonaws.com; empty for none",
        );
        checked.that(
            prefix != annotation::PREFIX,
            "--compatibility-prefix",
            prefix,
            "this prefix counts in any case; leave the flag empty for no other",
        );
    }
    check_audience(checked, "--audience", &args.audience, "sts.amazonaws.com");
    let token_mount_path = check_directory(checked, "--token-mount-path", args.token_mount_path);
    let token_expiration = check_lifetime(checked, args.token_expiration);
    let region = filled(args.region);
    if let Some(region) = &region {
        checked.that(is_region(region), "--region", region, "give one region, such as eu-central-1");
    }
    checked.that(
        args.endpoint_address == endpoint::ADDRESS_V4 || args.endpoint_address == endpoint::ADDRESS_V6,
        "--endpoint-address",
        args.endpoint_address,
        "SDKs accept 169.254.170.23 and fd00:ec2::23; give one of these",
    );
    let session_name = filled(args.session_name).and_then(|text| match text.parse::<SessionName>() {
        Ok(template) => Some(template),
        Err(error) => {
            checked.mistake("--session-name", format!("{text:?}"), error_text(&error));
            None
        }
    });
    if args.allow_pod_role_annotation {
        checked.warnings.push(
            "--allow-pod-role-annotation: whoever may create pods in a namespace chooses among the roles that \
             trust its ServiceAccounts"
                .to_owned(),
        );
    }
    Policy {
        default_mode: args.default_mode,
        compatibility_prefix: prefix,
        audience: args.audience,
        token_mount_path,
        token_expiration,
        region,
        sts_regional_endpoints: args.sts_regional_endpoint,
        base_role_arn,
        pod_role_annotation_allowed: args.allow_pod_role_annotation,
        take_over_irsa: args.take_over_irsa,
        endpoint_address: args.endpoint_address,
        node_selectors_without_daemon: args
            .no_daemon_node_selector
            .into_iter()
            .map(|selector| (selector.key, selector.value))
            .collect(),
        session_name,
        container_credentials: check_container_credentials(checked, identities),
    }
}

fn check_container_credentials(checked: &mut Checked, args: &IdentityArgs) -> ContainerCredentials {
    let IdentityArgs {
        watch_container_credentials_config: _,
        container_credentials_audience: audience,
        container_credentials_token_mount_path: mount_path,
        container_credentials_token_volume_name: volume_name,
        container_credentials_token_path: token_path,
        container_credentials_full_uri: full_uri,
    } = args.clone();
    check_audience(checked, "--container-credentials-audience", &audience, "pods.eks.amazonaws.com");
    let mount_path = check_directory(checked, "--container-credentials-token-mount-path", mount_path);
    form::check_label(checked, "--container-credentials-token-volume-name", &volume_name);
    checked.that(
        is_path_inside(&token_path),
        "--container-credentials-token-path",
        &token_path,
        "give the name of a file in the volume, such as eks-pod-identity-token",
    );
    match credentials_uri(&full_uri) {
        CredentialsUri::Good => {}
        CredentialsUri::Refused => checked.warnings.push(format!(
            "--container-credentials-full-uri {full_uri:?}: SDKs send no token there; they take https, or http to \
             169.254.170.23, fd00:ec2::23, 169.254.170.2 or loopback"
        )),
        CredentialsUri::Malformed => checked.mistake(
            "--container-credentials-full-uri",
            format!("{full_uri:?}"),
            "give a URL, such as http://169.254.170.23/v1/credentials",
        ),
    }
    ContainerCredentials { audience, mount_path, volume_name, token_path, full_uri }
}

fn check_audience(checked: &mut Checked, flag: &'static str, audience: &str, example: &str) {
    let remedy = format!("give the audience of the tokens, without blanks, usually {example}");
    checked.that(is_word(audience), flag, audience, &remedy);
}

/// The directory without a slash at its end, which means nothing.
fn check_directory(checked: &mut Checked, flag: &'static str, path: String) -> String {
    let trimmed = path.trim_end_matches('/').to_owned();
    checked.that(
        is_mount_path(&trimmed),
        flag,
        path,
        "give an absolute path in the containers below the root, such as \
         /var/run/secrets/eks.amazonaws.com/serviceaccount, without a colon and without \"..\"",
    );
    trimmed
}

fn check_lifetime(checked: &mut Checked, seconds: i64) -> u64 {
    checked.that(
        u64::try_from(seconds).unwrap_or_default() <= MAX_LIFETIME,
        "--token-expiration",
        seconds,
        &format!("the API server gives tokens for {MIN_LIFETIME} to {MAX_LIFETIME} s; 86400 is a day"),
    );
    let asked = u64::try_from(seconds).unwrap_or_default();
    if asked < MIN_LIFETIME {
        checked.warnings.push(format!(
            "--token-expiration {seconds}: the API server gives no token for less than {MIN_LIFETIME} s; \
             {MIN_LIFETIME} s are asked for"
        ));
    }
    asked.max(MIN_LIFETIME)
}
