use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::blocks::BlockKind;

/// The codes of a block as ggml's reference chooses them, value by value, and scale and min.
fn chosen(kind: BlockKind, values: &[f32]) -> (f32, f32, Vec<u8>) {
    let first_largest =
        values.iter().fold(0.0f32, |largest, &value| if largest.abs() < value.abs() { value } else { largest });
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    let inverse = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let codes = |code: &dyn Fn(f32) -> u8| values.iter().map(|value| code(*value)).collect();
    match kind {
        BlockKind::Q4_0 | BlockKind::Q5_0 => {
            let half = if kind == BlockKind::Q4_0 { 8.0 } else { 16.0 };
            let scale = first_largest / -half;
            let code = |value: f32| ((value * inverse(scale) + half + 0.5) as u8).min(2 * half as u8 - 1);
            (scale, 0.0, codes(&code))
        }
        BlockKind::Q4_1 | BlockKind::Q5_1 => {
            let top = if kind == BlockKind::Q4_1 { 15.0 } else { 31.0 };
            let scale = (high - low) / top;
            (scale, low, codes(&|value| (((value - low) * inverse(scale) + 0.5) as u8).min(top as u8)))
        }
        _ => {
            let scale = first_largest.abs() / 127.0;
            (scale, 0.0, codes(&|value| (value * inverse(scale)).round() as i8 as u8))
        }
    }
}

fn block(kind: BlockKind, values: &[f32]) -> Vec<u8> {
    let (scale, min, codes) = chosen(kind, values);
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    let nibbles = || (0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4);
    let fifth: u32 = codes.iter().enumerate().map(|(i, code)| u32::from(code >> 4 & 1) << i).sum();
    let mut block = half(scale).to_vec();
    if matches!(kind, BlockKind::Q4_1 | BlockKind::Q5_1) {
        block.extend(half(min));
    }
    if matches!(kind, BlockKind::Q5_0 | BlockKind::Q5_1) {
        block.extend(fifth.to_le_bytes());
    }
    if kind == BlockKind::Q8_0 {
        block.extend(codes)
    } else {
        block.extend(nibbles())
    }
    block
}

#[test]
fn every_block_has_the_bytes_of_the_slow_reference() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut values: Vec<f32> =
        (0..32 * 300).map(|_| (random.next_u32() as f32 / 4e9 - 0.5) * (random.next_u32() as f32 / 1e9)).collect();
    // Two largest of opposite signs, nothing but zeros of either sign, constants, halves between codes.
    values[32 * 3..32 * 4].iter_mut().enumerate().for_each(|(i, value)| *value = if i % 2 == 0 { -3.0 } else { 3.0 });
    values[32 * 4..32 * 5].fill(0.0);
    values[32 * 5..32 * 6].fill(-0.0);
    values[32 * 6..32 * 7].fill(2.5);
    values[32 * 7..32 * 8].fill(-2.5);
    values[32 * 8..32 * 9].iter_mut().enumerate().for_each(|(i, value)| *value = i as f32 * 0.5 - 8.0);
    values[32 * 9..32 * 10].iter_mut().enumerate().for_each(|(i, value)| *value = i as f32 * 4.5 - 127.0);
    for kind in [BlockKind::Q4_0, BlockKind::Q4_1, BlockKind::Q5_0, BlockKind::Q5_1, BlockKind::Q8_0] {
        let mut bytes = vec![0; kind.row_bytes(values.len()).unwrap()];
        kind.encode(&values, None, &mut bytes);
        for (index, (values, got)) in values.chunks(32).zip(bytes.chunks(kind.block_bytes())).enumerate() {
            assert_eq!(got, block(kind, values), "{kind}, block {index}");
        }
    }
}

#[test]
fn importance_takes_error_from_where_it_counts() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let values: Vec<f32> = (0..32 * 11).map(|_| random.next_u32() as f32 / 4e9 - 0.5).collect();
    let importance: Vec<f32> = (0..values.len()).map(|i| if i % 4 == 0 { 20.0 } else { 0.1 }).collect();
    for kind in [BlockKind::Q4_0, BlockKind::Q4_1, BlockKind::Q5_0, BlockKind::Q5_1] {
        let error = |heeded: Option<&[f32]>| {
            let mut bytes = vec![0; kind.row_bytes(values.len()).unwrap()];
            kind.encode(&values, heeded, &mut bytes);
            let mut back = vec![0.0; values.len()];
            kind.decode(&bytes, &mut back);
            let errors = values.iter().zip(&back).zip(&importance);
            errors.map(|((value, back), weight)| weight * (value - back).powi(2)).sum::<f32>()
        };
        let (without, with) = (error(None), error(Some(&importance)));
        assert!(with < 0.9 * without, "{kind}: {with} of {without}");
    }
}
