//! Made-up blocks and activations for the tests of this folder.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::blocks::BlockKind;

/// Every kind with codes.
pub(super) const KINDS: [BlockKind; 10] = [
    BlockKind::Q4_0,
    BlockKind::Q4_1,
    BlockKind::Q5_0,
    BlockKind::Q5_1,
    BlockKind::Q8_0,
    BlockKind::Q2K,
    BlockKind::Q3K,
    BlockKind::Q4K,
    BlockKind::Q5K,
    BlockKind::Q6K,
];

/// Blocks whose codes are any and whose scales are about as large as those of a model.
pub(super) fn some_blocks(kind: BlockKind, rows: usize, width: usize) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut bytes = vec![0; rows * kind.row_bytes(width).unwrap()];
    random.fill_bytes(&mut bytes);
    let scales: &[usize] = match kind {
        BlockKind::Q2K => &[80, 82],
        BlockKind::Q3K => &[108],
        BlockKind::Q6K => &[208],
        BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4K | BlockKind::Q5K => &[0, 2],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for &at in scales {
            // 2^-7 to 2^-4, of either sign.
            block[at + 1] = block[at + 1] & 0x83 | 0x20 | ((block[at + 1] & 0x0c) % 12);
        }
    }
    bytes
}

pub(super) fn some_activations(tokens: usize, width: usize) -> Vec<f32> {
    (0..tokens * width).map(|i| (i as f32 * 0.711).sin() * (1.0 + (i % 37) as f32 / 5.0)).collect()
}
