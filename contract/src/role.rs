//! The ARN of an IAM role, parsed once.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest ARN that STS takes (`RoleArn` of `AssumeRoleWithWebIdentity`).
///
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub const MAX_LENGTH: usize = 2048;

/// Longest role name.
///
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
pub const MAX_NAME_LENGTH: usize = 64;

/// Longest role path, both slashes included.
///
/// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html>
pub const MAX_PATH_LENGTH: usize = 512;

/// The ARN of an IAM role, in any partition and with any path: `arn:aws:iam::111122223333:role/team/orders`.
///
/// Cloning is cheap. Comparison is by the text: IAM's names are case-insensitively unique, STS's are not.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleArn(Arc<str>);

/// Why a text is not the ARN of a role, in words for the author of the pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleArnError {
    /// There is no text at all.
    #[error("the role ARN is empty; expected arn:aws:iam::<account>:role/<name>")]
    Empty,
    /// The text is longer than any ARN may be.
    #[error("the role ARN has {0} characters; at most {MAX_LENGTH} are possible")]
    TooLong(usize),
    /// The text does not have the six fields of an ARN.
    #[error("a role ARN starts with arn:; expected arn:aws:iam::<account>:role/<name>, not a bare role name")]
    NotAnArn,
    /// The second field is not a partition of AWS.
    #[error("the partition of a role ARN is aws, aws-cn, aws-us-gov or another that starts with aws")]
    Partition,
    /// The third field is something else than `iam`.
    #[error("the service of a role ARN is iam; an assumed-role ARN (sts) names a session, not a role")]
    Service,
    /// The fourth field is not empty.
    #[error("a role ARN has no region: IAM is global, so the field between iam: and :<account> is empty")]
    Region,
    /// The fifth field is not an account id.
    #[error("the account of a role ARN has exactly 12 digits")]
    Account,
    /// The resource is not a role.
    #[error(
        "the resource of a role ARN starts with role/; users, groups and instance profiles have no sessions"
    )]
    NotARole,
    /// The path in front of the name is wrong.
    #[error(
        "the path of a role ARN has at most {MAX_PATH_LENGTH} printable ASCII characters without quote and backslash"
    )]
    Path,
    /// The name is wrong.
    #[error("the name of a role has 1 to {MAX_NAME_LENGTH} characters out of letters, digits and _+=,.@-")]
    Name,
}

impl RoleArn {
    /// The whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `aws`, `aws-cn`, `aws-us-gov`, …
    #[must_use]
    pub fn partition(&self) -> &str {
        self.field(1)
    }

    /// The twelve digits of the account.
    #[must_use]
    pub fn account(&self) -> &str {
        self.field(4)
    }

    /// The role's name, without its path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    fn field(&self, index: usize) -> &str {
        self.0.split(':').nth(index).unwrap_or_default()
    }
}

impl FromStr for RoleArn {
    type Err = RoleArnError;

    fn from_str(text: &str) -> Result<Self, RoleArnError> {
        check(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(text: &str) -> Result<(), RoleArnError> {
    if text.is_empty() {
        return Err(RoleArnError::Empty);
    }
    if MAX_LENGTH < text.len() {
        return Err(RoleArnError::TooLong(text.len()));
    }
    // The resource is the sixth field and may hold colons of its own: a path is any printable ASCII.
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    let [prefix, partition, service, region, account, resource] = fields[..] else {
        return Err(RoleArnError::NotAnArn);
    };
    if prefix != "arn" {
        return Err(RoleArnError::NotAnArn);
    }
    if !is_partition(partition) {
        return Err(RoleArnError::Partition);
    }
    if service != "iam" {
        return Err(RoleArnError::Service);
    }
    if !region.is_empty() {
        return Err(RoleArnError::Region);
    }
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return Err(RoleArnError::Account);
    }
    let resource = resource.strip_prefix("role").ok_or(RoleArnError::NotARole)?;
    let Some(slash) = resource.rfind('/') else {
        return Err(RoleArnError::NotARole);
    };
    let (path, name) = resource.split_at(slash + 1);
    if !path.starts_with('/') {
        return Err(RoleArnError::NotARole);
    }
    // Quote and backslash are legal in IAM and refused here: the reply carries the ARN, and some clients read
    // JSON without undoing escapes (fluent-bit).
    if MAX_PATH_LENGTH < path.len() || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    {
        return Err(RoleArnError::Path);
    }
    if name.is_empty() || MAX_NAME_LENGTH < name.len() || !name.bytes().all(is_name_byte) {
        return Err(RoleArnError::Name);
    }
    Ok(())
}

fn is_partition(text: &str) -> bool {
    text.strip_prefix("aws").is_some_and(|rest| {
        rest.is_empty()
            || (rest.starts_with('-')
                && !rest.ends_with('-')
                && rest.bytes().all(|b| b == b'-' || b.is_ascii_lowercase() || b.is_ascii_digit()))
    })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_error(text: &str, expect: RoleArnError) {
        assert_eq!(text.parse::<RoleArn>(), Err(expect), "{text}");
    }

    #[track_caller]
    fn check_parts(text: &str, partition: &str, account: &str, name: &str) {
        let role: RoleArn = text.parse().unwrap();
        assert_eq!((role.partition(), role.account(), role.name()), (partition, account, name), "{text}");
        assert_eq!(role.to_string(), text);
    }

    #[test]
    fn every_partition_and_path_is_read() {
        check_parts("arn:aws:iam::111122223333:role/orders", "aws", "111122223333", "orders");
        check_parts("arn:aws-cn:iam::111122223333:role/a/b/orders", "aws-cn", "111122223333", "orders");
        check_parts(
            "arn:aws-us-gov:iam::012345678901:role/o_+=,.@-1",
            "aws-us-gov",
            "012345678901",
            "o_+=,.@-1",
        );
        for partition in ["aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f", "aws-eusc"] {
            check_parts(&format!("arn:{partition}:iam::111122223333:role/x"), partition, "111122223333", "x");
        }
        check_parts("arn:aws:iam::111122223333:role/a:b/%?#/orders", "aws", "111122223333", "orders");
    }

    #[test]
    fn each_mistake_has_its_own_words() {
        check_error("", RoleArnError::Empty);
        check_error(&"a".repeat(2049), RoleArnError::TooLong(2049));
        check_error("orders", RoleArnError::NotAnArn);
        check_error("aws:arn:iam::111122223333:role/x", RoleArnError::NotAnArn);
        check_error("arn:aws:iam::111122223333", RoleArnError::NotAnArn);
        check_error(" arn:aws:iam::111122223333:role/x", RoleArnError::NotAnArn);
        check_error("arn:azure:iam::111122223333:role/x", RoleArnError::Partition);
        check_error("arn:aws-:iam::111122223333:role/x", RoleArnError::Partition);
        check_error("arn:awsx:iam::111122223333:role/x", RoleArnError::Partition);
        check_error("arn:aws:sts::111122223333:assumed-role/x/y", RoleArnError::Service);
        check_error("arn:aws:iam:eu-west-1:111122223333:role/x", RoleArnError::Region);
        check_error("arn:aws:iam::11112222333:role/x", RoleArnError::Account);
        check_error("arn:aws:iam::11112222333a:role/x", RoleArnError::Account);
        check_error("arn:aws:iam::111122223333:user/x", RoleArnError::NotARole);
        check_error("arn:aws:iam::111122223333:role", RoleArnError::NotARole);
        check_error("arn:aws:iam::111122223333:roles/x", RoleArnError::NotARole);
        check_error("arn:aws:iam::111122223333:role/a\"b/x", RoleArnError::Path);
        check_error("arn:aws:iam::111122223333:role/a b/x", RoleArnError::Path);
        check_error(&format!("arn:aws:iam::111122223333:role/{}/x", "p".repeat(511)), RoleArnError::Path);
        check_error("arn:aws:iam::111122223333:role/", RoleArnError::Name);
        check_error("arn:aws:iam::111122223333:role/x\n", RoleArnError::Name);
        check_error("arn:aws:iam::111122223333:role/ordérs", RoleArnError::Name);
        check_error(&format!("arn:aws:iam::111122223333:role/{}", "n".repeat(65)), RoleArnError::Name);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_is_printable(text in "\\PC{0,80}") {
            if let Ok(role) = text.parse::<RoleArn>() {
                prop_assert!(role.as_str().bytes().all(|b| b.is_ascii_graphic()));
            }
        }

        #[test]
        fn what_is_well_formed_parses(account in "[0-9]{12}", path in "(/[!#-\\[\\]-~]{1,20}){0,3}/", name in "[A-Za-z0-9_+=,.@-]{1,64}") {
            let text = format!("arn:aws:iam::{account}:role{path}{name}");
            let role: RoleArn = text.parse().unwrap();
            prop_assert_eq!(role.name(), name);
            prop_assert_eq!(role.account(), account);
        }
    }
}
