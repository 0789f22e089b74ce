//! The wording of warnings and logs: what somebody else wrote is cut and cleaned.

/// Most characters of somebody's text in a warning. The API server cuts a warning at 256 characters, and its
/// remedy stands at the end.
const MAX_QUOTED: usize = 64;

/// Longest name of an object; what a review says before anybody has checked it may be longer.
const MAX_NAME: usize = 253;

/// `text` in quotation marks, without characters that could break out of a line, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", cleaned(text, MAX_QUOTED))
}

/// A name without characters that could break out of a line, and not longer than one can be.
pub(crate) fn name(text: &str) -> String {
    cleaned(text, MAX_NAME)
}

/// The first of `texts` that have room in `bytes` together, and how many have not.
pub(crate) fn fitting(texts: Vec<String>, bytes: usize) -> (Vec<String>, usize) {
    let all = texts.len();
    let mut length = 0;
    let kept: Vec<String> = texts
        .into_iter()
        .take_while(|text| {
            length += text.len();
            length <= bytes
        })
        .collect();
    let left_out = all - kept.len();
    (kept, left_out)
}

/// The first `most` characters of `text`, and a sign that there are more.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

fn cleaned(text: &str, most: usize) -> String {
    cut(text, most).chars().map(|c| if c.is_control() || c == '"' || c == '\\' { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_break_out() {
        assert_eq!(quoted("a\"b\\c\nd"), "\"a?b?c?d\"");
        assert_eq!(quoted(&"é".repeat(65)), format!("\"{}…\"", "é".repeat(64)));
        assert_eq!(quoted(&"é".repeat(64)), format!("\"{}\"", "é".repeat(64)));
        assert_eq!(name(&"a".repeat(100_000)).len(), 253 + "…".len());
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let texts = || ["aa", "bb", "cc"].map(str::to_owned).to_vec();
        assert_eq!(fitting(texts(), 6), (texts(), 0));
        assert_eq!(fitting(texts(), 5), (texts()[..2].to_vec(), 1));
        assert_eq!(fitting(texts(), 0), (Vec::new(), 3));
    }
}
