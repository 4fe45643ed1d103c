//! From what was measured on each row to a number, how sure it is, and whether two models differ.

use crate::random::{Chance, Purpose};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// What is made of the sum over the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The mean over the rows.
    Mean,
    /// exp of the loss per unit (token, word, byte).
    Perplexity,
    /// The loss per unit in bits.
    Bits,
}

/// A sum for each row, and over how many units.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    kind: Kind,
    rows: Vec<(f64, f64)>,
}

/// A number and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    /// Nothing where a single row was measured, or where resampled rows came to no number.
    pub stderr: Option<f64>,
}

impl Series {
    /// The mean of a value for each row.
    pub fn mean(values: impl IntoIterator<Item = f64>) -> Self {
        Self { kind: Kind::Mean, rows: values.into_iter().map(|value| (value, 1.0)).collect() }
    }

    /// Losses in nats, and over how many units each of them is.
    pub fn losses(kind: Kind, rows: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { kind, rows: rows.into_iter().collect() }
    }

    /// Whether the number is one: it may be too large, or over no units at all.
    pub fn is_finite(&self) -> bool {
        self.value(0..self.rows.len()).is_finite()
    }

    /// The number. Its standard error is that of the mean (from the sample's deviation), or else bootstrapped over the
    /// rows (Efron 1979), always with the same seed.
    pub fn estimate(&self, seed: u64) -> Estimate {
        let value = self.value(0..self.rows.len());
        let stderr = (self.rows.len() > 1).then(|| match self.kind {
            Kind::Mean => mean_stderr(&self.rows.iter().map(|row| row.0).collect::<Vec<_>>()),
            _ => self.bootstrap(seed, |rows| self.value(rows)),
        });
        Estimate { value, stderr: stderr.filter(|stderr| stderr.is_finite()) }
    }

    /// How much larger this series is than another over the same rows, from the differences row by row: what rows have
    /// in common drops out, so that this is much surer than the difference of two numbers. Nothing where the rows are
    /// not the same, as with another tokenizer.
    pub fn minus(&self, other: &Self, seed: u64) -> Option<Estimate> {
        let same = self.rows.len() == other.rows.len() && self.rows.iter().zip(&other.rows).all(|(a, b)| a.1 == b.1);
        if !same || self.rows.is_empty() {
            return None;
        }
        let all = 0..self.rows.len();
        let difference = |rows: Vec<usize>| self.value(rows.iter().copied()) - other.value(rows.iter().copied());
        let stderr = (self.rows.len() > 1).then(|| match self.kind {
            Kind::Mean => {
                let differences: Vec<f64> = self.rows.iter().zip(&other.rows).map(|(a, b)| a.0 - b.0).collect();
                mean_stderr(&differences)
            }
            _ => self.bootstrap(seed, |rows| difference(rows.collect())),
        });
        let stderr = stderr.filter(|stderr| stderr.is_finite());
        Some(Estimate { value: difference(all.collect()), stderr })
    }

    fn value(&self, rows: impl IntoIterator<Item = usize>) -> f64 {
        let (sum, units) = rows.into_iter().fold((0.0, 0.0), |sum, row| {
            let (value, units) = self.rows[row];
            (sum.0 + value, sum.1 + units)
        });
        match self.kind {
            Kind::Mean => sum / units,
            Kind::Perplexity => (sum / units).exp(),
            Kind::Bits => sum / units / std::f64::consts::LN_2,
        }
    }

    /// The deviation of a number over resampled rows.
    fn bootstrap(&self, seed: u64, number: impl Fn(&mut dyn Iterator<Item = usize>) -> f64) -> f64 {
        let mut chance = Chance::new(seed, Purpose::Bootstrap);
        let count = self.rows.len();
        let numbers: Vec<f64> = (0..RESAMPLES).map(|_| number(&mut (0..count).map(|_| chance.below(count)))).collect();
        deviation(&numbers)
    }
}

fn mean_stderr(values: &[f64]) -> f64 {
    deviation(values) / (values.len() as f64).sqrt()
}

/// The sample's standard deviation.
fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_the_standard_error_of_its_sample() {
        let series = Series::mean([1.0, 0.0, 0.0, 1.0, 1.0]);
        let Estimate { value, stderr } = series.estimate(1);
        assert!((value - 0.6).abs() < 1e-12);
        // sqrt(p (1 - p) / (n - 1))
        assert!((stderr.unwrap() - (0.6f64 * 0.4 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(Series::mean([1.0]).estimate(1).stderr, None);
    }

    #[test]
    fn losses_are_weighed_by_their_units() {
        let rows = [(2.0, 1.0), (4.0, 5.0)];
        assert!((Series::losses(Kind::Perplexity, rows).estimate(1).value - 1f64.exp()).abs() < 1e-12);
        let bits = Series::losses(Kind::Bits, rows).estimate(1).value;
        assert!((bits - 1.0 / 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_bootstrap_of_a_mean_is_near_its_formula() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i * 7919 % 400)).collect();
        let formula = mean_stderr(&values);
        let series = Series::losses(Kind::Bits, values.iter().map(|value| (value * std::f64::consts::LN_2, 1.0)));
        let stderr = series.estimate(3).stderr.unwrap();
        assert!((stderr / formula - 1.0).abs() < 0.1, "{stderr} and {formula}");
        assert_eq!(series.estimate(3), series.estimate(3));
    }

    #[test]
    fn a_paired_difference_is_surer_than_its_two_numbers() {
        // Rows differ much, models little: one of them is better by one in each row, but for one row.
        let base: Vec<f64> = (0..50).map(f64::from).collect();
        let better = Series::mean(base.iter().map(|value| if *value == 7.0 { *value } else { value + 1.0 }));
        let base = Series::mean(base);
        let difference = better.minus(&base, 1).unwrap();
        assert!((difference.value - 0.98).abs() < 1e-12);
        assert!(difference.stderr.unwrap() < 0.03 && base.estimate(1).stderr.unwrap() > 1.0);
        let losses = |more: f64| Series::losses(Kind::Perplexity, (1..40).map(move |i| (f64::from(i) + more, 10.0)));
        let difference = losses(0.5).minus(&losses(0.0), 1).unwrap();
        assert!(difference.value > 0.0 && difference.stderr.unwrap() < losses(0.0).estimate(1).stderr.unwrap());
    }

    #[test]
    fn other_rows_are_not_compared() {
        let tokens = |count: f64| Series::losses(Kind::Perplexity, [(1.0, count), (2.0, 3.0)]);
        assert_eq!(tokens(2.0).minus(&tokens(3.0), 1), None);
        assert_eq!(Series::mean([1.0]).minus(&Series::mean([1.0, 1.0]), 1), None);
    }
}
