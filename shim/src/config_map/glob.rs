//! Patterns of names: `*` for any characters, `?` for one.

use std::cmp::Reverse;

/// Longest pattern; a name has 253 characters at most.
pub(super) const MAX_LENGTH: usize = 512;

/// A name, or a pattern of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GlobError {
    Empty,
    Illegal,
}

/// How specific a pattern is: the greater, the more.
pub(super) type Specificity = (bool, usize, Reverse<usize>, Reverse<String>);

impl Glob {
    /// Reads a name or pattern.
    ///
    /// # Errors
    /// Nothing could ever match it.
    pub(super) fn parse(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        let is_legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.*?".contains(&b);
        if MAX_LENGTH < text.len() || !text.bytes().all(is_legal) {
            return Err(GlobError::Illegal);
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it is a plain name.
    pub(super) fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// A plain name first; then more letters of its own, fewer `*`, and the alphabet.
    pub(super) fn specificity(&self) -> Specificity {
        let stars = self.0.matches('*').count();
        let own = self.0.len() - stars - self.0.matches('?').count();
        (self.is_exact(), own, Reverse(stars), Reverse(self.0.clone()))
    }

    /// Whether all of `name` matches, in time proportional to the product of both lengths.
    pub(super) fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut pos) = (0, 0);
        // Where to go on when a later part fails: after the last star, which then takes one character more.
        let mut star: Option<(usize, usize)> = None;
        while pos < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    at += 1;
                    star = Some((at, pos));
                }
                Some(byte) if *byte == b'?' || *byte == name[pos] => {
                    at += 1;
                    pos += 1;
                }
                _ => match star {
                    Some((after, taken)) => {
                        star = Some((after, taken + 1));
                        at = after;
                        pos = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expect: bool) {
        assert_eq!(Glob::parse(pattern).unwrap().matches(name), expect, "{pattern} {name}");
    }

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        for (pattern, name, expect) in [
            ("*", "", true),
            ("*", "shop", true),
            ("test-*", "test-a", true),
            ("test-*", "test-", true),
            ("test-*", "test", false),
            ("test-*", "a-test-b", false),
            ("*-prod", "shop-prod", true),
            ("*-prod", "shop-prod-2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("team-?", "team-a", true),
            ("team-?", "team-", false),
            ("team-?", "team-ab", false),
            ("?*", "x", true),
            ("?*", "", false),
            ("**a", "bba", true),
            ("shop", "shop", true),
            ("shop", "shops", false),
        ] {
            check(pattern, name, expect);
        }
    }

    #[test]
    fn what_no_name_could_match_is_refused() {
        assert_eq!(Glob::parse(""), Err(GlobError::Empty));
        for text in ["Shop", "a/b", "[ab]", "{a,b}", "a b", "é", &"a".repeat(513)] {
            assert_eq!(Glob::parse(text), Err(GlobError::Illegal), "{text}");
        }
    }

    /// The definition, to compare with: no cleverness, exponential time.
    fn matches_by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|taken| matches_by_definition(rest, &name[taken..])),
            [byte, rest @ ..] => {
                matches!(name, [first, others @ ..] if (*byte == b'?' || byte == first) && matches_by_definition(rest, others))
            }
        }
    }

    proptest! {
        #[test]
        fn matching_keeps_to_the_definition(pattern in "[ab*?]{1,8}", name in "[ab]{0,10}") {
            let expect = matches_by_definition(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Glob::parse(&pattern).unwrap().matches(&name), expect);
        }
    }
}
