//! What pairs of products have in common: random operands, oracle, check and clock.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use bytemuck::Pod;
use cuda_std::float::E4m3;
use gpu_kernels::contract::Work;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::reference::{Tolerance, check, product, random};
use half::bf16;
use rayon::prelude::*;

use crate::device::{Buffer, Stream};
use crate::harness::ceilings::{DENSE_BF16, HBM_READ};
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant, stream_sampler};
use crate::kernels::gemm::multiply_exactly;

/// Elements that one thread draws at a time.
const DRAWN_TOGETHER: usize = 1 << 20;
/// What exact products may differ from the oracle by: their rounding to f32.
const EXACT: Tolerance = Tolerance { relative: 1e-6, absolute: 1e-9 };

/// An element of weights.
pub(super) trait Weight: Pod {
    /// A value that hardly any has.
    const CORRUPTED: Self;
}

impl Weight for bf16 {
    const CORRUPTED: Self = Self::from_f32_const(100.0);
}

impl Weight for E4m3 {
    const CORRUPTED: Self = Self::MAX;
}

/// Both sides of a pair over the same operands, whose last step is a product.
pub(super) trait Products {
    type Weight: Weight;

    /// Weights of the last step, in the last of their places, of which the first `row` elements
    /// are used.
    fn last_weights(&self) -> (&Buffer<Self::Weight>, usize);

    fn run(
        &self,
        stream: &Stream,
        variant: Variant,
        input: usize,
        output: &Buffer<bf16>,
    ) -> Result<()>;

    /// The whole output, in f64.
    fn oracle(&self, stream: &Stream) -> Result<Vec<f64>>;
}

/// What a pair of products takes and gives, whatever it multiplies.
pub(super) struct Product {
    pub stream: Stream,
    pub work: Work,
    /// What the tensor cores do, counted in operations of bf16.
    pub bf16_flops: u64,
    /// How often the weights lie in memory.
    pub num_inputs: usize,
    /// What is compared, in rows of `num_columns`.
    pub output: Buffer<bf16>,
    pub num_columns: u32,
    pub tolerance: Tolerance,
}

/// Products, ready to be measured.
pub(super) struct ProductBench<P> {
    products: P,
    product: Product,
    oracle: OnceLock<Vec<f64>>,
}

impl<P: Products> ProductBench<P> {
    pub(super) fn new(products: P, product: Product) -> Self {
        Self { products, product, oracle: OnceLock::new() }
    }

    fn oracle(&self) -> Result<&[f64]> {
        if self.oracle.get().is_none() {
            // Whoever comes second has worked out the same.
            let _ = self.oracle.set(self.products.oracle(&self.product.stream)?);
        }
        Ok(self.oracle.get().context("just set")?)
    }
}

impl<P: Products> Prepared for ProductBench<P> {
    fn work(&self, _variant: Variant) -> Work {
        self.product.work
    }

    fn demands(&self) -> Vec<Demand> {
        let Product { work, bf16_flops, .. } = self.product;
        vec![
            Demand { ceiling: DENSE_BF16, amount: bf16_flops },
            Demand { ceiling: HBM_READ, amount: work.read_bytes },
        ]
    }

    fn num_inputs(&self) -> usize {
        self.product.num_inputs
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        let Product { stream, output, .. } = &self.product;
        stream_sampler(stream, batch, move |input| {
            self.products.run(stream, variant, input, output)
        })
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let want = self.oracle()?;
        let Product { stream, num_inputs, output, num_columns, tolerance, .. } = &self.product;
        for input in 0..*num_inputs {
            stream.fill(output, bf16::NAN)?;
            self.products.run(stream, variant, input, output)?;
            let got = stream.download(output)?;
            check(&got, want, *num_columns as usize, *tolerance)
                .map_err(|off| anyhow!("inputs {input}, {variant}: {off}"))?;
        }
        let Tolerance { relative, absolute } = tolerance;
        let num_outputs = want.len();
        Ok(format!(
            "{num_outputs} outputs within {absolute} + {relative} of f64, {num_inputs} times"
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let (weights, row) = self.products.last_weights();
        let corrupted = vec![P::Weight::CORRUPTED; row];
        Ok(self.product.stream.upload(&corrupted, weights.slice(..row))?)
    }
}

/// The same elements, so often.
pub(super) fn upload_often<T: Pod>(
    stream: &Stream,
    num_times: usize,
    elements: &[T],
) -> Result<Vec<Buffer<T>>> {
    Ok((0..num_times).map(|_| Buffer::from_slice(stream, elements)).collect::<Result<_, _>>()?)
}

/// Random values of mean 0, drawn by all cores, the same for the same seed.
pub(super) fn random_in_parallel(seed: u64, len: usize, variance: f64) -> Vec<bf16> {
    let num_parts = len.div_ceil(DRAWN_TOGETHER);
    let parts: Vec<Vec<bf16>> = (0..num_parts)
        .into_par_iter()
        .map(|part| {
            let part_len = DRAWN_TOGETHER.min(len - part * DRAWN_TOGETHER);
            random(seed.wrapping_mul(1 << 20).wrapping_add(part as u64), part_len, variance)
        })
        .collect();
    parts.concat()
}

/// All of `a b^T`. On a GPU by a kernel that does nothing but sum up in f64, of which the first,
/// the middle and the last row are compared with the oracle; on the CPU by the oracle.
pub(super) fn exact_product(
    stream: &Stream,
    shape: GemmShape,
    a: &[bf16],
    b: &[bf16],
) -> Result<Vec<f64>> {
    if !stream.device().is_cuda() {
        return Ok(product(a, b, shape.k as usize));
    }
    let c = exact_product_unchecked(stream, shape, a, &Buffer::from_slice(stream, b)?)?;
    let (n, k) = (shape.n as usize, shape.k as usize);
    let last = shape.m as usize - 1;
    for row in [0, last / 2, last] {
        let a_row = &a[row * k..][..k];
        let columns = b.par_chunks_exact(k).zip(&c[row * n..][..n]);
        let is_exact = columns.all(|(column, &got)| EXACT.holds(got, product(a_row, column, k)[0]));
        ensure!(is_exact, "the exact product of {shape:?} is wrong in row {row}");
    }
    Ok(c)
}

/// The same by that kernel on any device, of which no row is compared: for the many after one that was.
pub(super) fn exact_product_unchecked(
    stream: &Stream,
    shape: GemmShape,
    a: &[bf16],
    b: &Buffer<bf16>,
) -> Result<Vec<f64>> {
    let a = Buffer::from_slice(stream, a)?;
    let c = stream.device().alloc(shape.c_elements())?;
    multiply_exactly(stream, shape, &a, b, &c)?;
    Ok(stream.download(&c)?.into_par_iter().map(f64::from).collect())
}
