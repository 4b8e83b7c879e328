//! The oracle, and the shapes that tests, GPU tests and benches share.

use std::format;
use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::contract::GemmShape;

/// How far an element of C may be from the oracle's.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Times the oracle's magnitude.
    pub relative: f64,
    /// Added to that.
    pub absolute: f64,
}

impl Tolerance {
    /// Products of [`operands`]: rounding to bf16, half a step of which is 2^-9, and what the
    /// tensor cores lose when they sum up elements of order 1.
    pub const BF16: Self = Self { relative: 4e-3, absolute: 2e-3 };

    /// Whether `got` is close enough to `want`; NaN and infinities never are.
    pub fn holds(&self, got: f64, want: f64) -> bool {
        (got - want).abs() <= self.absolute + self.relative * want.abs()
    }
}

/// Random values of mean 0 and variance `variance`: sums of four uniform ones, as near to normal
/// as switching transistors tell.
pub fn random(seed: u64, len: usize, variance: f64) -> Vec<bf16> {
    let mut rng = fastrand::Rng::with_seed(seed);
    // A uniform 16-bit number has variance 2^32 / 12.
    let scale = (variance * 3.0).sqrt() / 65536.0;
    let draw = |bits: u64| {
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        bf16::from_f32(((sum as f64 - 2.0 * 65535.0) * scale) as f32)
    };
    (0..len).map(|_| draw(rng.u64(..))).collect()
}

/// A and B whose products are of variance 1.
pub fn operands(shape: &GemmShape, seed: u64) -> [Vec<bf16>; 2] {
    let b_variance = 1.0 / f64::from(shape.k);
    [random(seed, shape.a_elements(), 1.0), random(!seed, shape.b_elements(), b_variance)]
}

/// `A B^T` in f64, for A `[.., k]` and B `[.., k]`.
pub fn product(a: &[bf16], b: &[bf16], k: usize) -> Vec<f64> {
    let [a, b] = [a, b].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    a.chunks_exact(k)
        .flat_map(|row| b.chunks_exact(k).map(move |column| dot(row, column)))
        .collect()
}

/// Refuses `c`, of rows of `n` elements, unless all of it is close to `want`.
///
/// # Errors
/// How many elements are off, and the first of them.
pub fn check(c: &[bf16], want: &[f64], n: usize, tolerance: Tolerance) -> Result<(), String> {
    if c.len() != want.len() {
        return Err(format!("{} elements, the oracle has {}", c.len(), want.len()));
    }
    let is_off = |i: &usize| !tolerance.holds(f64::from(c[*i]), want[*i]);
    let mut off = (0..c.len()).filter(is_off);
    match off.next() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} of {} elements are off; the first, row {} column {}, is {}, the oracle has {}",
            1 + off.count(),
            c.len(),
            first / n,
            first % n,
            c[first],
            want[first],
        )),
    }
}

/// Edge cases: tiles that are full, just exceeded and nearly empty, in each dimension.
pub fn cases() -> Vec<GemmShape> {
    [
        (1, 8, 8),
        (3, 16, 40),
        (16, 128, 64),
        (17, 136, 72),
        (64, 264, 200),
        (128, 128, 256),
        (129, 144, 96),
        (256, 256, 64),
        (257, 8, 328),
        (300, 392, 136),
    ]
    .map(|(m, n, k)| GemmShape { m, n, k })
    .to_vec()
}
