//! Everything that chance decides, from one seed: the same seed gives the same training.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for; streams of one seed do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Which rows are held out.
    Split,
    /// The order of the rows in an epoch, counted from 0.
    Order(u32),
    /// The start values of adapters.
    Adapter,
    /// Which solved rows stand before a question, counted from 0.
    Shots(u32),
    /// Which rows a bootstrap takes.
    Bootstrap,
    /// Which lessons stay together.
    Groups,
    /// The start values of a tensor, by a number of its own.
    Start(u32),
}

pub struct Chance(ChaCha8Rng);

impl Chance {
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(match purpose {
            Purpose::Split => 0,
            Purpose::Adapter => 1,
            Purpose::Bootstrap => 2,
            Purpose::Groups => 3,
            Purpose::Order(epoch) => (1 << 32) + u64::from(epoch),
            Purpose::Shots(question) => (2 << 32) + u64::from(question),
            Purpose::Start(tensor) => (3 << 32) + u64::from(tensor),
        });
        Self(generator)
    }

    /// Evenly from `-bound..bound`.
    pub fn uniform(&mut self, bound: f32) -> f32 {
        let unit = (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    }

    /// Normal with mean 0 and variance 1 (Box and Muller's method; of each pair one is used).
    pub fn normal(&mut self) -> f32 {
        // Above zero, as its logarithm is asked for.
        let unit = |bits: u32| (f64::from(bits) + 1.0) / 4_294_967_296.0;
        let (radius, angle) = (unit(self.0.next_u32()), unit(self.0.next_u32()));
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// A permutation of `0..len` (Fisher and Yates).
    pub fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }

    /// Evenly from `0..bound`, by the high half of a product (Lemire); the bias is below 2^-32 for any dataset.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_index_once_and_follows_the_seed() {
        let draw = |seed, purpose| Chance::new(seed, purpose).permutation(1000);
        let order = draw(7, Purpose::Order(0));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1000));
        assert_eq!(order, draw(7, Purpose::Order(0)));
        assert_ne!(order, draw(7, Purpose::Order(1)));
        assert_ne!(order, draw(8, Purpose::Order(0)));
    }

    #[test]
    fn uniform_values_keep_to_the_bound_and_have_no_lean() {
        let mut chance = Chance::new(1, Purpose::Adapter);
        let values: Vec<f32> = (0..100_000).map(|_| chance.uniform(0.5)).collect();
        assert!(values.iter().all(|value| (-0.5..0.5).contains(value)));
        assert!((values.iter().sum::<f32>() / 1e5).abs() < 0.005);
    }
}
