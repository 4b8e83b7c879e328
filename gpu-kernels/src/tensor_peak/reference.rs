//! The oracle, and the operands.

use std::vec::Vec;

use half::bf16;

use super::Tile;
use super::contract::{TensorPeakShape, TensorPeakVariant};

/// How far a result may be from the oracle's, by [`relative_error`]: what f32 sums over
/// [`NUM_STEPS`](super::NUM_STEPS) steps lose, with a margin.
pub const MAX_RELATIVE_ERROR: f64 = 5e-3;

/// A and B: normally distributed, rounded to bf16.
pub fn inputs(variant: TensorPeakVariant, seed: u64) -> [Vec<bf16>; 2] {
    let Tile { m, n, k } = variant.tile();
    let mut rng = fastrand::Rng::with_seed(seed);
    [m, n].map(|rows| (0..rows * k).map(|_| bf16::from_f64(normal(&mut rng))).collect())
}

/// Of mean 0 and variance 1, by Box and Muller's method.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// What every block writes: `num_steps * a b^T`, `[m, n]`.
pub fn product(shape: &TensorPeakShape, a: &[bf16], b: &[bf16]) -> Vec<f64> {
    let k = shape.variant.tile().k;
    let [a, b] = [a, b].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
    a.chunks_exact(k)
        .flat_map(|row| {
            b.chunks_exact(k).map(move |column| {
                let dot: f64 = row.iter().zip(column).map(|(x, y)| x * y).sum();
                f64::from(shape.num_steps) * dot
            })
        })
        .collect()
}

/// The distance of the worst block of `out` from `expected`, over the length of `expected`
/// (Frobenius); infinite if `out` is not a number somewhere.
pub fn relative_error(out: &[f32], expected: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let length = norm(&mut expected.iter().copied());
    out.chunks(expected.len())
        .map(|block| {
            let mut differences = block.iter().zip(expected).map(|(&x, &y)| f64::from(x) - y);
            let error = norm(&mut differences) / length;
            if error.is_nan() { f64::INFINITY } else { error }
        })
        .fold(0.0, f64::max)
}

/// Measurements that tests run.
pub fn cases() -> [TensorPeakShape; 4] {
    use TensorPeakVariant::{Mma, Wgmma};
    [(Wgmma, 1, 1), (Wgmma, 2, 3), (Mma, 1, 1), (Mma, 3, 5)]
        .map(|(variant, num_blocks, num_steps)| TensorPeakShape { variant, num_blocks, num_steps })
}
