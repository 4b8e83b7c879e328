//! Pair `expert_gemm`: a block for each tile of an expert by `mma`, against persistent blocks that
//! deal an expert's tokens evenly.

use std::borrow::Cow;

use anyhow::Result;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::reference::offsets;
use gpu_kernels::gemm::reference::Tolerance;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::reference::{TOLERANCE, gate};
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{Product, ProductBench, Products, random_in_parallel, upload_often};
use super::routed_rows::Routing::{self, Random, Uniform, Zipf};
use super::routed_rows::exact_products;
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::expert_gemm::{ExpertGemm as Kernel, ExpertGemmArgs, ExpertGemmVariant};
use crate::kernels::shared_expert::silu_mul;

/// The pair.
pub struct ExpertGemm;

impl Pair for ExpertGemm {
    fn name(&self) -> &'static str {
        "expert_gemm"
    }

    fn about(&self) -> &'static str {
        "a product for each expert, of the tokens routed to it: a block for each tile by mma, against \
         persistent blocks by the copy engine and wgmma that deal an expert's tokens evenly"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "mma, tile by tile",
            Variant::Optimized => "wgmma, dealt evenly",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        vec!["expert_gemm", "shared_expert"]
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        let shape = |routing: Routing, num_rows, num_experts, k, n, is_gated| {
            let shape = ExpertGemmShape { num_rows, num_experts, n, k, is_gated };
            let gated = if is_gated { ", gated" } else { "" };
            let mean = num_rows / num_experts;
            let name = format!("{num_experts} x {mean} {}, {k} -> {n}{gated}", routing.name());
            Shape::new(name, 1, move |devices, seed| {
                let rows_of = routing.rows_of(num_rows, num_experts, seed);
                Experts::bench(&devices[0], shape, rows_of, seed)
            })
        };
        match set {
            ShapeSet::SeedParity => Vec::new(),
            // Gate and up, then down, of 32 of DeepSeek-V3's experts.
            ShapeSet::Real => vec![
                shape(Uniform, 8192, 32, 7168, 2048, true),
                shape(Uniform, 8192, 32, 7168, 4096, false),
                shape(Random, 8192, 32, 7168, 4096, false),
                shape(Zipf, 8192, 32, 7168, 4096, false),
                shape(Uniform, 8192, 32, 2048, 7168, false),
                shape(Random, 8192, 32, 2048, 7168, false),
                shape(Zipf, 8192, 32, 2048, 7168, false),
                shape(Uniform, 512, 32, 7168, 4096, false),
                shape(Uniform, 512, 32, 2048, 7168, false),
            ],
            ShapeSet::Tiny => {
                vec![shape(Random, 60, 5, 72, 136, true), shape(Zipf, 200, 4, 72, 40, false)]
            }
        }
    }
}

/// Operands, the weights as often as calls must find them cold.
struct Experts {
    shape: ExpertGemmShape,
    rows_of: Vec<u32>,
    baseline: Kernel,
    grouped: Kernel,
    host_operands: [Vec<bf16>; 2],
    expert_offsets: Buffer<i32>,
    a: Buffer<bf16>,
    bs: Vec<Buffer<bf16>>,
    /// Of the baseline, where there is a gate.
    gate_up: Buffer<bf16>,
}

impl Experts {
    fn bench(
        device: &Device,
        shape: ExpertGemmShape,
        rows_of: Vec<u32>,
        seed: u64,
    ) -> Result<ProductBench<Self>> {
        let stream = device.new_stream()?;
        let a = random_in_parallel(seed, shape.a_elements(), 1.0);
        let b = random_in_parallel(!seed, shape.b_elements(), 1.0 / f64::from(shape.k));
        let work = shape.work(&rows_of);
        let num_inputs = num_cold_inputs(device, work)?;
        let without_gate = ExpertGemmShape { n: shape.b_rows(), is_gated: false, ..shape };
        let gate_up_len = if shape.is_gated { without_gate.c_elements() } else { 0 };
        let products = Self {
            baseline: Kernel::with_variant(&stream, without_gate, ExpertGemmVariant::Baseline)?,
            grouped: Kernel::with_variant(&stream, shape, ExpertGemmVariant::Grouped)?,
            expert_offsets: Buffer::from_slice(&stream, &offsets(&rows_of))?,
            a: Buffer::from_slice(&stream, &a)?,
            bs: upload_often(&stream, num_inputs, &b)?,
            gate_up: device.alloc(gate_up_len)?,
            host_operands: [a, b],
            shape,
            rows_of,
        };
        let product = Product {
            stream,
            work,
            bf16_flops: work.flops,
            num_inputs,
            output: device.alloc(shape.c_elements())?,
            num_columns: shape.n,
            tolerance: if shape.is_gated { TOLERANCE } else { Tolerance::BF16 },
        };
        Ok(ProductBench::new(products, product))
    }

    /// The first product and the gate, apart from each other.
    fn run_baseline(&self, stream: &Stream, args: ExpertGemmArgs<'_>) -> Result<()> {
        if !self.shape.is_gated {
            return Ok(self.baseline.run(stream, args)?);
        }
        self.baseline.run(stream, ExpertGemmArgs { c: &self.gate_up, ..args })?;
        let ExpertGemmShape { num_rows, n, k, .. } = self.shape;
        let gate = SharedExpertShape { num_tokens: num_rows, hidden: k, intermediate: n };
        Ok(silu_mul(stream, gate, &self.gate_up, args.c)?)
    }
}

impl Products for Experts {
    type Weight = bf16;

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        (&self.bs[self.bs.len() - 1], self.shape.k as usize)
    }

    fn run(&self, stream: &Stream, variant: Variant, input: usize, c: &Buffer<bf16>) -> Result<()> {
        let (a, b, expert_offsets) = (&self.a, &self.bs[input], &self.expert_offsets);
        let args = ExpertGemmArgs { a, b, expert_offsets, c };
        match variant {
            Variant::Baseline => self.run_baseline(stream, args),
            Variant::Optimized => Ok(self.grouped.run(stream, args)?),
        }
    }

    fn oracle(&self, stream: &Stream) -> Result<Vec<f64>> {
        let [a, b] = &self.host_operands;
        let (n, k) = (self.shape.b_rows(), self.shape.k);
        let len = n as usize * k as usize;
        let weights_of = |expert| Cow::Borrowed(&b[expert * len..][..len]);
        let c = exact_products(stream, [n, k], &self.rows_of, a, weights_of)?;
        Ok(if self.shape.is_gated { gate(&c, self.shape.n as usize) } else { c })
    }
}
