//! What is learnt from lessons: to say what they say, or to prefer what they prefer.
//!
//! For the model, both are the same: every token that counts has a loss, and every loss a weight. A text's weights are
//! all alike. A preference's follow from the losses themselves, so that these must be known first.

use drydock_spec::finetune::Objective;
use drydock_spec::report::Preferences;
use serde::{Deserialize, Serialize};

use super::order::Pass;
use super::preference::{Judged, dpo, drift, kto, odds_ratio};
use crate::data::batch::Batch;
use crate::data::lesson::{Lesson, Matter};
use crate::data::rows::Row;
use crate::ending::Result;

/// An objective with what it needs to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    pub objective: Objective,
    /// How much a preference weighs.
    pub beta: f64,
}

impl Aim {
    pub const TEXT: Self = Self { objective: Objective::Sft, beta: 0.0 };

    /// Whether losses are compared with those of the model as it was.
    pub fn needs_reference(&self) -> bool {
        matches!(self.objective, Objective::Dpo | Objective::Kto)
    }
}

/// Says how likely the model, as it is now, finds each of a batch's targets: as [`super::engine::Engine::target_losses`].
pub type Score<'a> = dyn FnMut(&Batch) -> Result<Vec<f64>> + 'a;

/// Lessons that the model is asked about at once, before it is trained.
const ASKED_AT_ONCE: usize = 8;

/// Lessons with all that an objective asks for.
pub struct Material<'a> {
    pub lessons: &'a [Lesson],
    /// How likely the model found each lesson's answers before it was trained, as sums of log-probabilities: of a pair
    /// both; of a judged answer itself and the one that does not belong to its prompt. Empty where nothing asks for it.
    pub reference: Vec<[f64; 2]>,
    /// For KTO: each lesson's prompt with the answer of another lesson of its forward pass.
    mismatched: Vec<Row>,
}

/// What goes through the model in one forward pass.
pub struct Portion {
    pub batch: Batch,
    /// Answers that do not belong to their prompts; nothing is learnt from them.
    mismatched: Option<Batch>,
    /// For each lesson; see [`Material`].
    reference: Vec<[f64; 2]>,
    good: Vec<bool>,
    /// Which targets belong to an answer; all of them where this is empty.
    answer: Vec<bool>,
    lessons: usize,
}

/// What the losses of a pass come to.
pub struct Weighed {
    /// A sum over what is counted, in nats.
    pub loss: f64,
    /// Its derivative by each target's loss.
    pub scales: Vec<f32>,
    pub rewards: Rewards,
}

/// Sums of the rewards that a model gives implicitly to answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    chosen: (f64, u64),
    rejected: (f64, u64),
    /// Pairs whose chosen answer has the higher reward, and all pairs.
    right: (u64, u64),
}

impl<'a> Material<'a> {
    /// `passes` are the forward passes that stay together, for an objective that needs that; `max_length` is what rows
    /// are cut to.
    pub fn new(lessons: &'a [Lesson], aim: Aim, passes: &[Pass], max_length: usize) -> Self {
        let mut mismatched = Vec::new();
        if aim.objective == Objective::Kto {
            mismatched = vec![Row { ids: Vec::new(), counts: Vec::new() }; lessons.len()];
            for pass in passes {
                let others = pass.iter().cycle().skip(pass.len() - 1);
                for (&lesson, &other) in pass.iter().zip(others) {
                    mismatched[lesson] = mismatch(&lessons[lesson], &lessons[other], max_length);
                }
            }
        }
        Self { lessons, reference: Vec::new(), mismatched }
    }

    /// Asks the model, as it is now, how likely it finds each lesson's answers.
    pub fn refer(&mut self, aim: Aim, score: &mut Score<'_>, mut done: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let mut reference = Vec::with_capacity(self.lessons.len());
        let indices: Vec<usize> = (0..self.lessons.len()).collect();
        for some in indices.chunks(ASKED_AT_ONCE) {
            done(some[0])?;
            let portion = self.portion(aim, some);
            let sums = sums_by_row(&portion.batch, &score(&portion.batch)?);
            match &portion.mismatched {
                Some(mismatched) => {
                    let others = sums_by_row(mismatched, &score(mismatched)?);
                    reference.extend(sums.into_iter().zip(others).map(|(sum, other)| [-sum, -other]));
                }
                None => reference.extend(sums.chunks_exact(2).map(|pair| [-pair[0], -pair[1]])),
            }
        }
        self.reference = reference;
        Ok(())
    }

    pub fn portion(&self, aim: Aim, pass: &[usize]) -> Portion {
        let lessons = || pass.iter().map(|&index| &self.lessons[index]);
        let odds = aim.objective == Objective::Orpo;
        let whole: Vec<Row> = if odds { lessons().flat_map(with_whole_choice).collect() } else { Vec::new() };
        let batch = if odds { Batch::of(&whole) } else { Batch::of(lessons().flat_map(Lesson::rows)) };
        let answer = if odds { lessons().flat_map(answer_tokens).collect() } else { Vec::new() };
        let rows = (!self.mismatched.is_empty()).then(|| pass.iter().map(|&index| &self.mismatched[index]));
        Portion {
            batch,
            mismatched: rows.map(Batch::of),
            reference: pass.iter().filter_map(|&index| self.reference.get(index).copied()).collect(),
            good: lessons().map(|lesson| matches!(lesson.matter, Matter::Answer { good: true, .. })).collect(),
            answer,
            lessons: pass.len(),
        }
    }
}

/// ORPO learns to say the chosen answer together with its prompt.
fn with_whole_choice(lesson: &Lesson) -> Vec<Row> {
    let mut rows: Vec<Row> = lesson.rows().cloned().collect();
    rows[0].counts = vec![true; rows[0].ids.len()];
    rows
}

/// For each target of [`with_whole_choice`], whether it belongs to an answer.
fn answer_tokens(lesson: &Lesson) -> Vec<bool> {
    let mut rows = lesson.rows();
    let chosen = rows.next().into_iter().flat_map(|row| row.counts.iter().skip(1).copied());
    let rejected = rows.map(Row::supervised).sum();
    chosen.chain(std::iter::repeat_n(true, rejected)).collect()
}

/// One lesson's prompt with another's answer.
fn mismatch(lesson: &Lesson, other: &Lesson, max_length: usize) -> Row {
    let split = |lesson: &Lesson| {
        let row = lesson.rows().next().cloned().unwrap_or(Row { ids: Vec::new(), counts: Vec::new() });
        let at = row.counts.iter().position(|&counts| counts).unwrap_or(row.ids.len());
        (row, at)
    };
    let ((prompt, until), (answer, from)) = (split(lesson), split(other));
    let mut row = Row {
        ids: [&prompt.ids[..until], &answer.ids[from..]].concat(),
        counts: [&prompt.counts[..until], &answer.counts[from..]].concat(),
    };
    row.ids.truncate(max_length);
    row.counts.truncate(max_length);
    row
}

impl Portion {
    /// What the loss is a mean over: tokens of texts, or lessons.
    pub fn counted(&self, aim: Aim) -> usize {
        if aim.objective == Objective::Sft { self.batch.targets.len() } else { self.lessons }
    }

    /// Tokens that go through the model.
    pub fn tokens(&self) -> usize {
        self.batch.ids.len() + self.mismatched.as_ref().map_or(0, |batch| batch.ids.len())
    }

    /// What the losses of the targets come to; `score` is asked about what nothing is learnt from.
    pub fn weigh(&self, aim: Aim, losses: &[f64], score: &mut Score<'_>) -> Result<Weighed> {
        let mut weighed = match aim.objective {
            Objective::Sft => return Ok(Weighed::evenly(losses)),
            // ORPO also says the chosen answer: a mean over the tokens of the pass, once for each lesson.
            Objective::Orpo => self.say_the_chosen(losses),
            Objective::Dpo | Objective::Kto => Weighed::nothing(losses.len()),
        };
        let drift = match &self.mismatched {
            Some(batch) => {
                let policy = sums_by_row(batch, &score(batch)?).into_iter().map(|sum| -sum);
                let reference: Vec<f64> = self.reference.iter().map(|reference| reference[1]).collect();
                drift(&policy.collect::<Vec<_>>(), &reference)
            }
            None => 0.0,
        };
        let rows: Vec<_> = self.batch.targets_by_row().collect();
        let in_answer = |target: usize| self.answer.get(target).copied().unwrap_or(true);
        // The sum of a row's log-probabilities, and how many there are.
        let sum = |row: usize| {
            let targets = rows[row].clone().filter(|&target| in_answer(target));
            targets.fold((0.0, 0u32), |(sum, count), target| (sum - losses[target], count + 1))
        };
        // A loss is minus a log-probability.
        let mut spread = |row: usize, slope: f64| {
            for target in rows[row].clone().filter(|&target| in_answer(target)) {
                weighed.scales[target] -= slope as f32;
            }
        };
        for lesson in 0..self.lessons {
            match aim.objective {
                Objective::Kto => {
                    let good = self.good[lesson];
                    let judged = kto(aim.beta, sum(lesson).0, self.reference[lesson][0], drift, good);
                    spread(lesson, judged.slopes[0]);
                    weighed.loss += judged.loss;
                    weighed.rewards.add_answer(judged.rewards[0], good);
                }
                Objective::Dpo | Objective::Orpo | Objective::Sft => {
                    let pair = [2 * lesson, 2 * lesson + 1];
                    let sums = pair.map(sum);
                    let judged = if aim.objective == Objective::Dpo {
                        dpo(aim.beta, sums.map(|(sum, _)| sum), self.reference[lesson])
                    } else {
                        // By the mean's slope, each of its tokens has a share of it.
                        let lengths = sums.map(|(_, count)| f64::from(count.max(1)));
                        let means = [sums[0].0 / lengths[0], sums[1].0 / lengths[1]];
                        let Judged { loss, slopes, rewards } = odds_ratio(aim.beta, means);
                        Judged { loss, slopes: [slopes[0] / lengths[0], slopes[1] / lengths[1]], rewards }
                    };
                    pair.into_iter().zip(judged.slopes).for_each(|(row, slope)| spread(row, slope));
                    weighed.loss += judged.loss;
                    weighed.rewards.add_pair(judged.rewards);
                }
            }
        }
        Ok(weighed)
    }

    fn say_the_chosen(&self, losses: &[f64]) -> Weighed {
        let chosen: Vec<usize> = self.batch.targets_by_row().step_by(2).flatten().collect();
        let mut weighed = Weighed::nothing(losses.len());
        let share = self.lessons as f64 / chosen.len() as f64;
        for target in chosen {
            weighed.loss += share * losses[target];
            weighed.scales[target] = share as f32;
        }
        weighed
    }
}

impl Weighed {
    fn evenly(losses: &[f64]) -> Self {
        Self { loss: losses.iter().sum(), scales: vec![1.0; losses.len()], rewards: Rewards::default() }
    }

    fn nothing(targets: usize) -> Self {
        Self { loss: 0.0, scales: vec![0.0; targets], rewards: Rewards::default() }
    }
}

fn sums_by_row(batch: &Batch, losses: &[f64]) -> Vec<f64> {
    batch.targets_by_row().map(|targets| losses[targets].iter().sum()).collect()
}

impl Rewards {
    fn add_pair(&mut self, [chosen, rejected]: [f64; 2]) {
        self.add_answer(chosen, true);
        self.add_answer(rejected, false);
        self.right = (self.right.0 + u64::from(chosen > rejected), self.right.1 + 1);
    }

    fn add_answer(&mut self, reward: f64, good: bool) {
        let side = if good { &mut self.chosen } else { &mut self.rejected };
        *side = (side.0 + reward, side.1 + 1);
    }

    pub fn add(&mut self, more: Self) {
        for (side, more) in [(&mut self.chosen, more.chosen), (&mut self.rejected, more.rejected)] {
            *side = (side.0 + more.0, side.1 + more.1);
        }
        self.right = (self.right.0 + more.right.0, self.right.1 + more.right.1);
    }

    /// Means; none where there were no preferences.
    pub fn means(&self) -> Option<Preferences> {
        if self.chosen.1 + self.rejected.1 == 0 {
            return None;
        }
        let mean = |(sum, count): (f64, u64)| sum / count.max(1) as f64;
        let (chosen, rejected) = (mean(self.chosen), mean(self.rejected));
        let accuracies = (self.right.1 > 0).then(|| self.right.0 as f64 / self.right.1 as f64);
        Some(Preferences { chosen, rejected, accuracies, margins: chosen - rejected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ids: &[u32], prompt: usize) -> Lesson {
        let counts = (0..ids.len()).map(|i| i >= prompt).collect();
        let matter = Matter::Answer { row: Row { ids: ids.to_vec(), counts }, good: true };
        Lesson { matter, place: String::new() }
    }

    #[test]
    fn a_mismatched_answer_comes_from_the_lesson_before_in_its_pass() {
        let lessons = [answer(&[1, 2, 10], 2), answer(&[3, 20, 21], 1), answer(&[4, 30], 1)];
        let aim = Aim { objective: Objective::Kto, beta: 0.1 };
        let material = Material::new(&lessons, aim, &[vec![2, 0], vec![1]], 3);
        assert_eq!(material.mismatched[0], Row { ids: vec![1, 2, 30], counts: vec![false, false, true] });
        assert_eq!(material.mismatched[2], Row { ids: vec![4, 10], counts: vec![false, true] });
        assert_eq!(material.mismatched[1].ids, [3, 20, 21]);
    }

    #[test]
    fn rewards_are_means_over_all_that_were_added() {
        let mut rewards = Rewards::default();
        assert_eq!(rewards.means(), None);
        rewards.add_pair([0.5, -0.5]);
        let mut more = Rewards::default();
        more.add_pair([0.1, 0.3]);
        rewards.add(more);
        let Some(Preferences { chosen, rejected, accuracies, margins }) = rewards.means() else { panic!() };
        assert!((chosen - 0.3).abs() < 1e-12 && (rejected + 0.1).abs() < 1e-12 && (margins - 0.4).abs() < 1e-12);
        assert_eq!(accuracies, Some(0.5));
    }
}
