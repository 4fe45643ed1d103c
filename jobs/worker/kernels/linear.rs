//! Linear projections `y = x Wᵀ` with a frozen weight, with and without a LoRA adapter (Hu et al. 2021).

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

use super::matrix::{Matrix, MatrixMut, Threads, Write, multiplied, product, scaled};
use super::memory::Parts;
use super::memory::by_rows;
use super::{argument, gradient, output, read};

/// `x Wᵀ` for rows that need no gradient; `w` is `[out, width]`.
pub fn linear(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    multiplied(Matrix::new(x, width), Matrix::new(w, width).t())
}

/// A projection that is not trained: the weight `[out, in]` lies outside the tape.
pub struct FrozenLinear {
    pub weight: Tensor,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, width) = self.weight.dims2()?;
        let x = argument(storage, layout)?;
        let y = read(&self.weight, |w| Ok(linear(x, w, width)))?;
        Ok(output(y, (x.len() / width, out)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (out, width) = self.weight.dims2()?;
        let dx = read(dy, |dy| read(&self.weight, |w| Ok(multiplied(Matrix::new(dy, out), Matrix::new(w, width)))))?;
        gradient(dx, x.shape()).map(Some)
    }
}

/// Which of an adapter's inputs are dropped in a forward pass. The mask is a function of the seed and the place, so
/// the backward pass makes it again instead of keeping it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share that is dropped, 0 to below 1; the rest is scaled up by `1 / (1 - rate)`.
    pub rate: f32,
    /// Different for every projection and every pass.
    pub seed: u64,
}

impl Dropout {
    fn factor(self, index: usize) -> f32 {
        let kept = (mix(self.seed ^ mix(index as u64)) >> 40) as f32 / (1u64 << 24) as f32 >= self.rate;
        if kept { 1.0 / (1.0 - self.rate) } else { 0.0 }
    }

    /// Multiplies each value by its factor; dropout is its own backward pass.
    fn apply(self, x: &[f32]) -> Vec<f32> {
        const BLOCK: usize = 4096;
        let mut y = x.to_vec();
        let parts = Parts::of(&mut y);
        by_rows(x.len().div_ceil(BLOCK), |blocks| {
            let at = blocks.start * BLOCK..(blocks.end * BLOCK).min(x.len());
            // SAFETY: `by_rows` gives no block out twice.
            let y = unsafe { parts.part(at.clone()) };
            y.iter_mut().zip(at).for_each(|(y, index)| *y *= self.factor(index));
        });
        y
    }
}

/// The finaliser of SplitMix64: every bit of the input changes about half of the output's.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `y = x Wᵀ + scale * drop(x) Aᵀ Bᵀ` as a node of the tape over `x`, `A` and `B`; `A` is `[rank, in]`, `B` is
/// `[out, rank]`, the frozen `W` is `[out, in]`.
pub struct LoraLinear {
    pub weight: Tensor,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// Whether `x` needs a gradient; the first layer's input does not.
    pub input_gradient: bool,
}

impl LoraLinear {
    /// What the adapter sees of `x`.
    fn seen<'a>(&self, x: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        match self.dropout {
            Some(dropout) => dropout.apply(x).into(),
            None => x.into(),
        }
    }

    fn forward(&self, x: &[f32], a: &[f32], b: &[f32], w: &[f32], width: usize) -> Vec<f32> {
        let rank = a.len() / width;
        let out = b.len() / rank;
        let mut y = linear(x, w, width);
        let reduced = linear(&self.seen(x), a, width);
        let (reduced, b) = (Matrix::new(&reduced, rank), Matrix::new(b, rank));
        product(MatrixMut::new(&mut y, out), Write::Add, self.scale, reduced, b.t(), Threads::All);
        y
    }

    /// The gradients of `x` (where it is asked for), `A` and `B`. `drop(x) Aᵀ` is computed again: its rank is small.
    fn backward(
        &self,
        x: &[f32],
        a: &[f32],
        b: &[f32],
        w: &[f32],
        dy: &[f32],
        width: usize,
    ) -> (Option<Vec<f32>>, Vec<f32>, Vec<f32>) {
        let rank = a.len() / width;
        let dy = Matrix::new(dy, b.len() / rank);
        let seen = self.seen(x);
        let reduced = linear(&seen, a, width);
        let dreduced = scaled(self.scale, dy, Matrix::new(b, rank));
        let dreduced = Matrix::new(&dreduced, rank);
        let db = scaled(self.scale, dy.t(), Matrix::new(&reduced, rank));
        let da = multiplied(dreduced.t(), Matrix::new(&seen, width));
        let dx = self.input_gradient.then(|| {
            let mut dx = multiplied(dy, Matrix::new(w, width));
            let a = Matrix::new(a, width);
            match self.dropout {
                None => product(MatrixMut::new(&mut dx, width), Write::Add, 1.0, dreduced, a, Threads::All),
                Some(dropout) => {
                    let dropped = dropout.apply(&multiplied(dreduced, a));
                    dx.iter_mut().zip(dropped).for_each(|(dx, more)| *dx += more);
                }
            }
            dx
        });
        (dx, da, db)
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = self.weight.dims2()?;
        let (x, a, b) = (argument(s1, l1)?, argument(s2, l2)?, argument(s3, l3)?);
        let y = read(&self.weight, |w| Ok(self.forward(x, a, b, w, width)))?;
        Ok(output(y, (x.len() / width, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, width) = self.weight.dims2()?;
        let (dx, da, db) = read(x, |x| {
            read(a, |a| read(b, |b| read(dy, |dy| read(&self.weight, |w| Ok(self.backward(x, a, b, w, dy, width))))))
        })?;
        let dx = dx.map(|dx| gradient(dx, x.shape())).transpose()?;
        Ok((dx, Some(gradient(da, a.shape())?), Some(gradient(db, b.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::testing::{assert_close, random, weighted_sum_gradients};

    fn frozen(name: &str, shape: (usize, usize)) -> Tensor {
        random(name, shape).as_tensor().detach()
    }

    #[test]
    fn a_frozen_projection_and_its_gradient_are_those_of_matmul() {
        for (tokens, width, out) in [(1, 7, 5), (65, 33, 17)] {
            let (x, weight) = (random("x", (tokens, width)), frozen("w", (out, width)));
            let (y, want) = weighted_sum_gradients(|x| x[0].matmul(&weight.t()?), &[&x]).unwrap();
            let op = || FrozenLinear { weight: weight.clone() };
            let (fast_y, got) = weighted_sum_gradients(|x| x[0].apply_op1(op()), &[&x]).unwrap();
            assert_close(&fast_y, &y, 1e-5);
            assert_close(&got[0], &want[0], 1e-5);
        }
    }

    #[test]
    fn an_adapted_projection_and_its_gradients_are_those_of_matmul() {
        for dropout in [None, Some(Dropout { rate: 0.4, seed: 7 })] {
            for (tokens, width, out, rank) in [(1, 7, 5, 3), (65, 33, 17, 4)] {
                let weight = frozen("w", (out, width));
                let inputs: [&Var; 3] =
                    [&random("x", (tokens, width)), &random("a", (rank, width)), &random("b", (out, rank))];
                let mask: Vec<f32> = (0..tokens * width).map(|i| dropout.map_or(1.0, |d| d.factor(i))).collect();
                let mask = Tensor::from_vec(mask, (tokens, width), weight.device()).unwrap();
                let slow = |x: &[&Tensor]| {
                    let reduced = (x[0] * &mask)?.matmul(&x[1].t()?)?;
                    x[0].matmul(&weight.t()?)? + (reduced.matmul(&x[2].t()?)? * 1.7)?
                };
                let fast = |x: &[&Tensor]| {
                    let op = LoraLinear { weight: weight.clone(), scale: 1.7, dropout, input_gradient: true };
                    x[0].apply_op3(x[1], x[2], op)
                };
                let (y, want) = weighted_sum_gradients(slow, &inputs).unwrap();
                let (fast_y, got) = weighted_sum_gradients(fast, &inputs).unwrap();
                assert_close(&fast_y, &y, 1e-5);
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, 1e-5);
                }
            }
        }
    }

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let dropout = Dropout { rate: 0.25, seed: 3 };
        let y = dropout.apply(&vec![1.0; 100_000]);
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f32 / 1e5;
        let mean = y.iter().sum::<f32>() / 1e5;
        assert!((dropped - 0.25).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "{dropped} {mean}");
        assert_ne!(y, Dropout { seed: 4, ..dropout }.apply(&vec![1.0; 100_000]));
    }
}
