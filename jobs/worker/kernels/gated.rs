//! Gated activations (GLU variants, Shazeer 2020): `y = activation(gate) * up`, value by value.

use super::memory::{Fresh, by_rows};
use super::simd::{dispatched, exp, tanh};

/// What the gate goes through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`: SwiGLU, of Llama and most others.
    #[default]
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`: GeGLU with the usual approximation of GELU, of Gemma.
    GeluTanh,
}

/// Values that one call of a kernel takes on at least.
const BLOCK: usize = 4096;

/// sqrt(2 / pi)
const SLOPE: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// The activation's value and its slope.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    let y = x * sigmoid;
    (y, sigmoid + y * (1.0 - sigmoid))
}

/// The activation's value and its slope.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let square = x * x;
    let t = tanh(SLOPE * x * (1.0 + CUBE * square));
    let y = 0.5 * x * (1.0 + t);
    (y, 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SLOPE * (1.0 + 3.0 * CUBE * square))
}

#[inline(always)]
fn gated(activation: impl Fn(f32) -> (f32, f32), gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = activation(*gate).0 * up;
    }
}

#[inline(always)]
fn gated_backward(
    activation: impl Fn(f32) -> (f32, f32),
    (gate, up): (&[f32], &[f32]),
    dy: &[f32],
    (dgate, dup): (&mut [f32], &mut [f32]),
) {
    let outputs = dgate.iter_mut().zip(dup);
    for ((gate, (up, dy)), (dgate, dup)) in gate.iter().zip(up.iter().zip(dy)).zip(outputs) {
        let (y, slope) = activation(*gate);
        *dup = dy * y;
        *dgate = dy * up * slope;
    }
}

dispatched! {
    fn block(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        match activation {
            Activation::Silu => gated(silu, gate, up, y),
            Activation::GeluTanh => gated(gelu_tanh, gate, up, y),
        }
    }
}

dispatched! {
    fn block_backward(
        activation: Activation, gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32],
    ) {
        match activation {
            Activation::Silu => gated_backward(silu, (gate, up), dy, (dgate, dup)),
            Activation::GeluTanh => gated_backward(gelu_tanh, (gate, up), dy, (dgate, dup)),
        }
    }
}

impl Activation {
    /// `activation(gate) * up`.
    pub fn gate(self, gate: &[f32], up: &[f32]) -> Vec<f32> {
        assert_eq!(gate.len(), up.len());
        let mut y = Fresh::new(gate.len());
        let parts = y.parts();
        by_rows(gate.len().div_ceil(BLOCK), |blocks| {
            let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(gate.len());
            // SAFETY: `by_rows` gives no block out twice, and `block` only writes to them.
            block(self, &gate[at.clone()], &up[at.clone()], unsafe { parts.part(at) });
        });
        // SAFETY: every block has been written.
        unsafe { y.filled() }
    }

    /// The gradients of `gate` and `up`.
    pub fn gate_backward(self, gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let len = gate.len();
        let (mut dgate, mut dup) = (Fresh::new(len), Fresh::new(len));
        let (gate_parts, up_parts) = (dgate.parts(), dup.parts());
        by_rows(len.div_ceil(BLOCK), |blocks| {
            let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(len);
            // SAFETY: no block is given out twice, and `block_backward` only writes to them.
            let (dgate, dup) = unsafe { (gate_parts.part(at.clone()), up_parts.part(at.clone())) };
            block_backward(self, &gate[at.clone()], &up[at.clone()], &dy[at], dgate, dup);
        });
        // SAFETY: every block of both has been written.
        unsafe { (dgate.filled(), dup.filled()) }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Result, Tensor};

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    fn slow(activation: Activation, x: &Tensor) -> Result<Tensor> {
        match activation {
            Activation::Silu => x.silu(),
            // candle's own `gelu` is this approximation.
            Activation::GeluTanh => x.gelu(),
        }
    }

    #[test]
    fn gated_activations_and_their_gradients_are_those_of_the_slow_operations() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for (rows, width) in [(1, 7), (3, 65), (41, 333)] {
                let (gate, up) = (random("gate", (rows, width)), random("up", (rows, width)));
                let op = || {
                    Kernel::new(
                        (rows, width),
                        move |x| activation.gate(x[0], x[1]),
                        move |x, dy| {
                            let (dgate, dup) = activation.gate_backward(x[0], x[1], dy);
                            vec![dgate, dup]
                        },
                    )
                };
                let wide = |x: &Tensor| x * 4.0;
                let (y, want) =
                    weighted_sum_gradients(|x| slow(activation, &wide(x[0])?)?.mul(x[1]), &[&gate, &up]).unwrap();
                let (fast_y, fast) =
                    weighted_sum_gradients(|x| wide(x[0])?.apply_op2(x[1], op()), &[&gate, &up]).unwrap();
                assert_close(&fast_y, &y, 1e-5);
                assert_close(&fast[0], &want[0], 1e-5);
                assert_close(&fast[1], &want[1], 1e-5);
            }
        }
    }
}
