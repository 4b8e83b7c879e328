//! Pair `expert_gemm_fp8`: a product in fp8 with block scales for each expert, a block for each tile by
//! `mma` in f16, against persistent blocks by `wgmma` in e4m3.
//!
//! A pair of its own beside `expert_gemm`, and not shapes of that: its baseline is another kernel, over
//! the same elements and scales.

use std::borrow::Cow;

use anyhow::Result;
use cuda_std::float::E4m3;
use gpu_kernels::expert_gemm::reference::offsets;
use gpu_kernels::expert_gemm_fp8::contract::ExpertGemmFp8Shape;
use gpu_kernels::expert_gemm_fp8::reference::{
    DEVIATION, Operands, TOLERANCE, a_scales, b_scales, exact_bf16, row_values,
};
use gpu_kernels::token_unpack::SCALE_BLOCK;
use half::bf16;
use rayon::prelude::*;

use super::num_cold_inputs;
use super::product_bench::{Product, ProductBench, Products, random_in_parallel, upload_often};
use super::routed_rows::Routing::{self, Random, Uniform, Zipf};
use super::routed_rows::exact_products;
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::expert_gemm_fp8::{
    ExpertGemmFp8 as Kernel, ExpertGemmFp8Args, ExpertGemmFp8Variant,
};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "expert_gemm_fp8",
    about: "a product in fp8 (e4m3, scales of 128 columns) for each expert: a block for each tile by mma in \
        f16, against persistent blocks by the copy engine and wgmma in e4m3, sums promoted to f32",
    sides: ["mma in f16, tile by tile", "wgmma in e4m3"],
    rooms: &["expert_gemm_fp8"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = |routing: Routing, num_rows, num_experts, k, n| {
        let shape = ExpertGemmFp8Shape { num_rows, num_experts, n, k };
        let routed = match num_experts {
            1 => format!("{num_rows} rows"),
            _ => format!("{num_experts} x {} {}", num_rows / num_experts, routing.name()),
        };
        Shape::new(format!("{routed}, {k} -> {n}"), 1, move |devices, seed| {
            let rows_of = routing.rows_of(num_rows, num_experts, seed);
            Experts::bench(&devices[0], shape, rows_of, seed)
        })
    };
    match set {
        ShapeSet::SeedParity => Vec::new(),
        // Gate and up, then down, of 32 of DeepSeek-V3's experts, and a dense layer.
        ShapeSet::Real => vec![
            shape(Uniform, 8192, 32, 7168, 4096),
            shape(Random, 8192, 32, 7168, 4096),
            shape(Zipf, 8192, 32, 7168, 4096),
            shape(Uniform, 8192, 32, 2048, 7168),
            shape(Random, 8192, 32, 2048, 7168),
            shape(Zipf, 8192, 32, 2048, 7168),
            shape(Uniform, 512, 32, 7168, 4096),
            shape(Uniform, 512, 32, 2048, 7168),
            shape(Uniform, 4096, 1, 7168, 4096),
        ],
        ShapeSet::Tiny => {
            vec![shape(Random, 60, 5, 272, 136), shape(Zipf, 200, 4, 144, 40)]
        }
    }
}

/// Operands, the weights as often as calls must find them cold.
struct Experts {
    shape: ExpertGemmFp8Shape,
    rows_of: Vec<u32>,
    kernels: [Kernel; 2],
    host_operands: Operands,
    expert_offsets: Buffer<i32>,
    a: Buffer<E4m3>,
    a_scales: Buffer<f32>,
    bs: Vec<Buffer<E4m3>>,
    b_scales: Buffer<f32>,
}

impl Experts {
    fn bench(
        device: &Device,
        shape: ExpertGemmFp8Shape,
        rows_of: Vec<u32>,
        seed: u64,
    ) -> Result<ProductBench<Self>> {
        let stream = device.new_stream()?;
        let host_operands = Operands {
            a: elements(seed, shape.a_elements()),
            a_scales: a_scales(&shape, seed),
            b: elements(!seed, shape.b_elements()),
            b_scales: b_scales(&shape, seed),
        };
        let Operands { a, a_scales, b, b_scales } = &host_operands;
        let work = shape.work(&rows_of);
        let num_inputs = num_cold_inputs(device, work)?;
        let [baseline, grouped] = ExpertGemmFp8Variant::ALL;
        let products = Self {
            kernels: [
                Kernel::with_variant(&stream, shape, baseline)?,
                Kernel::with_variant(&stream, shape, grouped)?,
            ],
            expert_offsets: Buffer::from_slice(&stream, &offsets(&rows_of))?,
            a: Buffer::from_slice(&stream, a)?,
            a_scales: Buffer::from_slice(&stream, a_scales)?,
            bs: upload_often(&stream, num_inputs, b)?,
            b_scales: Buffer::from_slice(&stream, b_scales)?,
            host_operands,
            shape,
            rows_of,
        };
        let product = Product {
            stream,
            work,
            // Tensor cores do twice as many in fp8.
            bf16_flops: work.flops / 2,
            num_inputs,
            output: device.alloc(shape.c_elements())?,
            num_columns: shape.n,
            tolerance: TOLERANCE,
        };
        Ok(ProductBench::new(products, product))
    }

    /// Rows as they are meant, in bf16, of which `rows_together` have the same scales.
    fn exact_rows(&self, rows: &[E4m3], scales: &[f32], rows_together: usize) -> Vec<bf16> {
        let row_scales = self.shape.row_scales() as usize;
        let rows = rows.par_chunks_exact(self.shape.k as usize).enumerate();
        rows.flat_map_iter(|(row, elements)| {
            let scales = &scales[row / rows_together * row_scales..][..row_scales];
            exact_bf16(row_values(elements, scales))
        })
        .collect()
    }
}

/// Normal elements, drawn by all cores.
fn elements(seed: u64, len: usize) -> Vec<E4m3> {
    let values = random_in_parallel(seed, len, DEVIATION * DEVIATION);
    values.into_par_iter().map(|value| E4m3::from_f32(value.into())).collect()
}

impl Products for Experts {
    type Weight = E4m3;

    fn last_weights(&self) -> (&Buffer<E4m3>, usize) {
        (&self.bs[self.bs.len() - 1], self.shape.k as usize)
    }

    fn run(&self, stream: &Stream, variant: Variant, input: usize, c: &Buffer<bf16>) -> Result<()> {
        let args = ExpertGemmFp8Args {
            a: &self.a,
            a_scales: &self.a_scales,
            b: &self.bs[input],
            b_scales: &self.b_scales,
            expert_offsets: &self.expert_offsets,
            c,
        };
        Ok(self.kernels[variant as usize].run(stream, args)?)
    }

    fn oracle(&self, stream: &Stream) -> Result<Vec<f64>> {
        let ExpertGemmFp8Shape { num_experts, n, k, .. } = self.shape;
        let Operands { a, a_scales, b, b_scales } = &self.host_operands;
        let [elements, scales] = [b.len(), b_scales.len()].map(|len| len / num_experts as usize);
        let weights_of = |expert| {
            let b = &b[expert * elements..][..elements];
            let b_scales = &b_scales[expert * scales..][..scales];
            Cow::Owned(self.exact_rows(b, b_scales, SCALE_BLOCK as usize))
        };
        let a = self.exact_rows(a, a_scales, 1);
        exact_products(stream, [n, k], &self.rows_of, &a, weights_of)
    }
}
