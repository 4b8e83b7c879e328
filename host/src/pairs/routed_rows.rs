//! Which rows are which expert's, and what all of them give: for pairs of products of experts.

use std::borrow::Cow;

use anyhow::{Context, Result};
use gpu_kernels::expert_gemm::reference::{random_rows, zipf_rows};
use gpu_kernels::gemm::contract::GemmShape;
use half::bf16;

use super::product_bench::exact_product;
use crate::device::Stream;

/// How tokens are dealt to experts.
#[derive(Clone, Copy)]
pub(super) enum Routing {
    /// Equally many each.
    Uniform,
    /// Each token to one at random.
    Random,
    /// By Zipf's law.
    Zipf,
}

impl Routing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Random => "random",
            Self::Zipf => "zipf",
        }
    }

    pub fn rows_of(self, num_rows: u32, num_experts: u32, seed: u64) -> Vec<u32> {
        match self {
            Self::Uniform => vec![num_rows / num_experts; num_experts as usize],
            Self::Random => random_rows(num_rows, num_experts, seed),
            Self::Zipf => zipf_rows(num_rows, num_experts),
        }
    }
}

/// The rows of all experts, one expert's after another's, times the weights of each: `[rows, n]`, as
/// [`exact_product`] has it. Experts without rows are not asked for their weights, `[n, k]`.
pub(super) fn exact_products<'b>(
    stream: &Stream,
    [n, k]: [u32; 2],
    rows_of: &[u32],
    mut a: &[bf16],
    weights_of: impl Fn(usize) -> Cow<'b, [bf16]>,
) -> Result<Vec<f64>> {
    let mut c = Vec::with_capacity(a.len() / k as usize * n as usize);
    for (expert, &m) in rows_of.iter().enumerate().filter(|&(_, &m)| m > 0) {
        let rows = a.split_off(..m as usize * k as usize).context("rows of all experts")?;
        c.extend(exact_product(stream, GemmShape { m, n, k }, rows, &weights_of(expert))?);
    }
    Ok(c)
}
