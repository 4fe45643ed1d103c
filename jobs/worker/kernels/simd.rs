//! One source, several instruction sets: the machine that a container runs on is not known when it is built.
//!
//! A function written with [`dispatched!`](crate::kernels::simd) is compiled three times (baseline, AVX2, AVX-512),
//! and the best one for the CPU at hand is called. The loops are plain Rust that the compiler vectorises; products and
//! sums are not contracted, so all three give the same result bit for bit.

use std::sync::OnceLock;

/// The vector instructions in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every CPU of the target has: SSE2, or NEON.
    Baseline,
    Avx2,
    Avx512,
}

/// The best level of this CPU.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Level::Avx512
    } else if avx2 {
        Level::Avx2
    } else {
        Level::Baseline
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// The level's name, as it stands in the worker's first report.
pub fn features() -> Vec<String> {
    let name = match level() {
        Level::Avx512 => "avx512",
        Level::Avx2 => "avx2",
        Level::Baseline if cfg!(target_arch = "aarch64") => "neon",
        Level::Baseline => "baseline",
    };
    vec![name.to_owned()]
}

/// Compiles a function for each [`Level`] and calls the one that fits the CPU.
macro_rules! dispatched {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$(const $generic:ident: $kind:ty),+>)? ($($arg:ident: $type:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$(const $generic: $kind),+>)? ($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$(const $generic: $kind),+>)? ($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$(const $generic: $kind),+>)? ($($arg: $type),*) $(-> $ret)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$(const $generic: $kind),+>)? ($($arg: $type),*) $(-> $ret)? {
                body($($arg),*)
            }

            match $crate::kernels::simd::level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `level` has found these instructions on this CPU.
                $crate::kernels::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernels::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use dispatched;

/// Lanes of a sum: enough for one register of the widest level.
const LANES: usize = 16;

/// The inner product, in lanes, so that it can be vectorised without changing the order of the sums.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    total(sums) + rest
}

/// The sum over the lanes, by halves: one after the other they would wait for each other.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The sum of the products of three.
#[inline(always)]
pub(super) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).zip(c_rest).map(|((a, b), c)| a * b * c).sum();
    sums.iter().sum::<f32>() + rest
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            best[lane] = if chunk[lane] > best[lane] { chunk[lane] } else { best[lane] };
        }
    }
    best.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &value| best.max(value))
}

/// Replaces each value by `exp(value - shift)` and returns the sum.
#[inline(always)]
pub(super) fn exp_and_sum(values: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - shift);
            sums[lane] += chunk[lane];
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for value in rest {
        *value = exp(*value - shift);
        sum += *value;
    }
    sum
}

/// `e^x` to about two units in the last place, without branches. NaN stays NaN.
///
/// The method is that of Cephes' `expf`: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, and 2^n put into the
/// exponent. ln 2 is split in two, so that `n * LN2_HIGH` is exact without a fused multiply-add.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result would leave the normal numbers; `clamp` keeps NaN.
    let x = x.clamp(-87.3, 88.3);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + coefficient;
    }
    let y = p * (r * r) + r + 1.0;
    // SAFETY: |n| is at most 128 after the clamp; a NaN takes any integer, and its `y` is NaN all the same.
    let n = unsafe { (if n.is_nan() { 0.0 } else { n }).to_int_unchecked::<i32>() };
    y * f32::from_bits(((n + 127) << 23) as u32)
}

/// The hyperbolic tangent to about three units in the last place. NaN stays NaN.
///
/// The method is that of Cephes' `tanhf`: an odd polynomial near zero, where `1 - 2 / (e^2x + 1)` would cancel. Both
/// are computed, so that there is no branch.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p * square + coefficient;
    }
    let near = p * square * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_a_few_units_in_the_last_place() {
        for i in -20_000..20_000 {
            let x = i as f32 * 0.001;
            let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((got - want).abs() <= want.abs() * 4e-7, "tanh({x}) = {got}, not {want}");
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!((tanh(f32::INFINITY), tanh(-1e30)), (1.0, -1.0));
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 2.5e-7, "exp({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn exp_of_nan_is_nan_and_of_minus_infinity_next_to_nothing() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    dispatched! {
        fn through_the_dispatch(a: &[f32], b: &mut [f32]) -> f32 {
            let sum = exp_and_sum(b, 0.5);
            dot(a, b) + sum + max(a)
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        for len in [1, 15, 16, 17, 100] {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            let mut c = b.clone();
            let baseline = {
                let sum = exp_and_sum(&mut c, 0.5);
                dot(&a, &c) + sum + max(&a)
            };
            assert_eq!(through_the_dispatch(&a, &mut b).to_bits(), baseline.to_bits());
            assert_eq!(b, c);
        }
    }
}
