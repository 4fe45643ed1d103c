use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::blocks::BlockKind;

const KINDS: [(BlockKind, GgmlDType); 5] = [
    (BlockKind::Q2K, GgmlDType::Q2K),
    (BlockKind::Q3K, GgmlDType::Q3K),
    (BlockKind::Q4K, GgmlDType::Q4K),
    (BlockKind::Q5K, GgmlDType::Q5K),
    (BlockKind::Q6K, GgmlDType::Q6K),
];

/// Sums of uniform numbers, as good as normal, with a scale for each row.
fn weights(rows: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..rows)
        .flat_map(|row| vec![0.01 + 0.03 * row as f32; 256])
        .map(|s| s * (0..6).map(|_| uniform()).sum::<f32>())
        .collect()
}

fn there_and_back(kind: BlockKind, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; kind.row_bytes(values.len()).unwrap()];
    kind.encode(values, importance, &mut bytes);
    let mut back = vec![0.0; values.len()];
    kind.decode(&bytes, &mut back);
    back
}

fn error<'a>(values: &'a [f32], back: &'a [f32], weight: impl Fn(usize) -> f64 + 'a) -> f64 {
    let errors = values.iter().zip(back).map(|(value, back)| f64::from(value - back).powi(2));
    errors.enumerate().map(|(index, error)| weight(index) * error).sum()
}

#[test]
fn the_search_loses_less_than_candles() {
    let values = weights(40);
    for (kind, dtype) in KINDS {
        let tensor = Tensor::new(&values[..], &Device::Cpu).unwrap();
        let by_candle = QTensor::quantize(&tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
        let by_candle: Vec<f32> = by_candle.to_vec1().unwrap();
        let ours = error(&values, &there_and_back(kind, &values, None), |_| 1.0);
        let candles = error(&values, &by_candle, |_| 1.0);
        // 1 % less root mean square error at the least.
        assert!(ours < 0.98 * candles, "{kind}: {ours:e} of {candles:e}");
    }
}

#[test]
fn importance_takes_error_from_where_it_counts() {
    let values = weights(8);
    let importance: Vec<f32> = (0..values.len()).map(|i| if i % 8 == 0 { 50.0 } else { 0.1 }).collect();
    for (kind, _) in KINDS {
        let weight = |index: usize| f64::from(importance[index]);
        let without = error(&values, &there_and_back(kind, &values, None), weight);
        let with = error(&values, &there_and_back(kind, &values, Some(&importance)), weight);
        assert!(with < 0.95 * without, "{kind}: {with:e} of {without:e}");
    }
}

#[test]
fn values_without_a_spread_are_kept() {
    let mut values = vec![0.0; 256];
    for constant in [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30] {
        values.fill(constant);
        for (kind, _) in KINDS {
            let back = there_and_back(kind, &values, None);
            // Scales have eleven bits.
            let near = |back: &f32| (back - constant).abs() <= 0.02 * constant.abs().max(1e-6);
            assert!(back.iter().all(near), "{kind} of {constant}: {}", back[0]);
        }
    }
}

#[test]
fn packing_is_the_reverse_of_unpacking() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut bytes = [0; 12];
    random.fill_bytes(&mut bytes);
    let mut again = [0; 12];
    let (scales, mins) = super::unpack_scales_and_mins(&bytes);
    super::pack_scales_and_mins(&scales, &mins, &mut again);
    assert_eq!(again, bytes);
    super::pack_scales(&super::unpack_scales(&bytes), &mut again);
    assert_eq!(again, bytes);
}
