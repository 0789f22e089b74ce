//! The table of SDKs in the documentation.

use super::Outcome;

/// The rows, as Markdown.
pub(super) fn render(outcomes: &[Outcome]) -> String {
    let mut table = String::from(
        "| SDK | version | what is injected | first call, STS at 10 s | timeouts met | renewed |\n|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let injected = outcome.injected.map_or_else(|| "nothing".to_owned(), |uri| uri.to_string());
        let first = match outcome.answers.first() {
            Some(answer) if 0.0 < answer.elapsed_seconds => {
                format!("succeeds after {:.1} s", answer.elapsed_seconds)
            }
            Some(_) => "succeeds".to_owned(),
            None => "fails".to_owned(),
        };
        let renewed = match (outcome.is_renewed(), outcome.client.keeps_credentials) {
            (true, true) => "yes",
            (true, false) => "yes, by the next process",
            (false, _) => "no",
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
