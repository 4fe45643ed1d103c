//! How positions turn queries and keys, and how a model's context was stretched.

use std::f64::consts::TAU;

use crate::kernels::rope::{Frequencies, Rope};

#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Values of a head that turn; the others pass.
    pub dim: usize,
    pub scaling: RopeScaling,
}

/// How a model's context was stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3: slow frequencies are divided by the factor, fast ones kept, those between are blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_positions: f64,
    },
    /// YaRN (Peng et al. 2023): the same idea by the pairs' turns within the original context, and attention sharpened.
    Yarn(Yarn),
    /// LongRoPE (Ding et al. 2024): each frequency is divided by a factor of its own, by one list in rows of at most
    /// `original_positions` tokens and by another in longer ones.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original_positions: usize,
        attention_factor: f64,
    },
    /// Each frequency is divided by a factor of its own, as GGUF files store Llama 3's scaling.
    Factors(Vec<f32>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original_positions: f64,
    /// Pairs that turn more often than this in the original context are kept.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are divided by the factor.
    pub beta_slow: f64,
    pub attention_factor: f64,
    /// Whether the bounds between them are moved outwards to whole pairs.
    pub truncate: bool,
}

impl RopeConfig {
    /// The tables for rows of at most `positions` tokens.
    pub fn rope(&self, positions: usize) -> Rope {
        match &self.scaling {
            RopeScaling::Long { short, long, original_positions, attention_factor } => {
                let of = |factors| Frequencies { inverse: self.divided(factors), factor: *attention_factor as f32 };
                Rope::with_long(&of(short), *original_positions, &of(long), positions)
            }
            _ => Rope::new(&self.frequencies(), positions),
        }
    }

    /// Angles per position for each pair; with LongRoPE those of short rows.
    pub fn frequencies(&self) -> Frequencies {
        let plain = || self.plain();
        let inverse = match &self.scaling {
            RopeScaling::None => plain().map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => plain().map(|f| (f / factor) as f32).collect(),
            RopeScaling::Factors(factors) | RopeScaling::Long { short: factors, .. } => self.divided(factors),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => plain()
                .map(|f| {
                    let turns = original_positions * f / TAU;
                    let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    ((1.0 - blend) * f / factor + blend * f) as f32
                })
                .collect(),
            RopeScaling::Yarn(yarn) => {
                let (low, high) = yarn.bounds(self.theta, self.dim as f64);
                let kept = |pair: usize| 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let blended = |(pair, f): (usize, f64)| (f / yarn.factor * (1.0 - kept(pair)) + f * kept(pair)) as f32;
                plain().enumerate().map(blended).collect()
            }
        };
        let factor = match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            RopeScaling::Long { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        };
        Frequencies { inverse, factor: factor as f32 }
    }

    fn plain(&self) -> impl Iterator<Item = f64> {
        let (theta, dim) = (self.theta, self.dim as f64);
        (0..self.dim / 2).map(move |pair| theta.powf(-2.0 * pair as f64 / dim))
    }

    fn divided(&self, factors: &[f32]) -> Vec<f32> {
        self.plain().zip(factors).map(|(f, &by)| (f / f64::from(by)) as f32).collect()
    }
}

impl Yarn {
    /// Between which pairs frequencies are blended.
    fn bounds(&self, theta: f64, dim: f64) -> (f64, f64) {
        // The pair that turns so many times within the original context.
        let pair = |turns: f64| dim * (self.original_positions / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // Where they meet there is nothing to blend, and nothing to divide by.
        (low, if low == high { high + 0.001 } else { high })
    }

    /// How much attention is sharpened where the model does not say it; `weight` is DeepSeek's `mscale`, else 1.
    pub fn sharpening(factor: f64, weight: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    }
}

/// LongRoPE's sharpening where the model does not say it.
pub fn long_sharpening(factor: f64, original_positions: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_positions.ln()).sqrt() }
}
