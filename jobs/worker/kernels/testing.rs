//! What the kernels' tests share: made-up values, and gradients through candle's tape.

use candle_core::{Device, Result, Shape, Tensor, Var};

/// Values between -1 and 1 that look random and depend on the name and the index only.
pub(crate) fn random(name: &str, shape: impl Into<Shape>) -> Var {
    let shape = shape.into();
    let seed = name.bytes().fold(17u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let values: Vec<f32> = (0..shape.elem_count() as u64)
        .map(|i| {
            let bits = (seed + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bits = (bits ^ (bits >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// `y = f(inputs)`, and the gradients of `sum(y * c)` by each input, `c` being made up: a gradient that is the same for
/// all of `y` would hide mistakes.
pub(crate) fn weighted_sum_gradients(
    f: impl Fn(&[&Tensor]) -> Result<Tensor>,
    inputs: &[&Var],
) -> Result<(Tensor, Vec<Tensor>)> {
    let tensors: Vec<&Tensor> = inputs.iter().map(|var| var.as_tensor()).collect();
    let y = f(&tensors)?;
    let weights = random("weights of the sum", y.shape()).as_tensor().detach();
    let gradients = (&y * weights)?.sum_all()?.backward()?;
    let gradients = tensors.iter().map(|x| gradients.get(x).expect("every input has a gradient").clone()).collect();
    Ok((y, gradients))
}

/// The L2 norm of the difference, relative to that of `want`.
pub(crate) fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let norm = |x: &Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    let difference = (got - want).unwrap();
    norm(&difference) / norm(want).max(1e-30)
}

#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "relative error {error:e}, at most {tolerance:e} is expected");
}
