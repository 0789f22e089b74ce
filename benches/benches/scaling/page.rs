//! The table as docs/scaling.md has it, beside the one that was simulated now.

use std::fmt;

/// The page, from the root of the sources.
pub(crate) const PAGE: &str = "docs/scaling.md";

/// Above the table, so that each figure is compared with its like.
pub(crate) const HEAD: &str = "| | quota, /s | nodes | calls, mean /s | busiest second | throttled \
    | half are warm after, s | all are, s |";

/// By which part of the larger one a figure on the page and that of a run may differ, for each of [`Row::figures`].
///
/// A run repeats the other to the last digit; what makes a difference is another draw, as a change of the daemon or of
/// what draws for it brings one. Five seeds differed by up to 0.8, 7.7, 0.8, 4.2 and 27 %; this is half as much again,
/// and the last digit that is shown.
pub(crate) const TOLERANCES: [f64; 5] = [0.02, 0.12, 0.02, 0.07, 0.4];

/// Cells that tell a row from the others: its name, the quota, and how many nodes were simulated.
pub(crate) const KEYS: usize = 3;

/// One line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) quota: f64,
    /// That were simulated.
    pub(crate) nodes: usize,
    /// What is under the rest of [`HEAD`]; nothing where it says nothing.
    pub(crate) figures: [Option<f64>; TOLERANCES.len()],
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} |", self.name, self.quota, self.nodes)?;
        self.figures.iter().try_for_each(|figure| write!(f, " {} |", shown(*figure)))
    }
}

/// In three digits.
fn shown(figure: Option<f64>) -> String {
    let Some(figure) = figure else {
        return "–".to_owned();
    };
    if figure < 0.01 {
        return "0".to_owned();
    }
    let digits = figure.log10().floor() as i32 - 2;
    let unit = 10_f64.powi(digits);
    format!("{:.*}", usize::try_from(-digits).unwrap_or(0), (figure / unit).round() * unit)
}

/// What the table on `page` says otherwise than `rows`, a sentence each.
pub(crate) fn differences(page: &str, rows: &[Row]) -> Vec<String> {
    let mut lines = page.lines().skip_while(|line| *line != HEAD);
    if lines.next().is_none() {
        return vec![format!("there is no table with the head `{HEAD}`")];
    }
    let table: Vec<Vec<&str>> = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect();
    let mut found: Vec<String> = rows.iter().flat_map(|row| differences_of(&table, row)).collect();
    if table.len() != rows.len() {
        found.push(format!("its table has {} rows, not {}", table.len(), rows.len()));
    }
    found
}

fn differences_of(table: &[Vec<&str>], row: &Row) -> Vec<String> {
    let now = row.to_string();
    let now = cells(&now);
    let [name, quota, nodes] = [now[0], now[1], now[2]];
    let about = format!("{name}, quota {quota}, {nodes} nodes");
    let Some(there) = table.iter().find(|there| there.starts_with(&now[..KEYS])) else {
        return vec![format!("{about}: the row is missing")];
    };
    if there.len() != now.len() {
        return vec![format!("{about}: the row has {} cells, not {}", there.len(), now.len())];
    }
    let columns = cells(HEAD).into_iter().zip(there.iter().zip(&now)).skip(KEYS).zip(TOLERANCES);
    columns
        .filter(|((_, (there, now)), tolerance)| !are_alike(there, now, *tolerance))
        .map(|((column, (there, now)), _)| {
            format!("{about}: {column}: {there} on the page, {now} in this run")
        })
        .collect()
}

pub(crate) fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

fn are_alike(there: &str, now: &str, tolerance: f64) -> bool {
    match (there.parse::<f64>(), now.parse::<f64>()) {
        (Ok(there), Ok(now)) => (there - now).abs() <= tolerance * there.abs().max(now.abs()),
        _ => there == now,
    }
}
