//! How far an estimate is believed: by what jobs like this one came to before. Pure rules.

use drydock_gpu::estimate::{ENOUGH, Interval, Ratios, limit_for};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forecast::{Forecast, Measured, Quantity};

/// Where a value is expected to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Range {
    pub low: u64,
    pub high: u64,
    /// Jobs of 100 that do.
    pub of_100: u32,
    /// Past jobs that it was learnt from.
    pub jobs: u64,
}

impl Range {
    /// In words, after the range itself.
    #[must_use]
    pub fn grounds(&self) -> String {
        let Self { of_100, jobs, .. } = self;
        match usize::try_from(*jobs).unwrap_or(usize::MAX) {
            0 => format!("{of_100} of 100, from jobs that drydock was measured with"),
            1 => format!("{of_100} of 100, from 1 past job and others less like it"),
            few if few < ENOUGH => format!("{of_100} of 100, from {few} past jobs and others less like it"),
            _ => format!("{of_100} of 100, from {jobs} past jobs"),
        }
    }
}

/// What an estimate is multiplied with; nothing where there is nothing to learn it from.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Margin(Option<Interval>);

/// What a job needed that ran out of what it had, as a multiple of that, where nobody knows it.
const AT_LEAST: f64 = 1.5;

impl Margin {
    /// `own` are the jobs of the same kind and method, `kind` those of the same kind, both with the newest first;
    /// `shipped` are ratios of neither.
    pub(super) fn learnt(quantity: Quantity, own: &[Forecast], kind: &[Forecast], shipped: &[f64]) -> Self {
        let ratios = |forecasts: &[Forecast]| -> Vec<f64> {
            forecasts.iter().filter(|forecast| forecast.quantity == quantity).filter_map(ratio).collect()
        };
        // Of a job's own method there is nothing to be had from its kind that is not there already.
        let method = own.first().map(|forecast| &forecast.method);
        let others: Vec<_> = kind.iter().filter(|forecast| Some(&forecast.method) != method).cloned().collect();
        Self(Ratios::new(&ratios(own), [&ratios(&others)[..], shipped]).interval())
    }

    /// Where a value is expected that is predicted to be so much.
    pub(super) fn range(&self, predicted: u64) -> Option<Range> {
        let Interval { low, high, of_100, jobs, .. } = self.0?;
        let (low, high) = (times(predicted, low), times(predicted, high));
        Some(Range { low, high, of_100, jobs: jobs as u64 })
    }

    /// What is as likely to be too little as too much.
    pub(super) fn middle(&self, predicted: u64) -> Option<u64> {
        Some(times(predicted, self.0?.median))
    }

    /// The memory limit of a job that is predicted to need so much: with it, none of those before would have run out.
    pub(super) fn limit(&self, predicted: u64) -> u64 {
        limit_for(times(predicted, self.0.map_or(1.0, |interval| interval.most.max(1.0))))
    }
}

/// What a job came to as a multiple of what was predicted. One that ran out of less than that says nothing.
fn ratio(forecast: &Forecast) -> Option<f64> {
    let predicted = forecast.predicted as f64;
    match forecast.measured {
        Measured::Exactly(value) => Some(value as f64 / predicted),
        Measured::MoreThan(value) if value >= forecast.predicted => Some(AT_LEAST * value as f64 / predicted),
        Measured::MoreThan(_) => None,
    }
}

fn times(value: u64, factor: f64) -> u64 {
    (value as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(method: &str, predicted: u64, measured: Measured) -> Forecast {
        let (kind, method) = ("finetune".to_owned(), Some(method.to_owned()));
        Forecast { kind, method, quantity: Quantity::Memory, predicted, measured }
    }

    fn learnt(own: &[Forecast], kind: &[Forecast]) -> Margin {
        Margin::learnt(Quantity::Memory, own, kind, &[1.0; 40])
    }

    #[test]
    fn a_limit_covers_what_every_job_before_needed_and_what_a_container_counts_beside() {
        let mib = |bytes: u64| bytes >> 20;
        assert_eq!(mib(learnt(&[], &[]).limit(1 << 30)), 1024 + 4 + 64);
        let own = [forecast("lora", 100, Measured::Exactly(130))];
        assert_eq!(mib(learnt(&own, &[]).limit(1 << 30)), 1331 + 5 + 65);
        let less = vec![forecast("lora", 100, Measured::Exactly(50)); 30];
        assert_eq!(mib(learnt(&less, &[]).limit(1 << 30)), 1024 + 4 + 64, "never below what is predicted");
        assert_eq!(Margin::default().range(7), None);
    }

    #[test]
    fn a_job_that_ran_out_counts_where_it_had_what_was_predicted() {
        let short = forecast("lora", 100, Measured::MoreThan(80));
        let enough = forecast("lora", 100, Measured::MoreThan(100));
        assert_eq!(learnt(&[short], &[]).range(1000).unwrap().jobs, 0);
        assert_eq!(learnt(&[enough], &[]).limit(1 << 30) >> 20, 1536 + 6 + 64);
    }

    #[test]
    fn other_methods_stand_in_before_what_was_shipped() {
        let own = vec![forecast("lora", 100, Measured::Exactly(100)); 4];
        let kind = [own.clone(), vec![forecast("full", 100, Measured::Exactly(120)); 15]].concat();
        let range = learnt(&own, &kind).range(1000).unwrap();
        assert_eq!((range.low, range.high, range.jobs), (1000, 1200, 4));
        assert_eq!(range.grounds(), "90 of 100, from 4 past jobs and others less like it");
        assert_eq!(learnt(&[], &[]).range(1).unwrap().grounds(), "90 of 100, from jobs that drydock was measured with");
    }
}
