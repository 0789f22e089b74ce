//! Trust policies: who may assume a role.

/// A role's trust policy. Whoever one of its statements allows may assume the role; there is no `Deny`.
///
/// Condition keys are spelled as in IAM, without the scheme of the issuer's URL: `<issuer>:sub` and `<issuer>:aud`.
#[derive(Debug, Clone, Default)]
pub struct TrustPolicy {
    statements: Vec<Statement>,
}

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `StringEquals`: the same characters.
    StringEquals,
    /// `StringLike`: `*` stands for any characters and none, `?` for one.
    StringLike,
}

#[derive(Debug, Clone)]
struct Statement {
    principal: Principal,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
enum Principal {
    /// Identity provider, without scheme.
    Federated(String),
    /// ARN of a role whose sessions may assume this one.
    Aws(String),
}

#[derive(Debug, Clone)]
struct Condition {
    operator: Operator,
    key: String,
    values: Vec<String>,
}

impl TrustPolicy {
    /// Allows the tokens of one ServiceAccount whose audience is STS, as `eksctl` and AWS's documentation write it.
    pub fn service_account(issuer_url: &str, namespace: &str, service_account: &str) -> Self {
        Self::federated(issuer_url)
            .string_equals("sub", &[&format!("system:serviceaccount:{namespace}:{service_account}")])
            .string_equals("aud", &[rolecall_contract::AUDIENCE])
    }

    /// Allows every token of an identity provider, until conditions narrow it.
    pub fn federated(issuer_url: &str) -> Self {
        Self::of(Principal::Federated(without_scheme(issuer_url).to_owned()))
    }

    /// Allows the sessions of a role, for `AssumeRole`.
    pub fn role(role_arn: &str) -> Self {
        Self::of(Principal::Aws(role_arn.to_owned()))
    }

    /// Allows nobody.
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Narrows the last statement: its issuer's claim (`sub` or `aud`) is one of these values.
    #[must_use]
    pub fn string_equals(self, claim: &str, values: &[&str]) -> Self {
        let key = self.claim_key(claim);
        self.condition(Operator::StringEquals, &key, values)
    }

    /// Narrows the last statement: its issuer's claim (`sub` or `aud`) is like one of these patterns.
    #[must_use]
    pub fn string_like(self, claim: &str, values: &[&str]) -> Self {
        let key = self.claim_key(claim);
        self.condition(Operator::StringLike, &key, values)
    }

    /// Narrows the last statement by a condition whose key is written out.
    #[must_use]
    pub fn condition(mut self, operator: Operator, key: &str, values: &[&str]) -> Self {
        let values = values.iter().map(|&value| value.to_owned()).collect();
        if let Some(statement) = self.statements.last_mut() {
            statement.conditions.push(Condition { operator, key: key.to_owned(), values });
        }
        self
    }

    /// Adds the statements of another policy.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.statements.extend(other.statements);
        self
    }

    /// Whether a verified token may assume the role.
    pub(super) fn allows_token(&self, issuer_url: &str, subject: &str, audiences: &[&str]) -> bool {
        let issuer = without_scheme(issuer_url);
        self.statements.iter().any(|statement| {
            matches!(&statement.principal, Principal::Federated(provider) if provider == issuer)
                && statement.conditions.iter().all(|condition| {
                    let claim = condition.key.strip_prefix(issuer).and_then(|key| key.strip_prefix(':'));
                    match claim {
                        Some("sub") => condition.holds(&[subject]),
                        Some("aud") => condition.holds(audiences),
                        // A key that the request has no value for: such a condition never holds.
                        _ => false,
                    }
                })
        })
    }

    /// Whether a session of this role may assume the role.
    pub(super) fn allows_role(&self, role_arn: &str) -> bool {
        self.statements.iter().any(|statement| {
            matches!(&statement.principal, Principal::Aws(principal) if principal == role_arn)
                && statement.conditions.is_empty()
        })
    }

    fn of(principal: Principal) -> Self {
        Self { statements: vec![Statement { principal, conditions: Vec::new() }] }
    }

    fn claim_key(&self, claim: &str) -> String {
        match self.statements.last().map(|statement| &statement.principal) {
            Some(Principal::Federated(provider)) => format!("{provider}:{claim}"),
            Some(Principal::Aws(_)) | None => claim.to_owned(),
        }
    }
}

impl Condition {
    fn holds(&self, actual: &[&str]) -> bool {
        self.values.iter().any(|value| {
            actual.iter().any(|actual| match self.operator {
                Operator::StringEquals => value == actual,
                Operator::StringLike => is_like(actual, value),
            })
        })
    }
}

/// The issuer as it appears in ARNs and condition keys.
pub(super) fn without_scheme(issuer_url: &str) -> &str {
    issuer_url.split_once("://").map_or(issuer_url, |(_, rest)| rest)
}

/// Matches `*` and `?`. On a mismatch it goes back to the last `*` and lets that one stand for one character more,
/// so the time is bounded by the product of both lengths.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut rule) = (0, 0);
    let mut star = None;
    while at < text.len() {
        match pattern.get(rule) {
            Some('*') => {
                star = Some((rule, at));
                rule += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[at] => {
                at += 1;
                rule += 1;
            }
            _ => match star {
                Some((star_rule, star_at)) => {
                    star = Some((star_rule, star_at + 1));
                    (rule, at) = (star_rule + 1, star_at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[rule..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://oidc.eks.us-east-1.amazonaws.com/id/ABC";
    const SUBJECT: &str = "system:serviceaccount:demo:orders";

    #[track_caller]
    fn check_like(text: &str, pattern: &str, expect: bool) {
        assert_eq!(is_like(text, pattern), expect, "{text:?} like {pattern:?}");
    }

    #[test]
    fn globs_are_real_globs() {
        check_like("", "", true);
        check_like("", "*", true);
        check_like("", "?", false);
        check_like("demo", "demo", true);
        check_like("demo", "dem", false);
        check_like("dem", "demo", false);
        check_like("demo", "d*o", true);
        check_like("demo", "d?mo", true);
        check_like("demo", "d?o", false);
        check_like("a*b", "a?b", true);
        check_like("abcabd", "*abd", true);
        check_like("abcabd", "a*c*d", true);
        check_like("abcabd", "a*c*e", false);
        check_like("Demo", "demo", false);
        check_like("dé", "d?", true);
        check_like(&"a".repeat(2000), &format!("{}b", "a*".repeat(50)), false);
    }

    #[track_caller]
    fn check(policy: &TrustPolicy, subject: &str, audiences: &[&str], expect: bool) {
        assert_eq!(policy.allows_token(ISSUER, subject, audiences), expect, "{subject} {audiences:?}");
    }

    #[test]
    fn a_service_account_is_trusted_and_no_other() {
        let policy = TrustPolicy::service_account(ISSUER, "demo", "orders");
        check(&policy, SUBJECT, &["sts.amazonaws.com"], true);
        check(&policy, SUBJECT, &["other", "sts.amazonaws.com"], true);
        check(&policy, SUBJECT, &["other"], false);
        check(&policy, "system:serviceaccount:demo:orders2", &["sts.amazonaws.com"], false);
        assert!(!policy.allows_token("https://other", SUBJECT, &["sts.amazonaws.com"]));
    }

    #[test]
    fn patterns_and_several_values_widen_a_condition() {
        let policy = TrustPolicy::federated(ISSUER)
            .string_like("sub", &["system:serviceaccount:demo:*", "system:serviceaccount:*:reports"]);
        check(&policy, SUBJECT, &[], true);
        check(&policy, "system:serviceaccount:prod:reports", &[], true);
        check(&policy, "system:serviceaccount:prod:orders", &[], false);
    }

    #[test]
    fn an_asterisk_is_a_character_to_string_equals() {
        let policy = TrustPolicy::federated(ISSUER).string_equals("sub", &["system:serviceaccount:demo:*"]);
        check(&policy, SUBJECT, &[], false);
    }

    #[test]
    fn conditions_narrow_and_statements_widen() {
        let narrow =
            TrustPolicy::federated(ISSUER).string_equals("sub", &[SUBJECT]).string_equals("aud", &["x"]);
        check(&narrow, SUBJECT, &["sts.amazonaws.com"], false);
        let wide = narrow.or(TrustPolicy::service_account(ISSUER, "demo", "orders"));
        check(&wide, SUBJECT, &["sts.amazonaws.com"], true);
    }

    #[test]
    fn a_condition_on_another_issuer_never_holds() {
        let policy = TrustPolicy::federated(ISSUER).condition(Operator::StringLike, "other:sub", &["*"]);
        check(&policy, SUBJECT, &[], false);
    }

    #[test]
    fn nobody_is_trusted_by_an_empty_policy() {
        check(&TrustPolicy::nobody(), SUBJECT, &["sts.amazonaws.com"], false);
        assert!(!TrustPolicy::nobody().allows_role("arn:aws:iam::111122223333:role/orders"));
    }
}
