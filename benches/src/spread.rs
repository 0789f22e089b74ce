//! The middle of many figures, and how far they spread.

/// Of figures that were measured in turns.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) quarter: f64,
    pub(crate) median: f64,
    pub(crate) three_quarters: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of `values`, of which none are `NaN` each.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let values = sorted(values);
        let at = |share: f64| {
            let last = values.len().saturating_sub(1);
            values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        Self { least: at(0.0), quarter: at(0.25), median: at(0.5), three_quarters: at(0.75), most: at(1.0) }
    }

    /// The range of the middle half.
    pub(crate) fn middle(&self, decimals: usize) -> String {
        format!("{:.decimals$}–{:.decimals$}", self.quarter, self.three_quarters)
    }

    /// The range of all, where there are too few for a middle half to say much.
    pub(crate) fn all(&self, decimals: usize) -> String {
        format!("{:.decimals$}–{:.decimals$} in all", self.least, self.most)
    }
}

/// In rising order.
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
