//! AdamW (Loshchilov and Hutter 2019) in place, with moments that can be looked at and kept. What decays is told by
//! [`Stretch`]es, so that a variable may hold tensors of either kind.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var};
use rayon::prelude::*;

use super::simd::{dispatched, dot};

/// Values that a thread takes on at a time.
const PIECE: usize = 1 << 16;

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Decoupled from the gradient.
    pub weight_decay: f64,
}

/// Running means of a variable's gradients and of their squares.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// So many values of a variable, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub len: usize,
    /// Whether weight decay falls on them.
    pub decays: bool,
}

pub struct AdamW {
    constants: Constants,
    /// Of each variable, from its first value to its last.
    stretches: Vec<Vec<Stretch>>,
    moments: Vec<Moments>,
    steps: i32,
}

/// What one step comes to for each value; see [`AdamW::step`].
#[derive(Debug, Clone, Copy)]
pub struct Coefficients {
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// What gradients are multiplied by first.
    pub gradient: f32,
    /// What is left of a value that decays.
    pub decay: f32,
    /// The learning rate, with the first moment's correction.
    pub rate: f32,
    /// The second moment's correction, of its root.
    pub second: f32,
}

impl Constants {
    /// For the step of this number, counted from 1.
    pub fn coefficients(&self, step: i32, learning_rate: f64, gradient_scale: f64) -> Coefficients {
        let Self { beta1, beta2, epsilon, weight_decay } = *self;
        Coefficients {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            epsilon: epsilon as f32,
            gradient: gradient_scale as f32,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            // The moments start at zero; both corrections take that bias out.
            rate: (learning_rate / (1.0 - beta1.powi(step))) as f32,
            second: (1.0 / (1.0 - beta2.powi(step)).sqrt()) as f32,
        }
    }
}

impl Coefficients {
    /// For a stretch of values, which may not decay.
    pub fn of(self, stretch: Stretch) -> Self {
        Self { decay: if stretch.decays { self.decay } else { 1.0 }, ..self }
    }
}

dispatched! {
    fn update(values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], c: Coefficients) {
        for ((value, gradient), (m, v)) in values.iter_mut().zip(gradient).zip(first.iter_mut().zip(second)) {
            let gradient = gradient * c.gradient;
            *m = *m * c.beta1 + gradient * (1.0 - c.beta1);
            *v = *v * c.beta2 + gradient * gradient * (1.0 - c.beta2);
            *value = *value * c.decay - c.rate * *m / ((*v).sqrt() * c.second + c.epsilon);
        }
    }
}

/// The update of one variable.
struct Update<'a> {
    gradient: &'a [f32],
    stretches: &'a [Stretch],
    moments: std::cell::RefCell<&'a mut Moments>,
    coefficients: Coefficients,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("f32 is expected") };
        let moments = &mut **self.moments.borrow_mut();
        let mut from = 0;
        for stretch in self.stretches {
            let range = from..from + stretch.len;
            let coefficients = self.coefficients.of(*stretch);
            let (first, second) = (&mut moments.first[range.clone()], &mut moments.second[range.clone()]);
            let moments = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
            let pieces = values[range.clone()].par_chunks_mut(PIECE).zip(self.gradient[range].par_chunks(PIECE));
            pieces.zip(moments).for_each(|((values, gradient), (first, second))| {
                update(values, gradient, first, second, coefficients);
            });
            from += stretch.len;
        }
        Ok(())
    }
}

impl AdamW {
    /// For variables that are made of these stretches.
    pub fn new(constants: Constants, stretches: Vec<Vec<Stretch>>) -> Self {
        let zeros = |stretches: &Vec<Stretch>| vec![0.0; stretches.iter().map(|stretch| stretch.len).sum()];
        let moments = stretches.iter().map(|group| Moments { first: zeros(group), second: zeros(group) }).collect();
        Self { constants, stretches, moments, steps: 0 }
    }

    /// The moments, in the order of the variables.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Steps taken.
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// Goes on from where another one stood: `moments` in the order of the variables, after so many steps.
    pub fn go_on(&mut self, moments: Vec<Moments>, steps: i32) {
        (self.moments, self.steps) = (moments, steps);
    }

    /// One step: `gradients` are in the order of the variables and are multiplied by `gradient_scale` first (clipping).
    pub fn step(
        &mut self,
        variables: &[Var],
        gradients: &[Vec<f32>],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        let coefficients = self.constants.coefficients(self.steps, learning_rate, gradient_scale);
        let groups = gradients.iter().zip(&self.stretches).zip(&mut self.moments);
        for (var, ((gradient, stretches), moments)) in variables.iter().zip(groups) {
            var.inplace_op1(&Update { gradient, stretches, moments: moments.into(), coefficients })?;
        }
        Ok(())
    }
}

/// The L2 norm of all gradients together.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().map(|gradient| squares(gradient)).sum::<f64>().sqrt()
}

fn squares(gradient: &[f32]) -> f64 {
    let pieces: Vec<f64> = gradient.par_chunks(PIECE).map(sum_of_squares).collect();
    pieces.into_iter().sum()
}

dispatched! {
    fn sum_of_squares(values: &[f32]) -> f64 {
        // In shorter pieces, so that f32 is precise enough within each.
        values.chunks(4096).map(|values| f64::from(dot(values, values))).sum()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn two_steps_are_those_of_the_formula() {
        let constants = Constants { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        let var = Var::from_tensor(&Tensor::new(&[1.0f32, -2.0, 0.5], &Device::Cpu).unwrap()).unwrap();
        let vars = [var];
        let stretches = vec![Stretch { len: 2, decays: true }, Stretch { len: 1, decays: false }];
        let mut adamw = AdamW::new(constants, vec![stretches]);
        let gradients = [[0.5, -0.1, 3.0], [0.2, 0.4, -1.0]];
        let mut want = [1.0, -2.0, 0.5];
        let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
        for (t, gradient) in gradients.iter().enumerate() {
            adamw.step(&vars, &[gradient.iter().map(|&g: &f64| g as f32).collect()], 0.01, 0.5).unwrap();
            for i in 0..3 {
                let g = gradient[i] * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let (mh, vh): (f64, f64) =
                    (m[i] / (1.0 - 0.9f64.powi(t as i32 + 1)), v[i] / (1.0 - 0.99f64.powi(t as i32 + 1)));
                let decay = if i < 2 { 0.1 } else { 0.0 };
                want[i] = want[i] * (1.0 - 0.01 * decay) - 0.01 * mh / (vh.sqrt() + 1e-8);
            }
        }
        let got = vars[0].to_vec1::<f32>().unwrap();
        assert!(got.iter().zip(want).all(|(&got, want)| (f64::from(got) - want).abs() < 1e-6), "{got:?} {want:?}");
        assert!((f64::from(adamw.moments()[0].first[2]) - m[2]).abs() < 1e-6);
    }
}
