//! Role ARNs as STS checks and rewrites them.

use super::error::StsError;

/// The parts of `arn:<partition>:iam::<account>:role/<path/><name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role<'a> {
    pub(super) partition: &'a str,
    pub(super) account: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Role<'a> {
    pub(super) fn parse(arn: &'a str) -> Result<Self, StsError> {
        if arn.len() < 20 {
            return Err(StsError::constraint(
                &format!("'{arn}'"),
                "roleArn",
                "Member must have length greater than or equal to 20",
            ));
        }
        if 2048 < arn.len() {
            return Err(StsError::constraint(
                &format!("'{arn}'"),
                "roleArn",
                "Member must have length less than or equal to 2048",
            ));
        }
        let invalid = || StsError::validation(format!("{arn} is invalid"));
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let &["arn", partition, "iam", "", account, resource] = parts.as_slice() else {
            return Err(invalid());
        };
        let path = resource.strip_prefix("role/").ok_or_else(invalid)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let known_partition = partition == "aws" || partition.starts_with("aws-");
        let account_is_valid = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let name_is_valid = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte));
        if known_partition && account_is_valid && name_is_valid && !path.contains("//") {
            Ok(Self { partition, account, name })
        } else {
            Err(invalid())
        }
    }

    /// ARN of a session of this role; the role's path is not part of it.
    pub(super) fn session(&self, session_name: &str) -> String {
        let Self { partition, account, name } = self;
        format!("arn:{partition}:sts::{account}:assumed-role/{name}/{session_name}")
    }

    /// ARN of an identity provider in this role's account.
    pub(super) fn provider(&self, issuer: &str) -> String {
        format!("arn:{}:iam::{}:oidc-provider/{issuer}", self.partition, self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_and_path_is_read() {
        for (arn, session) in [
            ("arn:aws:iam::111122223333:role/orders", "arn:aws:sts::111122223333:assumed-role/orders/s-1"),
            (
                "arn:aws-cn:iam::111122223333:role/orders",
                "arn:aws-cn:sts::111122223333:assumed-role/orders/s-1",
            ),
            (
                "arn:aws-us-gov:iam::111122223333:role/a/b/orders",
                "arn:aws-us-gov:sts::111122223333:assumed-role/orders/s-1",
            ),
        ] {
            assert_eq!(Role::parse(arn).unwrap().session("s-1"), session);
        }
    }

    #[test]
    fn what_is_no_role_is_a_validation_error() {
        for arn in [
            "orders",
            "arn:aws:iam::111122223333:user/orders",
            "arn:aws:iam::11112222333:role/orders",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a//orders",
            "arn:aws:iam::111122223333:role/with space",
            "arn:aws:sts::111122223333:role/orders",
            "arn:aws:iam:us-east-1:111122223333:role/orders",
            "arn:azure:iam::111122223333:role/orders",
            "xrn:aws:iam::111122223333:role/orders",
        ] {
            assert_eq!(Role::parse(arn).unwrap_err().code(), "ValidationError", "{arn}");
        }
    }
}
