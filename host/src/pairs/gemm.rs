//! Pair `gemm`: a block for each tile by `cp.async` and `mma`, against the copy engine and `wgmma`.

use anyhow::Result;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::plan::GemmVariant;
use gpu_kernels::gemm::reference::Tolerance;
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{
    Product, ProductBench, Products, exact_product, random_in_parallel, upload_often,
};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::gemm::{Gemm as Kernel, GemmArgs};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "gemm",
    about: "products of dense matrices: a block for each tile by cp.async and mma, against persistent \
        blocks by the copy engine and wgmma, in equal shares of the weights for few tokens",
    sides: ["mma", "wgmma"],
    rooms: &["gemm"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = |m, n, k| {
        let shape = GemmShape { m, n, k };
        Shape::new(format!("{m} x {n} x {k}"), 1, move |devices, seed| {
            OneProduct::bench(&devices[0], shape, seed)
        })
    };
    match set {
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape(4096, 4096, 4096),
            shape(8192, 8192, 8192),
            shape(8192, 7168, 4096),
            shape(4000, 4104, 4104),
            shape(128, 4096, 7168),
            shape(16, 4096, 7168),
        ],
        ShapeSet::Tiny => vec![shape(40, 136, 72), shape(3, 264, 200)],
    }
}

/// Operands, the weights as often as calls must find them cold.
struct OneProduct {
    shape: GemmShape,
    kernels: [Kernel; 2],
    host_operands: [Vec<bf16>; 2],
    a: Buffer<bf16>,
    bs: Vec<Buffer<bf16>>,
}

impl OneProduct {
    fn bench(device: &Device, shape: GemmShape, seed: u64) -> Result<ProductBench<Self>> {
        let stream = device.new_stream()?;
        let a = random_in_parallel(seed, shape.a_elements(), 1.0);
        let b = random_in_parallel(!seed, shape.b_elements(), 1.0 / f64::from(shape.k));
        let work = shape.work();
        let num_inputs = num_cold_inputs(device, work)?;
        let products = Self {
            shape,
            kernels: [
                Kernel::with_variant(&stream, shape, GemmVariant::Baseline)?,
                Kernel::new(&stream, shape)?,
            ],
            a: Buffer::from_slice(&stream, &a)?,
            bs: upload_often(&stream, num_inputs, &b)?,
            host_operands: [a, b],
        };
        let product = Product {
            stream,
            work,
            bf16_flops: work.flops,
            num_inputs,
            output: device.alloc(shape.c_elements())?,
            num_columns: shape.n,
            tolerance: Tolerance::BF16,
        };
        Ok(ProductBench::new(products, product))
    }
}

impl Products for OneProduct {
    type Weight = bf16;

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        (&self.bs[self.bs.len() - 1], self.shape.k as usize)
    }

    fn run(&self, stream: &Stream, variant: Variant, input: usize, c: &Buffer<bf16>) -> Result<()> {
        let args = GemmArgs { a: &self.a, b: &self.bs[input], c };
        Ok(self.kernels[variant as usize].run(stream, args)?)
    }

    fn oracle(&self, stream: &Stream) -> Result<Vec<f64>> {
        let [a, b] = &self.host_operands;
        exact_product(stream, self.shape, a, b)
    }
}
