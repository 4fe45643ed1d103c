//! Which lessons go through the model together, and when. All of it follows from the seed and the epoch's number, so
//! that a position in the data is a number and nothing else.

use drydock_spec::Recipe;

use crate::data::lesson::Lesson;
use crate::data::packing::best_fit_decreasing;
use crate::random::{Chance, Purpose};

/// The lessons of one forward pass, by their indices.
pub type Pass = Vec<usize>;

pub struct Order {
    units: Units,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
    /// The epoch that was asked for last, and its steps.
    current: Option<(u64, Vec<Vec<Pass>>)>,
}

/// What is shuffled.
enum Units {
    /// So many lessons.
    Single(usize),
    /// Packs of lessons with these tokens, made anew for each epoch.
    Packed { tokens: Vec<usize>, capacity: usize },
    /// Forward passes that stay as they are.
    Fixed(Vec<Pass>),
}

impl Order {
    pub fn new(recipe: &Recipe, lessons: &[Lesson], max_length: usize) -> Self {
        let units = if recipe.packing {
            Units::Packed { tokens: lessons.iter().map(Lesson::tokens).collect(), capacity: max_length }
        } else {
            Units::Single(lessons.len())
        };
        Self::of(recipe, units)
    }

    /// For an objective that compares lessons with others of their forward pass.
    pub fn fixed(recipe: &Recipe, passes: Vec<Pass>) -> Self {
        Self::of(recipe, Units::Fixed(passes))
    }

    fn of(recipe: &Recipe, units: Units) -> Self {
        Self {
            units,
            batch_size: recipe.per_device_train_batch_size as usize,
            accumulation: recipe.gradient_accumulation_steps as usize,
            seed: recipe.seed,
            current: None,
        }
    }

    /// Rows in an epoch, as a recipe counts steps by them: a pack is one.
    pub fn rows(&self) -> u64 {
        let rows = match &self.units {
            Units::Single(lessons) => *lessons,
            Units::Packed { tokens, capacity } => {
                best_fit_decreasing(tokens, *capacity, &(0..tokens.len()).collect::<Vec<_>>()).len()
            }
            Units::Fixed(passes) => passes.len() * self.batch_size,
        };
        rows as u64
    }

    /// The passes of the step at a slot: slots count the steps' places in the data from 0, over all epochs.
    pub fn at(&mut self, slot: u64, steps_per_epoch: u64) -> &[Pass] {
        let epoch = slot / steps_per_epoch;
        if self.current.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.current = Some((epoch, self.epoch(u32::try_from(epoch).unwrap_or(u32::MAX))));
        }
        let steps = self.current.as_ref().map_or(&[][..], |(_, steps)| steps);
        &steps[(slot % steps_per_epoch) as usize]
    }

    /// One pass over all lessons. What is left over at the end makes a smaller step, as in Transformers' trainer.
    fn epoch(&self, epoch: u32) -> Vec<Vec<Pass>> {
        let mut chance = Chance::new(self.seed, Purpose::Order(epoch));
        let passes: Vec<Pass> = match &self.units {
            Units::Single(lessons) => {
                chance.permutation(*lessons).chunks(self.batch_size).map(<[usize]>::to_vec).collect()
            }
            Units::Packed { tokens, capacity } => {
                let packs = best_fit_decreasing(tokens, *capacity, &chance.permutation(tokens.len()));
                let shuffled = chance.permutation(packs.len());
                let batches = shuffled.chunks(self.batch_size);
                batches.map(|batch| batch.iter().flat_map(|&pack| &packs[pack]).copied().collect()).collect()
            }
            Units::Fixed(passes) => chance.permutation(passes.len()).into_iter().map(|i| passes[i].clone()).collect(),
        };
        passes.chunks(self.accumulation).map(<[Pass]>::to_vec).collect()
    }
}

/// Passes that stay together for the whole training.
pub fn fixed_passes(lessons: usize, batch_size: usize, seed: u64) -> Vec<Pass> {
    grouped(&Chance::new(seed, Purpose::Groups).permutation(lessons), batch_size)
}

/// Passes of so many neighbours, of at least two lessons each where there are two: for objectives that compare a lesson
/// with others of its pass.
pub fn grouped(lessons: &[usize], batch_size: usize) -> Vec<Pass> {
    let mut passes: Vec<Pass> = lessons.chunks(batch_size.max(2)).map(<[usize]>::to_vec).collect();
    if let Some(last) = passes.pop_if(|last| last.len() == 1) {
        match passes.last_mut() {
            Some(before) => before.extend(last),
            None => passes.push(last),
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::*;
    use crate::data::lesson::Matter;
    use crate::data::rows::Row;

    fn recipe(packing: bool) -> Recipe {
        let args = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            per_device_train_batch_size: Some(4),
            gradient_accumulation_steps: Some(2),
            packing: Some(packing),
            ..FinetuneArgs::default()
        };
        args.parse().unwrap().recipe
    }

    fn lessons(lengths: impl IntoIterator<Item = usize>) -> Vec<Lesson> {
        let row = |len| Row { ids: vec![0; len], counts: vec![true; len] };
        lengths.into_iter().map(|len| Lesson { matter: Matter::Text(row(len)), place: String::new() }).collect()
    }

    fn steps(order: &mut Order, slots: std::ops::Range<u64>, per_epoch: u64) -> Vec<Vec<Pass>> {
        slots.map(|slot| order.at(slot, per_epoch).to_vec()).collect()
    }

    #[test]
    fn an_epoch_takes_every_lesson_once_and_no_two_epochs_are_alike() {
        for packing in [false, true] {
            let lessons = lessons((0..23).map(|i| 3 + i % 7));
            let mut order = Order::new(&recipe(packing), &lessons, 16);
            let (per_epoch, _) = recipe(packing).steps(order.rows());
            assert_eq!(per_epoch, if packing { 2 } else { 3 });
            let first = steps(&mut order, 0..per_epoch, per_epoch);
            assert!(first.iter().all(|step| step.len() <= 2));
            let mut seen: Vec<usize> = first.concat().concat();
            assert_ne!(first, steps(&mut order, per_epoch..2 * per_epoch, per_epoch));
            assert_eq!(first, steps(&mut order, 0..per_epoch, per_epoch), "an epoch can be asked for again");
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..23));
        }
    }

    #[test]
    fn fixed_passes_hold_together_and_leave_no_lesson_alone() {
        assert_eq!(grouped(&[0, 1, 2, 3, 4], 1), [vec![0, 1], vec![2, 3, 4]]);
        let passes = fixed_passes(9, 4, 1);
        assert_eq!(passes.iter().map(Vec::len).collect::<Vec<_>>(), [4, 5]);
        let mut order = Order::fixed(&recipe(false), passes.clone());
        assert_eq!(recipe(false).steps(order.rows()).0, 1);
        for slot in 0..4 {
            assert!(order.at(slot, 1).iter().all(|pass| passes.contains(pass)));
        }
    }
}
