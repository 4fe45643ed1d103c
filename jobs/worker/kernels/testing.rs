//! What the kernels' tests share: made-up values, and gradients through candle's tape.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, Var};

use super::{argument, read};

type Forward = dyn Fn(&[&[f32]]) -> Vec<f32> + Send + Sync;
type Backward = dyn Fn(&[&[f32]], &[f32]) -> Vec<Vec<f32>> + Send + Sync;

/// A kernel and its backward pass as a node of candle's tape, so that both can be held against candle's own gradients.
pub(crate) struct Kernel {
    shape: Shape,
    forward: Box<Forward>,
    backward: Box<Backward>,
}

impl Kernel {
    pub(crate) fn new(
        shape: impl Into<Shape>,
        forward: impl Fn(&[&[f32]]) -> Vec<f32> + Send + Sync + 'static,
        backward: impl Fn(&[&[f32]], &[f32]) -> Vec<Vec<f32>> + Send + Sync + 'static,
    ) -> Self {
        Self { shape: shape.into(), forward: Box::new(forward), backward: Box::new(backward) }
    }

    fn forward(&self, arguments: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let arguments: Result<Vec<&[f32]>> =
            arguments.iter().map(|(storage, layout)| argument(storage, layout)).collect();
        Ok((CpuStorage::F32((self.forward)(&arguments?)), self.shape.clone()))
    }

    fn backward(&self, arguments: &[&Tensor], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let values: Result<Vec<Vec<f32>>> = arguments.iter().map(|x| read(x, |x| Ok(x.to_vec()))).collect();
        let values = values?;
        let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let gradients = read(dy, |dy| Ok((self.backward)(&slices, dy)))?;
        let tensor = |(values, x): (Vec<f32>, &&Tensor)| Tensor::from_vec(values, x.shape(), &Device::Cpu).map(Some);
        gradients.into_iter().zip(arguments).map(tensor).collect()
    }
}

impl CustomOp1 for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[x], dy)?.remove(0))
    }
}

impl CustomOp2 for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.backward(&[a, b], dy)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl CustomOp3 for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
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
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.backward(&[a, b, c], dy)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

/// A weight outside the tape, as a tensor and as values.
pub(crate) fn frozen(name: &str, shape: (usize, usize)) -> (Tensor, Vec<f32>) {
    let weight = random(name, shape).as_tensor().detach();
    let values = weight.flatten_all().unwrap().to_vec1().unwrap();
    (weight, values)
}

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
