//! The kernels besides attention's and the head's, as functions of rows.
//!
//! Each mirrors a function of [`crate::kernels`], whose formula it shares.

use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, Element, View, ViewMut};
use super::model::{Computed, Norm};
use super::module::{Argument, Shape, arguments};
use super::rows::{Rows, RowsMut};
use crate::kernels::adamw::Coefficients;
use crate::kernels::gated::Activation;
use crate::kernels::linear::Dropout;

/// A kernel's name for what is computed in.
macro_rules! named {
    ($number:ty, $name:literal) => {
        <$number as $crate::cuda::model::Computed>::kernel(concat!($name, "_f32"), concat!($name, "_bf16"))
    };
}
pub(super) use named;

/// Rows whose sum is made by one block before the sums are summed.
pub(super) const PIECE: usize = 64;
/// Values whose squares a block sums up.
const SQUARES: usize = 1 << 16;

/// As kernels count rows and columns.
pub(super) fn small(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32 rows or columns")
}

/// Threads for a row of so many values: whole warps, and no more than there is work for.
fn threads(width: usize, most: u32) -> u32 {
    (small(width.div_ceil(32)) * 32).clamp(32, most)
}

/// A norm with the values of its weight.
#[derive(Clone, Copy)]
pub(super) struct Weighted<'a> {
    pub weight: View<'a, f32>,
    pub offset: f32,
    pub epsilon: f32,
}

impl Norm {
    /// `group` is the one that the norm belongs to.
    pub(super) fn weighted<'a>(&'a self, group: &'a super::model::Group) -> Weighted<'a> {
        Weighted { weight: self.weight.values(group), offset: self.offset, epsilon: self.epsilon }
    }
}

impl Weighted<'_> {
    /// Values in a row.
    pub(super) fn width(&self) -> usize {
        self.weight.len()
    }

    /// What is normalised, heads of a row one by one, and how: as kernels take it.
    fn of<'l, T: Element>(&'l self, x: Rows<'l, T>) -> [Argument<'l>; 6] {
        let heads = small(x.width / self.width());
        [
            x.at.into(),
            heads.into(),
            (x.stride as u64).into(),
            self.weight.into(),
            self.offset.into(),
            self.epsilon.into(),
        ]
    }

    /// Normalised: the whole row, or each head of it where the weight is a head's. What comes back has no gaps.
    pub(super) fn forward<T: Computed>(self, device: &Device, x: Rows<'_, T>) -> Result<Buffer<T>> {
        let heads = x.width / self.width();
        let mut y = device.buffer(x.rows * x.width)?;
        device.launch(
            named!(T, "norm"),
            Shape::of(x.rows * heads, threads(self.width(), 256)),
            &[&self.of(x)[..], arguments![&mut y, small(self.width())]].concat(),
        )?;
        Ok(y)
    }

    /// `more` joins the stream `x`; what comes back is the sum, and the sum normalised.
    pub(super) fn join<T: Computed>(
        self,
        device: &Device,
        x: &Buffer<T>,
        more: &Buffer<T>,
    ) -> Result<(Buffer<T>, Buffer<T>)> {
        let (mut sum, mut y) = (device.buffer(x.len())?, device.buffer(x.len())?);
        device.launch(
            named!(T, "join_norm"),
            Shape::of(x.len() / self.width(), threads(self.width(), 256)),
            arguments![x, more, self.weight, self.offset, self.epsilon, &mut sum, &mut y, small(self.width())],
        )?;
        Ok((sum, y))
    }

    /// The gradient of `x` from that of what came of it, `dy` without gaps: it takes the place of what `dx` holds, or is
    /// added to it; and that of the weight is added to `dweight`, where one is asked for.
    pub(super) fn backward<T: Computed>(
        self,
        device: &Device,
        x: Rows<'_, T>,
        dy: &Buffer<T>,
        (dx, add): (RowsMut<'_, T>, bool),
        dweight: Option<ViewMut<'_, f32>>,
    ) -> Result<()> {
        let width = self.width();
        let heads = x.width / width;
        let rows = x.rows * heads;
        let mut inverses = if dweight.is_some() { Some(device.buffer::<f32>(rows)?) } else { None };
        device.launch(
            named!(T, "norm_backward"),
            Shape::of(rows, threads(width, 256)),
            &[
                &self.of(x)[..],
                arguments![
                    dy,
                    dx.at,
                    dx.stride as u64,
                    i32::from(add),
                    inverses.as_mut().map_or(Argument::NULL, Argument::from),
                    small(width)
                ],
            ]
            .concat(),
        )?;
        let (Some(dweight), Some(inverses)) = (dweight, inverses) else { return Ok(()) };
        let mut partials: Buffer<f32> = device.buffer(rows.div_ceil(PIECE) * width)?;
        device.launch(
            named!(T, "norm_weight_partials"),
            pieces(rows, width),
            arguments![
                x.at,
                small(heads),
                x.stride as u64,
                &inverses,
                dy,
                &mut partials,
                small(rows),
                small(PIECE),
                small(width)
            ],
        )?;
        sum_partials(device, &partials, dweight)
    }
}

/// A block for every piece of the rows and every 256 columns.
pub(super) fn pieces(rows: usize, width: usize) -> Shape {
    Shape { blocks: [small(rows.div_ceil(PIECE)), small(width.div_ceil(256)), 1], ..Shape::of(1, 256) }
}

pub(super) fn sum_partials(device: &Device, partials: &Buffer<f32>, sums: ViewMut<'_, f32>) -> Result<()> {
    let width = sums.len();
    let shape = Shape::over(width, 256);
    device.launch("sum_partials", shape, arguments![partials, sums, small(partials.len() / width), small(width)])
}

/// Adds the bias to every row of `y`.
pub(super) fn add_bias<T: Computed>(device: &Device, y: RowsMut<'_, T>, bias: View<'_, f32>) -> Result<()> {
    let (stride, width) = (y.stride as u64, small(y.width));
    device.launch(named!(T, "add_bias"), Shape::of(y.rows, 256), arguments![y.at, stride, bias, width])
}

/// Adds the bias's gradient, the sum over the rows of `dy`.
pub(super) fn bias_gradient<T: Computed>(device: &Device, dy: Rows<'_, T>, dbias: ViewMut<'_, f32>) -> Result<()> {
    let mut partials: Buffer<f32> = device.buffer(dy.rows.div_ceil(PIECE) * dy.width)?;
    device.launch(
        named!(T, "column_partials"),
        pieces(dy.rows, dy.width),
        arguments![dy.at, dy.stride as u64, &mut partials, small(dy.rows), small(PIECE), small(dy.width)],
    )?;
    sum_partials(device, &partials, dbias)
}

/// `y += x`
pub(super) fn add<T: Computed>(device: &Device, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
    assert_eq!(x.len(), y.len(), "values that are added, and those that they are added to");
    let count = y.len();
    device.launch(named!(T, "add"), Shape::over(count, 256), arguments![x, y, count as u64])
}

impl Dropout {
    /// What is left of `x`, whose values have their places from `first` on.
    pub(super) fn of<T: Computed>(self, device: &Device, first: u64, x: &Buffer<T>) -> Result<Buffer<T>> {
        let mut y = device.buffer(x.len())?;
        self.launch(device, first, x, &mut y, false)?;
        Ok(y)
    }

    /// Adds to `y` what is left of `x`, whose values have their places from `first` on.
    pub(super) fn add<T: Computed>(self, device: &Device, first: u64, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        self.launch(device, first, x, y, true)
    }

    fn launch<T: Computed>(
        self,
        device: &Device,
        first: u64,
        x: &Buffer<T>,
        y: &mut Buffer<T>,
        add: bool,
    ) -> Result<()> {
        assert_eq!(x.len(), y.len(), "values, and what is left of them");
        let count = x.len();
        device.launch(
            named!(T, "dropout"),
            Shape::over(count, 256),
            arguments![x, y, self.seed, first, self.rate, i32::from(add), count as u64],
        )
    }
}

/// `activation(gate) * up`; gate and up lie side by side in `[tokens, 2 * width]`.
pub(super) fn gate<T: Computed>(
    device: &Device,
    activation: Activation,
    gate_up: &Buffer<T>,
    width: usize,
) -> Result<Buffer<T>> {
    let mut y = device.buffer(gate_up.len() / 2)?;
    let shape = Shape::of(y.len() / width, 256);
    device.launch(named!(T, "gate"), shape, arguments![number(activation), gate_up, &mut y, small(width)])?;
    Ok(y)
}

/// The gradients of gate and up take their place.
pub(super) fn gate_backward<T: Computed>(
    device: &Device,
    activation: Activation,
    dy: &Buffer<T>,
    gate_up: &mut Buffer<T>,
    width: usize,
) -> Result<()> {
    let shape = Shape::of(dy.len() / width, 256);
    device.launch(named!(T, "gate_backward"), shape, arguments![number(activation), dy, gate_up, small(width)])
}

/// As gated.cu counts.
fn number(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

/// Row `i` is row `places[i]` of `x`, times `scale`.
pub(super) fn take_rows<T: Computed>(
    device: &Device,
    x: Rows<'_, T>,
    places: View<'_, u32>,
    scale: f32,
) -> Result<Buffer<T>> {
    assert_eq!(x.stride, x.width, "rows that are taken have no gaps");
    let mut y = device.buffer(places.len() * x.width)?;
    let shape = Shape::of(places.len(), 256);
    device.launch(named!(T, "take_rows"), shape, arguments![x.at, places, &mut y, scale, small(x.width)])?;
    Ok(y)
}

/// Row `places[i]` of `y` is row `i` of `x` from now on; no place comes twice.
pub(super) fn put_rows<T: Computed>(
    device: &Device,
    x: Rows<'_, T>,
    places: View<'_, u32>,
    y: &mut Buffer<T>,
) -> Result<()> {
    device.launch(named!(T, "put_rows"), Shape::of(x.rows, 256), arguments![x.at, places, y, small(x.width)])
}

/// Which tokens have taken which row of a table, for [`Uses::add_gradient`].
pub(super) struct Uses {
    /// The rows that were taken, each once.
    ids: Buffer<u32>,
    /// Where the tokens of each begin in `order`, and after the last one where they end.
    starts: Buffer<u32>,
    order: Buffer<u32>,
}

impl Uses {
    pub(super) fn new(device: &Device, ids: &[u32]) -> Result<Self> {
        let mut order: Vec<u32> = (0..small(ids.len())).collect();
        // Stable: tokens of one row stay in their order, and so does their sum.
        order.sort_by_key(|&token| ids[token as usize]);
        let (mut used, mut starts) = (Vec::new(), Vec::new());
        for (at, &token) in order.iter().enumerate() {
            let id = ids[token as usize];
            if used.last() != Some(&id) {
                used.push(id);
                starts.push(small(at));
            }
        }
        starts.push(small(order.len()));
        Ok(Self { ids: device.upload(&used)?, starts: device.upload(&starts)?, order: device.upload(&order)? })
    }

    /// Adds to the table's gradient `[rows, width]` that of the tokens, times `scale`.
    pub(super) fn add_gradient<T: Computed>(
        &self,
        device: &Device,
        dx: &Buffer<T>,
        scale: f32,
        dtable: RowsMut<'_, f32>,
    ) -> Result<()> {
        let width = small(dtable.width);
        let shape = Shape { blocks: [small(self.ids.len()), width.div_ceil(256), 1], ..Shape::of(1, 256) };
        device.launch(
            named!(T, "table_backward"),
            shape,
            arguments![dx, &self.ids, &self.starts, &self.order, scale, dtable.at, width],
        )
    }
}

/// One step of AdamW for a stretch of values.
pub(super) struct Stepped<'a> {
    pub values: ViewMut<'a, f32>,
    pub copy: Option<ViewMut<'a, half::bf16>>,
    pub gradient: View<'a, f32>,
    pub first: ViewMut<'a, f32>,
    pub second: ViewMut<'a, f32>,
}

impl Stepped<'_> {
    pub(super) fn step(self, device: &Device, by: Coefficients) -> Result<()> {
        let count = self.values.len();
        device.launch(
            "adamw",
            Shape::over(count, 256),
            arguments![
                self.values,
                self.copy.map_or(Argument::NULL, Argument::from),
                self.gradient,
                self.first,
                self.second,
                by.beta1,
                by.beta2,
                by.epsilon,
                by.gradient,
                by.decay,
                by.rate,
                by.second,
                count as u64
            ],
        )
    }
}

/// Sums of squares of parts of `x`, which together are that of all of it.
pub(super) fn squares(device: &Device, x: &Buffer<f32>) -> Result<Buffer<f32>> {
    let mut sums = device.buffer(x.len().div_ceil(SQUARES))?;
    let shape = Shape::of(sums.len(), 256);
    device.launch("squares", shape, arguments![x, &mut sums, x.len() as u64, SQUARES as u64])?;
    Ok(sums)
}
