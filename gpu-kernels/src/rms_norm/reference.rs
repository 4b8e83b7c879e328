//! The oracle, and the shapes that tests and benches share.

use std::format;
use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::contract::RmsNormShape;

/// Half a unit in the last place of bf16, twice, and the arithmetic before it.
const ULPS: f64 = 1.05 / 128.0;

/// Inputs of a normalisation.
#[derive(Clone, Debug)]
pub struct RmsNormProblem {
    /// Sizes.
    pub shape: RmsNormShape,
    /// `[num_rows, row_len]`
    pub x: Vec<bf16>,
    /// `[num_rows, row_len]`
    pub delta: Vec<bf16>,
    /// `[row_len]`
    pub weight: Vec<bf16>,
}

/// One element a thread, ragged threads, whole blocks, every number of words of a thread.
pub fn cases() -> Vec<RmsNormShape> {
    let shape = |num_rows, row_len| RmsNormShape { num_rows, row_len, eps: 1e-6 };
    [(1, 8), (3, 64), (5, 128), (2, 2048), (3, 2056), (2, 4096), (2, 7168), (2, 16_384)]
        .map(|(num_rows, row_len)| shape(num_rows, row_len))
        .to_vec()
}

impl RmsNormProblem {
    /// Random rows, each of a magnitude of its own, and weights about 1; the last of several rows is
    /// zeros.
    pub fn new(shape: RmsNormShape, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut x, mut delta) = (Vec::new(), Vec::new());
        for row in 0..shape.num_rows {
            let is_zeros = row > 0 && row + 1 == shape.num_rows;
            let magnitude = if is_zeros { 0.0 } else { (8.0 * rng.f32() - 4.0).exp2() };
            let mut element = |_| bf16::from_f32(magnitude * (2.0 * rng.f32() - 1.0));
            x.extend((0..shape.row_len).map(&mut element));
            delta.extend((0..shape.row_len).map(&mut element));
        }
        let weight = (0..shape.row_len).map(|_| bf16::from_f32(0.5 + rng.f32())).collect();
        Self { shape, x, delta, weight }
    }

    /// `x + delta`, rounded: exact.
    pub fn sums(&self) -> Vec<bf16> {
        let sum = |(x, delta): (&bf16, &bf16)| bf16::from_f32(x.to_f32() + delta.to_f32());
        self.x.iter().zip(&self.delta).map(sum).collect()
    }

    /// The formula for rows `x`, without any rounding.
    fn oracle(&self, x: &[bf16]) -> Vec<f64> {
        let row_len = self.shape.row_len as usize;
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks(row_len) {
            let mean = row.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / row_len as f64;
            let scale = 1.0 / (mean + f64::from(self.shape.eps)).sqrt();
            out.extend(row.iter().zip(&self.weight).map(|(x, w)| x.to_f64() * scale * w.to_f64()));
        }
        out
    }

    /// Refuses `out` of normalising rows `x` unless every element is within two roundings to bf16.
    ///
    /// # Errors
    /// The first element that is off.
    pub fn check(&self, x: &[bf16], out: &[bf16]) -> Result<(), String> {
        if out.len() != x.len() {
            return Err(format!("{} elements, not {}", out.len(), x.len()));
        }
        let is_off = |&(_, (got, want)): &(usize, (&bf16, f64))| {
            let is_close = (got.to_f64() - want).abs() <= ULPS * want.abs() + 1e-30;
            !is_close
        };
        match out.iter().zip(self.oracle(x)).enumerate().find(is_off) {
            None => Ok(()),
            Some((i, (got, want))) => Err(format!("element {i} is {got}, the oracle has {want}")),
        }
    }
}
