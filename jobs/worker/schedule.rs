//! How many steps a training takes, and the learning rate of each: the rules of Transformers' trainer.

use drydock_spec::Recipe;
use drydock_spec::recipe::SchedulerType;

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Optimizer steps in all.
    pub total_steps: u64,
    pub steps_per_epoch: u64,
    warmup_steps: u64,
    peak: f64,
    kind: SchedulerType,
}

impl Schedule {
    pub fn new(recipe: &Recipe, train_rows: u64) -> Self {
        let (steps_per_epoch, total_steps) = recipe.steps(train_rows);
        let warmup_steps = match (recipe.warmup_steps, recipe.warmup_ratio) {
            (Some(steps), _) => u64::from(steps),
            (None, ratio) => (total_steps as f64 * ratio.unwrap_or(0.0)).ceil() as u64,
        };
        Self { total_steps, steps_per_epoch, warmup_steps, peak: recipe.learning_rate, kind: recipe.lr_scheduler_type }
    }

    /// The learning rate of a step, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let after = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / after as f64).min(1.0);
        self.peak
            * match self.kind {
                SchedulerType::Constant => 1.0,
                SchedulerType::Linear => 1.0 - progress,
                SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::*;

    fn schedule(change: impl FnOnce(&mut FinetuneArgs)) -> Schedule {
        let mut args = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            learning_rate: Some(1.0),
            warmup_steps: Some(2),
            ..FinetuneArgs::default()
        };
        change(&mut args);
        Schedule::new(&args.parse().unwrap().recipe, 18)
    }

    #[test]
    fn steps_are_counted_as_transformers_counts_them() {
        let by_epochs = schedule(|args| args.num_train_epochs = Some(1.5));
        assert_eq!((by_epochs.steps_per_epoch, by_epochs.total_steps), (5, 8));
        let accumulated = schedule(|args| args.gradient_accumulation_steps = Some(2));
        assert_eq!(accumulated.total_steps, 3);
        assert_eq!(schedule(|args| args.max_steps = Some(7)).total_steps, 7);
    }

    #[test]
    fn the_rate_rises_then_falls_to_zero() {
        let rates = |kind| {
            let schedule = schedule(|args| {
                args.max_steps = Some(6);
                args.lr_scheduler_type = Some(kind);
            });
            (0..=6).map(|step| (schedule.learning_rate(step) * 1000.0).round()).collect::<Vec<_>>()
        };
        assert_eq!(rates(SchedulerType::Linear), [0.0, 500.0, 1000.0, 750.0, 500.0, 250.0, 0.0]);
        assert_eq!(rates(SchedulerType::Cosine), [0.0, 500.0, 1000.0, 854.0, 500.0, 146.0, 0.0]);
        assert_eq!(rates(SchedulerType::Constant), [0.0, 500.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0]);
    }
}
