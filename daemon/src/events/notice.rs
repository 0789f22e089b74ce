//! What is worth an Event, and the words that help: names and ARNs, never a token or a credential.

use std::{fmt::Display, net::IpAddr, sync::Arc};

use rolecall_contract::{RoleArn, RoleArnError};

use crate::{credentials::FetchError, identity::PodIdentity, pods::Pod, token::volume::ReadError};

/// Longest note that the API server takes, in bytes.
///
/// <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>
const MAX_NOTE_LENGTH: usize = 1024;

/// Something that the author of a pod should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// STS denies the role; AWS's code and text.
    StsDenied { role: RoleArn, code: Arc<str>, message: Arc<str> },
    /// STS does not take the token; AWS's code and text.
    StsTokenRefused { role: RoleArn, code: Arc<str>, message: Arc<str> },
    /// The pod asked, and the kubelet has written no token.
    TokenMissing,
    /// What lies in the place of the token cannot be used; why.
    TokenUnusable(&'static str),
    /// The pod has a role and no token to exchange.
    NoTokenVolume,
    /// The pod asked, and has no role.
    NoRole,
    /// The pod's role is no ARN of a role.
    RoleMalformed(RoleArnError),
    /// Something else sent this pod's token: the pod at the address, where it is one's.
    TokenStolen { by: Option<PodIdentity>, from: IpAddr },
    /// This pod sent the token of another.
    ForeignToken { of: PodIdentity },
}

/// The reason of an Event: stable, for searches. `docs/operations.md` has a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    StsDenied,
    StsTokenRefused,
    TokenMissing,
    NoTokenVolume,
    NoRole,
    RoleMalformed,
    TokenStolen,
    ForeignToken,
}

/// What a role's trust policy has to name, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    /// The cluster's issuer; `None` before the API server has named it.
    pub issuer: Option<&'a str>,
    pub audience: &'a str,
}

impl Notice {
    /// What the failure to fetch credentials of `role` is worth telling; `None` for what passes by itself, and for
    /// what only the operator can mend.
    pub fn of_failure(role: &RoleArn, failure: &FetchError) -> Option<Self> {
        match failure {
            FetchError::Denied { code, message, .. } => {
                Some(Self::StsDenied { role: role.clone(), code: code.clone(), message: message.clone() })
            }
            FetchError::TokenRefused { code, message, .. } => Some(Self::StsTokenRefused {
                role: role.clone(),
                code: code.clone(),
                message: message.clone(),
            }),
            FetchError::TokenUnusable(ReadError::Unusable(why)) => Some(Self::TokenUnusable(why)),
            FetchError::TokenUnusable(ReadError::Missing | ReadError::Io(_))
            | FetchError::Throttled { .. }
            | FetchError::Unreachable { .. }
            | FetchError::TokenMissing
            | FetchError::PodGone => None,
        }
    }

    /// What can be seen to be wrong with `pod` before it asks.
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        if pod.finished {
            return None;
        }
        match pod.binding.role.as_ref()? {
            Err(error) => Some(Self::RoleMalformed(error.clone())),
            Ok(_) if pod.token_volumes.is_empty() => Some(Self::NoTokenVolume),
            Ok(_) => None,
        }
    }

    pub fn reason(&self) -> Reason {
        match self {
            Self::StsDenied { .. } => Reason::StsDenied,
            Self::StsTokenRefused { .. } => Reason::StsTokenRefused,
            Self::TokenMissing | Self::TokenUnusable(_) => Reason::TokenMissing,
            Self::NoTokenVolume => Reason::NoTokenVolume,
            Self::NoRole => Reason::NoRole,
            Self::RoleMalformed(_) => Reason::RoleMalformed,
            Self::TokenStolen { .. } => Reason::TokenStolen,
            Self::ForeignToken { .. } => Reason::ForeignToken,
        }
    }

    /// The other pod that it is about.
    pub(super) fn related(&self) -> Option<&PodIdentity> {
        match self {
            Self::TokenStolen { by, .. } => by.as_ref(),
            Self::ForeignToken { of } => Some(of),
            Self::StsDenied { .. }
            | Self::StsTokenRefused { .. }
            | Self::TokenMissing
            | Self::TokenUnusable(_)
            | Self::NoTokenVolume
            | Self::NoRole
            | Self::RoleMalformed(_) => None,
        }
    }

    /// What is wrong with `pod` and what to do; AWS's own words come last, for a note has an end.
    pub(super) fn note(&self, pod: &PodIdentity, trust: Trust<'_>) -> String {
        let note = match self {
            Self::StsDenied { role, code, message } => denied(pod, trust, role, code, message),
            Self::StsTokenRefused { role, code, message } => format!(
                "STS does not take the pod's token for {role} ({code}). Check that account {} has the IAM identity \
                 provider {} with the audience {}, and that AWS can fetch the issuer's documents. AWS says: {message}",
                role.account(),
                trust.provider(role),
                trust.audience,
            ),
            Self::TokenMissing => "The pod asked for credentials, and the kubelet has not written its token. Check \
                that a container mounts the volume of the token, and what else keeps the kubelet from setting up the \
                pod's volumes."
                .to_owned(),
            Self::TokenUnusable(why) => format!(
                "The pod's token cannot be used: {why}. Create the pod again; the kubelet then writes a new one."
            ),
            Self::NoTokenVolume => format!(
                "The pod has a role but no projected token with the audience {}, so it gets no credentials: it was \
                 created while the webhook was away, or was set up by hand without the volume. Create it again.",
                trust.audience
            ),
            Self::NoRole => "The pod asked for credentials, and has no role. Annotate its ServiceAccount with \
                rolecall.dev/role-arn (or eks.amazonaws.com/role-arn), and create the pod again."
                .to_owned(),
            Self::RoleMalformed(error) => {
                format!("The role that is asked for cannot be used: {error}. Correct the annotation of the ServiceAccount, or the path of the request.")
            }
            Self::TokenStolen { by, from } => format!(
                "{} sent this pod's token and was refused. Find out how it got the token, which STS takes from anybody until \
                 it expires. If the network hides the addresses of pods, this may be a false alarm: see --witness.",
                match by {
                    Some(thief) => format!("The pod {thief}, at {from},"),
                    None => format!("Something at {from}, which is not this pod's address,"),
                },
            ),
            Self::ForeignToken { of } => format!(
                "This pod sent the token of the pod {of} and was refused. A pod gets credentials for its own token alone: \
                 read the file that AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names in this pod."
            ),
        };
        capped(note)
    }
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StsDenied => "StsDenied",
            Self::StsTokenRefused => "StsTokenRefused",
            Self::TokenMissing => "TokenMissing",
            Self::NoTokenVolume => "NoTokenVolume",
            Self::NoRole => "NoRole",
            Self::RoleMalformed => "RoleMalformed",
            Self::TokenStolen => "TokenStolen",
            Self::ForeignToken => "ForeignToken",
        }
    }
}

impl Trust<'_> {
    /// The issuer as IAM writes it: without its scheme.
    fn issuer(&self) -> &str {
        let issuer = self.issuer.filter(|issuer| !issuer.is_empty()).unwrap_or("<the cluster's issuer>");
        issuer.strip_prefix("https://").unwrap_or(issuer)
    }

    /// The identity provider in the account of `role`.
    ///
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html>
    fn provider(&self, role: &RoleArn) -> impl Display {
        format!("arn:{}:iam::{}:oidc-provider/{}", role.partition(), role.account(), self.issuer())
    }
}

/// Codes other than `AccessDenied` are not about the trust policy: a region that is off, a session longer than the role
/// allows.
fn denied(pod: &PodIdentity, trust: Trust<'_>, role: &RoleArn, code: &str, message: &str) -> String {
    let PodIdentity { namespace, service_account, .. } = pod;
    if code != "AccessDenied" {
        return format!(
            "STS denies {role} to the ServiceAccount {namespace}/{service_account} ({code}). AWS says: {message}"
        );
    }
    let (provider, issuer, audience) = (trust.provider(role), trust.issuer(), trust.audience);
    format!(
        "STS denies {role} to the ServiceAccount {namespace}/{service_account} ({code}). Check that the role exists, and \
         that its trust policy allows sts:AssumeRoleWithWebIdentity to the federated principal {provider} where {issuer}:sub \
         is system:serviceaccount:{namespace}:{service_account} and {issuer}:aud is {audience}. AWS says: {message}"
    )
}

/// Cuts off what the API server would refuse.
fn capped(mut note: String) -> String {
    const END: &str = "…";
    if MAX_NOTE_LENGTH < note.len() {
        note.truncate(note.floor_char_boundary(MAX_NOTE_LENGTH - END.len()));
        note.push_str(END);
    }
    note
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pods::object::PodObject;

    const ROLE: &str = "arn:aws-cn:iam::111122223333:role/team/orders";
    const TRUST: Trust<'_> =
        Trust { issuer: Some("https://oidc.example/id/1"), audience: "sts.amazonaws.com" };

    fn pod() -> PodIdentity {
        PodIdentity {
            uid: "uid-1".parse().unwrap(),
            namespace: "shop".into(),
            name: "orders-0".into(),
            service_account: "orders".into(),
        }
    }

    fn denied_with(code: &str, message: &str) -> Notice {
        Notice::of_failure(
            &ROLE.parse().unwrap(),
            &FetchError::Denied { code: code.into(), message: message.into(), request_id: None },
        )
        .unwrap()
    }

    /// That the note of `notice` has these parts in this order.
    #[track_caller]
    fn check(notice: &Notice, parts: &[&str]) {
        let note = notice.note(&pod(), TRUST);
        let mut rest = note.as_str();
        for part in parts {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not there in turn: {note}"));
            rest = &rest[at + part.len()..];
        }
    }

    #[test]
    fn a_denial_names_every_condition_of_the_trust_policy() {
        let notice = denied_with("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
        check(
            &notice,
            &[
                ROLE,
                "shop/orders",
                "role exists",
                "arn:aws-cn:iam::111122223333:oidc-provider/oidc.example/id/1",
                "oidc.example/id/1:sub is system:serviceaccount:shop:orders",
                "oidc.example/id/1:aud is sts.amazonaws.com",
                "AWS says: Not authorized",
            ],
        );
        let unknown = notice.note(&pod(), Trust { issuer: None, ..TRUST });
        assert!(unknown.contains("oidc-provider/<the cluster's issuer> where"), "{unknown}");
    }

    #[test]
    fn a_denial_for_another_cause_does_not_send_people_to_the_trust_policy() {
        let notice = denied_with("RegionDisabledException", "STS is not activated in this region");
        check(&notice, &["RegionDisabledException", "AWS says: STS is not activated"]);
        assert!(!notice.note(&pod(), TRUST).contains("trust policy"));
    }

    #[test]
    fn a_note_that_is_too_long_loses_its_end_and_keeps_the_help() {
        let pod = PodIdentity {
            namespace: "n".repeat(63).into(),
            service_account: "s".repeat(253).into(),
            ..pod()
        };
        let note = denied_with("AccessDenied", &"ü".repeat(512)).note(&pod, TRUST);
        assert!((MAX_NOTE_LENGTH - 4..=MAX_NOTE_LENGTH).contains(&note.len()), "{}", note.len());
        assert!(note.contains(":aud is sts.amazonaws.com") && note.ends_with('…'), "{note}");
    }

    #[test]
    fn what_passes_by_itself_and_what_the_operator_must_mend_is_no_event_on_a_pod() {
        let role: RoleArn = ROLE.parse().unwrap();
        let io = ReadError::Io(Arc::new(std::io::Error::other("permission denied")));
        for failure in [
            FetchError::Throttled { code: "Throttling".into(), message: "".into(), request_id: None },
            FetchError::Unreachable { cause: "timed out".into() },
            FetchError::TokenMissing,
            FetchError::TokenUnusable(io),
            FetchError::PodGone,
        ] {
            assert_eq!(Notice::of_failure(&role, &failure), None, "{failure}");
        }
    }

    #[test]
    fn a_refused_token_names_the_identity_provider() {
        let role = ROLE.parse().unwrap();
        let failure = FetchError::TokenRefused {
            code: "InvalidIdentityToken".into(),
            message: "No OpenIDConnect provider found".into(),
            request_id: None,
        };
        check(
            &Notice::of_failure(&role, &failure).unwrap(),
            &["111122223333", "oidc-provider/oidc.example/id/1", "sts.amazonaws.com", "No OpenIDConnect"],
        );
    }

    #[track_caller]
    fn check_pod(change: Value, expect: Option<Reason>) {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": "u-1", "namespace": "shop", "name": "orders-0"},
            "spec": {"volumes": [{"name": "rolecall-token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "sts.amazonaws.com", "path": "token"}},
            ]}}]},
        });
        for (key, value) in change.as_object().unwrap() {
            object[key] = value.clone();
        }
        let object: PodObject = serde_json::from_value(object).unwrap();
        let pod = Pod::read(&object, "sts.amazonaws.com").unwrap();
        assert_eq!(Notice::of_pod(&pod).map(|notice| notice.reason()), expect);
    }

    #[test]
    fn what_is_wrong_with_a_pod_is_seen_before_it_asks() {
        let with_role = |role: &str| {
            json!({"uid": "u-1", "namespace": "shop", "name": "orders-0",
                "annotations": {"rolecall.dev/role-arn": role}})
        };
        check_pod(json!({}), None);
        check_pod(json!({"metadata": with_role(ROLE)}), None);
        check_pod(json!({"metadata": with_role("orders")}), Some(Reason::RoleMalformed));
        check_pod(json!({"metadata": with_role(ROLE), "spec": {}}), Some(Reason::NoTokenVolume));
        check_pod(json!({"metadata": with_role("orders"), "status": {"phase": "Failed"}}), None);
    }

    #[test]
    fn a_stolen_token_names_the_thief_where_it_is_known() {
        let from: IpAddr = "10.0.0.9".parse().unwrap();
        let thief = PodIdentity { name: "thief-0".into(), ..pod() };
        let by_pod = Notice::TokenStolen { by: Some(thief.clone()), from };
        check(&by_pod, &["The pod shop/thief-0, at 10.0.0.9, sent this pod's token", "--witness"]);
        assert_eq!(by_pod.related(), Some(&thief));
        check(&Notice::TokenStolen { by: None, from }, &["Something at 10.0.0.9"]);
        check(&Notice::ForeignToken { of: pod() }, &["token of the pod shop/orders-0"]);
    }
}
