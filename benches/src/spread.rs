//! The middle of many figures, how far they spread, and how sure their middle is.

use std::ops::RangeInclusive;

/// Of figures that were measured in turns.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) quarter: f64,
    pub(crate) median: f64,
    pub(crate) three_quarters: f64,
    pub(crate) most: f64,
    /// None of fewer figures than say anything of it.
    pub(crate) confidence: Option<Interval>,
}

/// Where the median is, with 95 % confidence, of all turns that there could have been.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) from: f64,
    pub(crate) to: f64,
}

impl Spread {
    /// Of `values`, of which none are `NaN` each.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let values = sorted(values);
        let at = |share: f64| quantile(&values, share);
        Self {
            least: at(0.0),
            quarter: at(0.25),
            median: at(0.5),
            three_quarters: at(0.75),
            most: at(1.0),
            confidence: confidence(&values),
        }
    }

    /// The range of the middle half.
    pub(crate) fn middle(&self, decimals: usize) -> String {
        format!("{:.decimals$}–{:.decimals$}", self.quarter, self.three_quarters)
    }

    /// The range of all, where there are too few for a middle half to say much.
    pub(crate) fn all(&self, decimals: usize) -> String {
        format!("{:.decimals$}–{:.decimals$} in all", self.least, self.most)
    }

    /// The interval of the median, or the range of all where there are too few for one.
    pub(crate) fn sure(&self, decimals: usize) -> String {
        match self.confidence {
            Some(Interval { from, to }) => format!("{from:.decimals$}–{to:.decimals$} at 95 %"),
            None => self.all(decimals),
        }
    }
}

/// In rising order.
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The mean of ratios: what is twice as much and what is half as much cancel out.
pub(crate) fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.fold((0.0, 0), |(sum, count), ratio| (sum + ratio.ln(), count + 1));
    (sum / f64::from(count)).exp()
}

/// Below which this share of `sorted` is; between two of them, in proportion (type 7 of Hyndman and Fan).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = last as f64 * share;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// The figures between which the median is, whatever they are distributed like: each is below it as often as a coin
/// shows heads.
fn confidence(sorted: &[f64]) -> Option<Interval> {
    // Beyond the most, the smallest of the shares below is not a number that an `f64` has.
    const FIGURES: RangeInclusive<usize> = 6..=1000;
    if !FIGURES.contains(&sorted.len()) {
        return None;
    }
    // How many at either end can be left out while the median is beyond the rest at most once in 40 times.
    let count = sorted.len() as i32;
    let (mut share, mut beyond, mut left_out) = (0.5_f64.powi(count), 0.0, 0);
    while beyond + share <= 0.025 {
        beyond += share;
        left_out += 1;
        share *= f64::from(count + 1 - left_out) / f64::from(left_out);
    }
    let first = (left_out - 1) as usize;
    Some(Interval { from: sorted[first], to: sorted[sorted.len() - 1 - first] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the figures from 1 to `count`.
    fn of(count: u32) -> Spread {
        Spread::of((1..=count).rev().map(f64::from))
    }

    #[track_caller]
    fn check_quarters(count: u32, expect: [f64; 5]) {
        let Spread { least, quarter, median, three_quarters, most, .. } = of(count);
        assert_eq!([least, quarter, median, three_quarters, most], expect);
    }

    #[test]
    fn a_quantile_between_two_figures_is_in_proportion() {
        check_quarters(1, [1.0, 1.0, 1.0, 1.0, 1.0]);
        check_quarters(4, [1.0, 1.75, 2.5, 3.25, 4.0]);
        check_quarters(7, [1.0, 2.5, 4.0, 5.5, 7.0]);
        assert!(of(0).median.is_nan());
    }

    #[track_caller]
    fn check_confidence(count: u32, expect: Option<(f64, f64)>) {
        assert_eq!(of(count).confidence, expect.map(|(from, to)| Interval { from, to }));
    }

    #[test]
    fn the_median_is_between_those_figures_that_the_binomial_distribution_says() {
        check_confidence(5, None);
        check_confidence(6, Some((1.0, 6.0)));
        check_confidence(8, Some((1.0, 8.0)));
        check_confidence(9, Some((2.0, 8.0)));
        check_confidence(25, Some((8.0, 18.0)));
        check_confidence(100, Some((40.0, 61.0)));
    }

    #[test]
    fn what_is_not_sure_is_told_as_the_range_of_all() {
        assert_eq!(of(25).sure(3), "8.000–18.000 at 95 %");
        assert_eq!(of(3).sure(1), "1.0–3.0 in all");
    }

    #[test]
    fn twice_and_half_have_the_mean_of_one() {
        assert!((geometric_mean([2.0, 0.5].into_iter()) - 1.0).abs() < 1e-12);
        assert!(geometric_mean([].into_iter()).is_nan());
    }
}
