//! SwiGLU: `y = silu(gate) * up`, value by value.

use super::memory::{Fresh, by_rows};
use super::simd::{dispatched, exp};

/// Values that one call of a kernel takes on at least.
const BLOCK: usize = 4096;

dispatched! {
    fn gated(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

dispatched! {
    fn gated_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let outputs = dgate.iter_mut().zip(dup);
        for ((gate, (up, dy)), (dgate, dup)) in gate.iter().zip(up.iter().zip(dy)).zip(outputs) {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            let silu = gate * sigmoid;
            *dup = dy * silu;
            *dgate = dy * up * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len());
    let mut y = Fresh::new(gate.len());
    let parts = y.parts();
    by_rows(gate.len().div_ceil(BLOCK), |blocks| {
        let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(gate.len());
        // SAFETY: `by_rows` gives no block out twice, and `gated` only writes to it.
        gated(&gate[at.clone()], &up[at.clone()], unsafe { parts.part(at) });
    });
    // SAFETY: every block has been written.
    unsafe { y.filled() }
}

/// The gradients of `gate` and `up`.
pub fn swiglu_backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let len = gate.len();
    let (mut dgate, mut dup) = (Fresh::new(len), Fresh::new(len));
    let (gate_parts, up_parts) = (dgate.parts(), dup.parts());
    by_rows(len.div_ceil(BLOCK), |blocks| {
        let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(len);
        // SAFETY: no block is given out twice, and `gated_backward` only writes to them.
        let (dgate, dup) = unsafe { (gate_parts.part(at.clone()), up_parts.part(at.clone())) };
        gated_backward(&gate[at.clone()], &up[at.clone()], &dy[at], dgate, dup);
    });
    // SAFETY: every block of both has been written.
    unsafe { (dgate.filled(), dup.filled()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    #[test]
    fn swiglu_and_its_gradients_are_those_of_the_slow_operations() {
        for (rows, width) in [(1, 7), (3, 65), (41, 333)] {
            let (gate, up) = (random("gate", (rows, width)), random("up", (rows, width)));
            let op = || {
                Kernel::new(
                    (rows, width),
                    |x| swiglu(x[0], x[1]),
                    |x, dy| {
                        let (dgate, dup) = swiglu_backward(x[0], x[1], dy);
                        vec![dgate, dup]
                    },
                )
            };
            let (y, slow) = weighted_sum_gradients(|x| x[0].silu()?.mul(x[1]), &[&gate, &up]).unwrap();
            let (fast_y, fast) = weighted_sum_gradients(|x| x[0].apply_op2(x[1], op()), &[&gate, &up]).unwrap();
            assert_close(&fast_y, &y, 1e-5);
            assert_close(&fast[0], &slow[0], 1e-5);
            assert_close(&fast[1], &slow[1], 1e-5);
        }
    }
}
