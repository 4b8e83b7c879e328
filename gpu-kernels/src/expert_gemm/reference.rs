//! The oracle, and the routings that tests, GPU tests and benches share.

use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::ExpertGemmShape;
use crate::gemm::reference::{product, random};
use crate::shared_expert::reference::gate;

/// Rows that experts have, in the order of experts, as offsets.
pub fn offsets(rows_of: &[u32]) -> Vec<i32> {
    let mut offsets = vec![0];
    for &rows in rows_of {
        offsets.push(offsets[offsets.len() - 1] + rows as i32);
    }
    offsets
}

/// `num_rows` rows dealt to experts at random.
pub fn random_rows(num_rows: u32, num_experts: u32, seed: u64) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rows_of = vec![0; num_experts as usize];
    for _ in 0..num_rows {
        rows_of[rng.usize(..num_experts as usize)] += 1;
    }
    rows_of
}

/// `num_rows` rows dealt to experts by Zipf's law: expert `i` has a share in proportion to
/// `1 / (i + 1)`, the first what is left over.
pub fn zipf_rows(num_rows: u32, num_experts: u32) -> Vec<u32> {
    let weights: Vec<f64> = (1..=num_experts).map(|rank| 1.0 / f64::from(rank)).collect();
    let total: f64 = weights.iter().sum();
    let mut rows_of: Vec<u32> =
        weights.iter().map(|weight| (weight / total * f64::from(num_rows)) as u32).collect();
    rows_of[0] += num_rows - rows_of.iter().sum::<u32>();
    rows_of
}

/// A and B whose products are of variance 1.
pub fn operands(shape: &ExpertGemmShape, seed: u64) -> [Vec<bf16>; 2] {
    [
        random(seed, shape.a_elements(), 1.0),
        random(!seed, shape.b_elements(), 1.0 / f64::from(shape.k)),
    ]
}

/// C in f64, `[rows of all experts, n]`, for experts of `rows_of` rows.
pub fn expert_products(
    shape: &ExpertGemmShape,
    rows_of: &[u32],
    a: &[bf16],
    b: &[bf16],
) -> Vec<f64> {
    let k = shape.k as usize;
    let offsets = offsets(rows_of);
    let of_expert = |(expert, ends): (usize, &[i32])| {
        let rows = &a[ends[0] as usize * k..ends[1] as usize * k];
        let b_elements = shape.b_rows() as usize * k;
        let of_all = product(rows, &b[expert * b_elements..][..b_elements], k);
        if shape.is_gated { gate(&of_all, shape.n as usize) } else { of_all }
    };
    offsets.windows(2).enumerate().flat_map(of_expert).collect()
}

/// A named routing.
#[derive(Clone, Debug)]
pub struct ExpertGemmCase {
    /// What the case is about.
    pub name: &'static str,
    /// Sizes, without a gate.
    pub shape: ExpertGemmShape,
    /// Rows of each expert.
    pub rows_of: Vec<u32>,
}

/// Edge cases, small enough for the CPU.
pub fn cases() -> Vec<ExpertGemmCase> {
    let case = |name, rows_of: &[u32], spare_rows: u32, n, k| {
        let num_rows = rows_of.iter().sum::<u32>() + spare_rows;
        let num_experts = rows_of.len() as u32;
        let shape = ExpertGemmShape { num_rows, num_experts, n, k, is_gated: false };
        ExpertGemmCase { name, shape, rows_of: rows_of.to_vec() }
    };
    let mut many = vec![0; 70];
    (many[0], many[31], many[32], many[69]) = (3, 1, 20, 2);
    vec![
        case("one expert", &[40], 0, 136, 72),
        case("one row", &[0, 1, 0], 0, 8, 8),
        case("full, exceeded and nearly empty tiles", &[128, 129, 1, 17], 0, 264, 64),
        case("tall tiles beside others", &[200, 20, 256, 193, 257], 0, 136, 72),
        case("several tall tiles of an expert", &[3, 500, 400], 0, 136, 72),
        case("experts without tokens, and rows of no expert", &[0, 5, 0, 0, 33, 0], 9, 72, 136),
        case("nobody has tokens", &[0, 0, 0], 4, 16, 16),
        case("all tokens to the last expert", &[0, 0, 0, 150], 0, 40, 40),
        case("more experts than lanes", &many, 0, 24, 24),
    ]
}
