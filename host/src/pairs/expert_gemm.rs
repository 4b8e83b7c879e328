//! Pair `expert_gemm`: a block for each tile of an expert by `mma`, against persistent blocks that
//! deal an expert's tokens evenly.

use std::borrow::Cow;

use anyhow::Result;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::reference::offsets;
use gpu_kernels::gemm::reference::Tolerance;
use gpu_kernels::shared_expert::reference::{TOLERANCE, gate};
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{Product, ProductBench, Products, random_in_parallel, upload_often};
use super::routed_rows::Routing::{self, Random, Uniform, Zipf};
use super::routed_rows::exact_products;
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::expert_gemm::{ExpertGemm as Kernel, ExpertGemmArgs, ExpertGemmVariant};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "expert_gemm",
    about: "a product for each expert, of the tokens routed to it: a block for each tile by mma, against \
        persistent blocks by the copy engine and wgmma that deal an expert's tokens evenly",
    sides: ["mma, tile by tile", "wgmma, dealt evenly"],
    rooms: &["expert_gemm", "shared_expert"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
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

/// Operands, the weights as often as calls must find them cold.
struct Experts {
    shape: ExpertGemmShape,
    rows_of: Vec<u32>,
    kernels: [Kernel; 2],
    host_operands: [Vec<bf16>; 2],
    expert_offsets: Buffer<i32>,
    a: Buffer<bf16>,
    bs: Vec<Buffer<bf16>>,
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
        let products = Self {
            kernels: [
                Kernel::with_variant(&stream, shape, ExpertGemmVariant::Baseline)?,
                Kernel::with_variant(&stream, shape, ExpertGemmVariant::Grouped)?,
            ],
            expert_offsets: Buffer::from_slice(&stream, &offsets(&rows_of))?,
            a: Buffer::from_slice(&stream, &a)?,
            bs: upload_often(&stream, num_inputs, &b)?,
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
}

impl Products for Experts {
    type Weight = bf16;

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        (&self.bs[self.bs.len() - 1], self.shape.k as usize)
    }

    fn run(&self, stream: &Stream, variant: Variant, input: usize, c: &Buffer<bf16>) -> Result<()> {
        let (a, b, expert_offsets) = (&self.a, &self.bs[input], &self.expert_offsets);
        let args = ExpertGemmArgs { a, b, expert_offsets, c };
        Ok(self.kernels[variant as usize].run(stream, args)?)
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
