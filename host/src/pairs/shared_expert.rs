//! Pair `shared_expert`: products by `mma` with the gate between them, against products by `wgmma`
//! with the gate in the first.

use anyhow::Result;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::reference::{TOLERANCE, gate};
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{
    Product, ProductBench, Products, exact_product, random_in_parallel, upload_often,
};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::shared_expert::{
    SharedExpert as Expert, SharedExpertArgs, SharedExpertVariant,
};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "shared_expert",
    about: "the expert that every token visits, SwiGLU: products by mma and the gate between them, \
        against products by wgmma, the gate in the first",
    sides: ["mma, gate apart", "wgmma"],
    rooms: &["shared_expert", "gemm"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = |num_tokens, hidden, intermediate| {
        let shape = SharedExpertShape { num_tokens, hidden, intermediate };
        let name = format!("{num_tokens} tokens, {hidden} -> {intermediate}");
        Shape::new(name, 1, move |devices, seed| OneExpert::bench(&devices[0], shape, seed))
    };
    match set {
        ShapeSet::SeedParity => Vec::new(),
        // The shared expert of DeepSeek-V3, and of Qwen1.5-MoE.
        ShapeSet::Real => vec![
            shape(4096, 7168, 2048),
            shape(128, 7168, 2048),
            shape(16, 7168, 2048),
            shape(4096, 2048, 5632),
        ],
        ShapeSet::Tiny => vec![shape(40, 72, 136), shape(3, 136, 64)],
    }
}

/// Operands, the weights as often as calls must find them cold.
struct OneExpert {
    shape: SharedExpertShape,
    experts: [Expert; 2],
    /// x, gate and up, down.
    host_operands: [Vec<bf16>; 3],
    x: Buffer<bf16>,
    gate_ups: Vec<Buffer<bf16>>,
    downs: Vec<Buffer<bf16>>,
}

impl OneExpert {
    fn bench(device: &Device, shape: SharedExpertShape, seed: u64) -> Result<ProductBench<Self>> {
        let stream = device.new_stream()?;
        let [first, second] = shape.products();
        let x = random_in_parallel(seed, shape.x_elements(), 1.0);
        let gate_up = random_in_parallel(!seed, first.b_elements(), 1.0 / f64::from(first.k));
        // h has a third of the variance of what it is the product of.
        let variance = 3.0 / f64::from(second.k);
        let down = random_in_parallel(seed.rotate_left(32), second.b_elements(), variance);
        let work = shape.work();
        let num_inputs = num_cold_inputs(device, work)?;
        let products = Self {
            shape,
            experts: [
                Expert::with_variant(&stream, shape, SharedExpertVariant::Baseline)?,
                Expert::new(&stream, shape)?,
            ],
            x: Buffer::from_slice(&stream, &x)?,
            gate_ups: upload_often(&stream, num_inputs, &gate_up)?,
            downs: upload_often(&stream, num_inputs, &down)?,
            host_operands: [x, gate_up, down],
        };
        let product = Product {
            stream,
            work,
            bf16_flops: work.flops,
            num_inputs,
            output: device.alloc(shape.x_elements())?,
            num_columns: shape.hidden,
            tolerance: TOLERANCE,
        };
        Ok(ProductBench::new(products, product))
    }
}

impl Products for OneExpert {
    type Weight = bf16;

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        (&self.downs[self.downs.len() - 1], self.shape.intermediate as usize)
    }

    fn run(&self, stream: &Stream, variant: Variant, input: usize, y: &Buffer<bf16>) -> Result<()> {
        let (gate_up, down) = (&self.gate_ups[input], &self.downs[input]);
        let args = SharedExpertArgs { x: &self.x, gate_up, down, y };
        Ok(self.experts[variant as usize].run(stream, args)?)
    }

    fn oracle(&self, stream: &Stream) -> Result<Vec<f64>> {
        let [x, gate_up, down] = &self.host_operands;
        let [first, second] = self.shape.products();
        let gates = exact_product(stream, first, x, gate_up)?;
        let h = gate(&gates, self.shape.intermediate as usize);
        let h: Vec<bf16> = h.into_iter().map(bf16::from_f64).collect();
        exact_product(stream, second, &h, down)
    }
}
