//! The held-out loss: what the objective comes to on lessons that are never trained on.

use drydock_spec::Recipe;
use drydock_spec::finetune::Objective;
use drydock_spec::report::Preferences;

use super::objective::{Aim, Material, Rewards, Score};
use super::order::{Pass, grouped};
use crate::data::lesson::Lesson;
use crate::ending::Result;

/// Tokens in one forward pass where no gradient is asked for.
const SCORING_TOKENS: usize = 1024;

/// A held-out loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// Mean over what the objective counts, in nats.
    pub loss: f64,
    /// Supervised tokens that were measured.
    pub tokens: u64,
    pub preferences: Option<Preferences>,
}

/// Measures the passes; `done` hears before each how many lessons are done.
pub fn measure(
    score: &mut Score<'_>,
    material: &Material<'_>,
    aim: Aim,
    passes: &[Pass],
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<HeldOut> {
    let (mut loss, mut counted, mut tokens, mut rewards) = (0.0, 0, 0, Rewards::default());
    let mut lessons = 0;
    for pass in passes {
        done(lessons)?;
        let portion = material.portion(aim, pass);
        let losses = score(&portion.batch)?;
        let weighed = portion.weigh(aim, &losses, score)?;
        loss += weighed.loss;
        counted += portion.counted(aim);
        rewards.add(weighed.rewards);
        tokens += pass.iter().map(|&lesson| material.lessons[lesson].supervised() as u64).sum::<u64>();
        lessons += pass.len() as u64;
    }
    Ok(HeldOut { loss: loss / counted as f64, tokens, preferences: rewards.means() })
}

/// How held-out lessons are put together: as many as fit where each stands for itself, else as in training.
pub fn passes(lessons: &[Lesson], aim: Aim, recipe: &Recipe) -> Vec<Pass> {
    match aim.objective {
        Objective::Sft => by_tokens(lessons, SCORING_TOKENS),
        Objective::Dpo | Objective::Orpo | Objective::Kto => {
            grouped(&(0..lessons.len()).collect::<Vec<_>>(), recipe.per_device_train_batch_size as usize)
        }
    }
}

/// Neighbouring lessons with at most so many tokens together, or a single one with more.
fn by_tokens(lessons: &[Lesson], most: usize) -> Vec<Pass> {
    let mut passes: Vec<Pass> = Vec::new();
    let mut tokens = 0;
    for (index, lesson) in lessons.iter().enumerate() {
        tokens += lesson.tokens();
        match passes.last_mut() {
            Some(pass) if tokens <= most => pass.push(index),
            _ => {
                tokens = lesson.tokens();
                passes.push(vec![index]);
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::lesson::Matter;
    use crate::data::rows::Row;

    #[test]
    fn rows_are_scored_in_parts_that_fit() {
        let row = |len| Row { ids: vec![0; len], counts: vec![true; len] };
        let lessons = [3, 4, 9, 2, 2].map(|len| Lesson { matter: Matter::Text(row(len)), place: String::new() });
        assert_eq!(by_tokens(&lessons, 7), [vec![0, 1], vec![2], vec![3, 4]]);
    }
}
