//! The table of SDKs in the documentation.

use super::Outcome;
use super::program::Uri;

/// The rows, as Markdown.
pub(super) fn render(outcomes: &[Outcome]) -> String {
    let mut table = String::from(
        "| SDK | version | what is injected | first call, STS at 10 s | timeouts met | renewed |\n|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let injected = match outcome.client.uri {
            Uri::Full => "full URI",
            Uri::Relative => "relative URI",
        };
        let first = match outcome.answers.first() {
            Some(answer) if 0.0 < answer.elapsed_seconds => {
                format!("succeeds after {:.1} s", answer.elapsed_seconds)
            }
            Some(_) => "succeeds".to_owned(),
            None => "fails".to_owned(),
        };
        let renewed = match (outcome.client.keeps_credentials, outcome.answers.len()) {
            (true, 2..) => "yes",
            (true, _) => "no",
            (false, _) => "each call is a process, which fetches",
        };
        let timeouts = match outcome.timeouts() {
            0 => "none".to_owned(),
            some => some.to_string(),
        };
        let (title, version) = (outcome.client.title, &outcome.version);
        table.push_str(&format!("| {title} | {version} | {injected} | {first} | {timeouts} | {renewed} |\n"));
    }
    table
}
