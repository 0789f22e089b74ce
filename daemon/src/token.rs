//! Projected ServiceAccount tokens: where they lie, what they claim, and whether to believe it.

pub mod claims;
pub mod keys;
pub mod verify;
pub mod volume;

use std::fmt;

use zeroize::Zeroizing;

/// Longest token that is read, from disk or from a request; the real ones have about a thousand bytes.
pub const MAX_TOKEN_LENGTH: usize = 16 * 1024;

/// A projected ServiceAccount token, as it lies on disk. It is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes `text` without the white space around it.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The token itself; never to be written anywhere but to STS.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A token has no text form.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
