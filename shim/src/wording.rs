//! The wording of warnings: what somebody else wrote is quoted, cut and cleaned.

/// Most characters of somebody's text in a warning. The API server cuts a warning at 256 characters, and its
/// remedy stands at the end.
const MAX_QUOTED: usize = 64;

/// `text` in quotation marks, without characters that could break out of a line, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_QUOTED)
        .map(|c| if c.is_control() || c == '"' || c == '\\' { '?' } else { c })
        .collect();
    if MAX_QUOTED < text.chars().count() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_break_out() {
        assert_eq!(quoted("a\"b\\c\nd"), "\"a?b?c?d\"");
        assert_eq!(quoted(&"é".repeat(65)), format!("\"{}…\"", "é".repeat(64)));
    }
}
