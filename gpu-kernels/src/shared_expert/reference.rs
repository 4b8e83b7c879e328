//! The oracle, and the shapes that tests, GPU tests and benches share.

use std::vec::Vec;

use half::bf16;

use super::contract::SharedExpertShape;
use crate::gemm::reference::{Tolerance, product, random};

/// How far h and y may be from the oracle's where gates, what they scale and h are rounded to bf16
/// on the way: those errors, of 2^-9 each, add up in y as its summands do.
pub const TOLERANCE: Tolerance = Tolerance { relative: 8e-3, absolute: 3e-2 };

/// `silu(g) * u` for rows of `n` gates and then the `n` that they scale.
pub fn gate(gate_up: &[f64], n: usize) -> Vec<f64> {
    let of_row = |row: &[f64]| -> Vec<f64> {
        let (gates, ups) = row.split_at(n);
        gates.iter().zip(ups).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    };
    gate_up.chunks_exact(2 * n).flat_map(of_row).collect()
}

/// x, gate_up and down, such that h and y are of order 1.
pub fn operands(shape: &SharedExpertShape, seed: u64) -> [Vec<bf16>; 3] {
    let [gate_up, down] = shape.products();
    let variance = |k: u32| 1.0 / f64::from(k);
    [
        random(seed, gate_up.a_elements(), 1.0),
        random(!seed, gate_up.b_elements(), variance(gate_up.k)),
        // silu(g) * u has a third of the variance of its factors.
        random(seed.rotate_left(32), down.b_elements(), 3.0 * variance(down.k)),
    ]
}

/// h and y, in f64; y of h rounded to bf16.
pub fn outputs(
    shape: &SharedExpertShape,
    x: &[bf16],
    gate_up: &[bf16],
    down: &[bf16],
) -> [Vec<f64>; 2] {
    let (hidden, intermediate) = (shape.hidden as usize, shape.intermediate as usize);
    let h = gate(&product(x, gate_up, hidden), intermediate);
    let rounded: Vec<bf16> = h.iter().map(|&h| bf16::from_f64(h)).collect();
    let y = product(&rounded, down, intermediate);
    [h, y]
}

/// Edge cases, small enough for the CPU.
pub fn cases() -> Vec<SharedExpertShape> {
    [(1, 8, 8), (5, 72, 136), (130, 136, 136), (40, 136, 264)]
        .map(|(num_tokens, hidden, intermediate)| SharedExpertShape {
            num_tokens,
            hidden,
            intermediate,
        })
        .to_vec()
}
