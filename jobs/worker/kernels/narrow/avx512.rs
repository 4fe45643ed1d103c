//! The two loops of [`super`] for AVX-512: eight rows of the narrow matrix at a time, whose sums stay in registers.
//! Left to itself, the compiler puts them on the stack.

use std::arch::x86_64::{
    __m512, _mm512_fmadd_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
    _mm512_setzero_ps,
};

const LANES: usize = 16;
const RANKS: usize = 8;

/// `y = scale * x Aᵀ` for rows `[width]` of `x`; `y` is `[tokens, rank]`, `a` is `[rank, width]`.
#[target_feature(enable = "avx512f")]
pub(super) fn reduce(x: &[f32], a: &[f32], width: usize, scale: f32, y: &mut [f32]) {
    let rank = a.len() / width;
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(rank)) {
        for (a, y) in a.chunks(RANKS * width).zip(y.chunks_mut(RANKS)) {
            if y.len() == RANKS {
                inner_products::<RANKS>(x, a, scale, y);
            } else {
                for (a, y) in a.chunks_exact(width).zip(y.chunks_exact_mut(1)) {
                    inner_products::<1>(x, a, scale, y);
                }
            }
        }
    }
}

/// The inner products of `x` with `R` rows of its length.
#[inline]
#[target_feature(enable = "avx512f")]
fn inner_products<const R: usize>(x: &[f32], rows: &[f32], scale: f32, y: &mut [f32]) {
    let width = x.len();
    assert!(rows.len() == R * width && y.len() == R, "{R} rows of {width}");
    let mut sums = [_mm512_setzero_ps(); R];
    for column in (0..width).step_by(LANES) {
        let mask = mask(width - column);
        // SAFETY: the mask hides what lies beyond a row's end.
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(column));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, rows.as_ptr().add(r * width + column)), *sum);
            }
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        *y = scale * _mm512_reduce_add_ps(sum);
    }
}

/// `g += cᵀ x`: `c` is `[tokens, rank]`, `x` `[tokens, width]`, `g` `[rank, width]`.
#[target_feature(enable = "avx512f")]
pub(super) fn add_outer_products(c: &[f32], x: &[f32], rank: usize, g: &mut [f32]) {
    let width = g.len() / rank;
    for (block, g) in g.chunks_mut(RANKS * width).enumerate() {
        let first = block * RANKS;
        if g.len() == RANKS * width {
            outer_products::<RANKS>(c, x, (rank, first), g);
        } else {
            for (r, g) in g.chunks_exact_mut(width).enumerate() {
                outer_products::<1>(c, x, (rank, first + r), g);
            }
        }
    }
}

/// The rows of `g` from `first` on, of which there are `R`.
#[inline]
#[target_feature(enable = "avx512f")]
fn outer_products<const R: usize>(c: &[f32], x: &[f32], (rank, first): (usize, usize), g: &mut [f32]) {
    let (width, tokens) = (g.len() / R, c.len() / rank);
    assert!(x.len() == tokens * width && c.len() == tokens * rank && first + R <= rank, "{tokens} tokens of {width}");
    for column in (0..width).step_by(2 * LANES) {
        let masks = [mask(width - column), mask(width.saturating_sub(column + LANES))];
        // SAFETY: the masks hide what lies beyond a row's end; tokens and ranks are within bounds by the assertion.
        unsafe {
            let load = |from: *const f32| -> [__m512; 2] {
                let from = from.wrapping_add(column);
                [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(LANES))]
            };
            let mut sums: [[__m512; 2]; R] = std::array::from_fn(|r| load(g.as_ptr().add(r * width)));
            for token in 0..tokens {
                let x = load(x.as_ptr().add(token * width));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let c = _mm512_set1_ps(*c.as_ptr().add(token * rank + first + r));
                    *sums = [_mm512_fmadd_ps(c, x[0], sums[0]), _mm512_fmadd_ps(c, x[1], sums[1])];
                }
            }
            for (r, [low, high]) in sums.into_iter().enumerate() {
                let to = g.as_mut_ptr().add(r * width).wrapping_add(column);
                _mm512_mask_storeu_ps(to, masks[0], low);
                _mm512_mask_storeu_ps(to.wrapping_add(LANES), masks[1], high);
            }
        }
    }
}

/// The lanes of a register that `rest` values fill.
fn mask(rest: usize) -> u16 {
    ((1u32 << rest.min(LANES)) - 1) as u16
}
