//! The oracle, operands, and the routings that tests, GPU tests and benches share.

use std::vec::Vec;

use cuda_std::float::E4m3;
use half::bf16;

use super::contract::ExpertGemmFp8Shape;
use crate::expert_gemm::reference::offsets;
use crate::gemm::reference::{Tolerance, random};
use crate::token_unpack::SCALE_BLOCK;

/// How far an element of C may be from the oracle's: rounding to bf16, half a step of which is
/// 2^-9, and what tensor cores lose when they add up 128 products in 14 bits.
pub const TOLERANCE: Tolerance = Tolerance { relative: 4e-3, absolute: 4e-3 };

/// Standard deviation of elements: most of them are of the exponents below the largest.
pub const DEVIATION: f64 = 64.0;

/// Both operands with their scales.
#[derive(Clone, Debug)]
pub struct Operands {
    /// `[num_rows, k]`
    pub a: Vec<E4m3>,
    /// `[num_rows, k.div_ceil(128)]`
    pub a_scales: Vec<f32>,
    /// `[num_experts, n, k]`
    pub b: Vec<E4m3>,
    /// `[num_experts, n.div_ceil(128), k.div_ceil(128)]`
    pub b_scales: Vec<f32>,
}

impl Operands {
    /// Operands whose products are of variance 1, roughly. Elements times their scale are exact in bf16:
    /// both have 4 significant bits.
    pub fn random(shape: &ExpertGemmFp8Shape, seed: u64) -> Self {
        Self {
            a: random_elements(seed, shape.a_elements()),
            a_scales: a_scales(shape, seed),
            b: random_elements(!seed, shape.b_elements()),
            b_scales: b_scales(shape, seed),
        }
    }
}

/// Normal values, rounded to e4m3.
fn random_elements(seed: u64, len: usize) -> Vec<E4m3> {
    let values = random(seed, len, DEVIATION * DEVIATION);
    values.into_iter().map(|value| E4m3::from_f32(value.into())).collect()
}

/// Scales that bring normal elements of [`DEVIATION`] to a variance of 1, roughly.
pub fn a_scales(shape: &ExpertGemmFp8Shape, seed: u64) -> Vec<f32> {
    random_scales(seed, shape.a_scales(), 1.0)
}

/// The same to `1 / k`.
pub fn b_scales(shape: &ExpertGemmFp8Shape, seed: u64) -> Vec<f32> {
    random_scales(!seed, shape.b_scales(), f64::from(shape.k).sqrt().recip())
}

/// Scales of 4 significant bits, from half of what gives `deviation` to twice that.
fn random_scales(seed: u64, len: usize, deviation: f64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5c_a1e5);
    let unit = (deviation / DEVIATION).log2().round().exp2() as f32;
    (0..len).map(|_| unit * (8 + rng.u32(..8)) as f32 / [8.0, 16.0][rng.usize(..2)]).collect()
}

/// A row as it is meant: its elements times their scales.
pub fn row_values<'a>(row: &'a [E4m3], scales: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    row.chunks(SCALE_BLOCK as usize).zip(scales).flat_map(|(block, &scale)| {
        block.iter().map(move |element| f64::from(element.to_f32()) * f64::from(scale))
    })
}

/// Rows of `shape.k` elements as they are meant, of which `rows_together` have the same scales.
fn values(
    shape: &ExpertGemmFp8Shape,
    elements: &[E4m3],
    scales: &[f32],
    rows_together: usize,
) -> Vec<f64> {
    let row_scales = shape.row_scales() as usize;
    let rows = elements.chunks_exact(shape.k as usize).enumerate();
    rows.flat_map(|(row, elements)| {
        row_values(elements, &scales[row / rows_together * row_scales..][..row_scales])
    })
    .collect()
}

/// The same values in bf16.
///
/// # Panics
/// If one of them is not exact, which those of [`Operands::random`] are.
pub fn exact_bf16(values: impl Iterator<Item = f64>) -> Vec<bf16> {
    let exactly = |value: f64| {
        let rounded = bf16::from_f64(value);
        assert!(f64::from(rounded) == value, "{value} is not exact in bf16");
        rounded
    };
    values.map(exactly).collect()
}

/// C in f64, `[rows of all experts, n]`, for experts of `rows_of` rows.
pub fn expert_products(
    shape: &ExpertGemmFp8Shape,
    rows_of: &[u32],
    operands: &Operands,
) -> Vec<f64> {
    let (k, num_experts) = (shape.k as usize, shape.num_experts as usize);
    let Operands { a, a_scales, b, b_scales } = operands;
    let a = values(shape, a, a_scales, 1);
    let experts = b.chunks_exact(b.len() / num_experts);
    let experts = experts.zip(b_scales.chunks_exact(b_scales.len() / num_experts));
    let of_expert = |((b, b_scales), ends): ((&[E4m3], &[f32]), &[i32])| {
        let b = values(shape, b, b_scales, SCALE_BLOCK as usize);
        let rows = a[ends[0] as usize * k..ends[1] as usize * k].chunks_exact(k);
        let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        rows.flat_map(|row| b.chunks_exact(k).map(move |column| dot(row, column)))
            .collect::<Vec<f64>>()
    };
    experts.zip(offsets(rows_of).windows(2)).flat_map(of_expert).collect()
}

/// A named routing.
#[derive(Clone, Debug)]
pub struct ExpertGemmFp8Case {
    /// What the case is about.
    pub name: &'static str,
    /// Sizes.
    pub shape: ExpertGemmFp8Shape,
    /// Rows of each expert.
    pub rows_of: Vec<u32>,
}

/// Edge cases, small enough for the CPU.
pub fn cases() -> Vec<ExpertGemmFp8Case> {
    let case = |name, rows_of: &[u32], spare_rows: u32, n, k| {
        let num_rows = rows_of.iter().sum::<u32>() + spare_rows;
        let shape = ExpertGemmFp8Shape { num_rows, num_experts: rows_of.len() as u32, n, k };
        ExpertGemmFp8Case { name, shape, rows_of: rows_of.to_vec() }
    };
    let mut many = [0; 70];
    (many[0], many[31], many[32], many[69]) = (3, 1, 20, 2);
    std::vec![
        case("dense", &[96], 0, 264, 640),
        case("one row", &[0, 1, 0], 0, 8, 16),
        case("full, exceeded and nearly empty tiles", &[128, 129, 1, 17], 0, 136, 128),
        case("tiles of every size", &[33, 49, 80, 81, 97, 113], 0, 72, 144),
        case("k ends within a block of its scale", &[5, 70], 0, 40, 400),
        case("experts without tokens, and rows of no expert", &[0, 5, 0, 0, 33, 0], 9, 72, 272),
        case("nobody has tokens", &[0, 0, 0], 4, 16, 16),
        case("all tokens to the last expert", &[0, 0, 0, 150], 0, 40, 256),
        case("more experts than lanes", &many, 0, 24, 48),
    ]
}
