//! What a model's tensors hold before anything was learnt.

use crate::random::{Chance, Purpose};

/// Standard deviation of start values, as `initializer_range` of Transformers' configurations.
const DEVIATION: f32 = 0.02;

/// The tensor of this name (as Hugging Face names it) at its start: norms let everything pass, matrices are normal.
/// Those that write into the stream (`o_proj`, `down_proj`) are smaller by the root of how many do so, as in GPT-2
/// (Radford et al. 2019): the stream's variance does not grow with the depth.
pub fn start_values(name: &str, len: usize, layers: usize, seed: u64) -> Vec<f32> {
    if name.contains("norm") {
        return vec![1.0; len];
    }
    let writes_into_the_stream = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
    let deviation = if writes_into_the_stream { DEVIATION / (2.0 * layers as f32).sqrt() } else { DEVIATION };
    let mut chance = Chance::new(seed, Purpose::Start(fingerprint(name)));
    (0..len).map(|_| chance.normal() * deviation).collect()
}

/// A number for a tensor's name (FNV-1a), so that each has values of its own, whatever the order they are asked for in.
fn fingerprint(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f32]) -> (f32, f32) {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32;
        (mean, variance.sqrt())
    }

    #[test]
    fn matrices_are_normal_and_narrower_where_they_write_into_the_stream() {
        let (mean, deviation) = spread(&start_values("model.layers.0.mlp.up_proj.weight", 100_000, 8, 1));
        assert!(mean.abs() < 3e-4 && (deviation - 0.02).abs() < 2e-4, "{mean} {deviation}");
        let (_, deviation) = spread(&start_values("model.layers.0.mlp.down_proj.weight", 100_000, 8, 1));
        assert!((deviation - 0.005).abs() < 1e-4, "{deviation}");
        assert_eq!(start_values("model.norm.weight", 3, 8, 1), [1.0; 3]);
    }

    #[test]
    fn start_values_follow_the_seed_and_the_name() {
        let values = |name, seed| start_values(name, 4, 1, seed);
        assert_eq!(values("a.weight", 7), values("a.weight", 7));
        assert_ne!(values("a.weight", 7), values("b.weight", 7));
        assert_ne!(values("a.weight", 7), values("a.weight", 8));
    }
}
