//! Pair `shared_expert`: products by `mma` with the gate between them, against products by `wgmma`
//! with the gate in the first.

use anyhow::Result;
use gpu_kernels::contract::Work;
use gpu_kernels::gemm::reference::Tolerance;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::reference::{TOLERANCE, gate};
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{ProductBench, Products, exact_product, random_in_parallel};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::shared_expert::{
    SharedExpert as Expert, SharedExpertArgs, SharedExpertVariant,
};

/// The pair.
pub struct SharedExpert;

impl Pair for SharedExpert {
    fn name(&self) -> &'static str {
        "shared_expert"
    }

    fn about(&self) -> &'static str {
        "the expert that every token visits, SwiGLU: products by mma and the gate between them, \
         against products by wgmma, the gate in the first"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "mma, gate apart",
            Variant::Optimized => "wgmma",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        vec!["shared_expert", "gemm"]
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        let shape = |num_tokens, hidden, intermediate| {
            let shape = SharedExpertShape { num_tokens, hidden, intermediate };
            let name = format!("{num_tokens} tokens, {hidden} -> {intermediate}");
            Shape::new(name, 1, move |devices, seed| {
                Ok(ProductBench::new(OneExpert::new(&devices[0], shape, seed)?))
            })
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
}

/// Operands, the weights as often as calls must find them cold.
struct OneExpert {
    shape: SharedExpertShape,
    stream: Stream,
    experts: [Expert; 2],
    /// x, gate and up, down.
    host_operands: [Vec<bf16>; 3],
    x: Buffer<bf16>,
    weights: Vec<[Buffer<bf16>; 2]>,
    y: Buffer<bf16>,
}

impl OneExpert {
    fn new(device: &Device, shape: SharedExpertShape, seed: u64) -> Result<Self> {
        let stream = device.new_stream()?;
        let [first, second] = shape.products();
        let x = random_in_parallel(seed, shape.x_elements(), 1.0);
        let gate_up = random_in_parallel(!seed, first.b_elements(), 1.0 / f64::from(first.k));
        // h has a third of the variance of what it is the product of.
        let variance = 3.0 / f64::from(second.k);
        let down = random_in_parallel(seed.rotate_left(32), second.b_elements(), variance);
        let upload = |_| -> Result<[Buffer<bf16>; 2]> {
            Ok([Buffer::from_slice(&stream, &gate_up)?, Buffer::from_slice(&stream, &down)?])
        };
        let num_inputs = num_cold_inputs(device, shape.work())?;
        Ok(Self {
            experts: [
                Expert::with_variant(&stream, shape, SharedExpertVariant::Baseline)?,
                Expert::new(&stream, shape)?,
            ],
            weights: (0..num_inputs).map(upload).collect::<Result<_>>()?,
            x: Buffer::from_slice(&stream, &x)?,
            y: device.alloc(shape.x_elements())?,
            host_operands: [x, gate_up, down],
            shape,
            stream,
        })
    }
}

impl Products for OneExpert {
    type Weight = bf16;

    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn work(&self) -> Work {
        self.shape.work()
    }

    fn num_inputs(&self) -> usize {
        self.weights.len()
    }

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        let [_, down] = &self.weights[self.weights.len() - 1];
        (down, self.shape.intermediate as usize)
    }

    fn output(&self) -> &Buffer<bf16> {
        &self.y
    }

    fn num_columns(&self) -> usize {
        self.shape.hidden as usize
    }

    fn tolerance(&self) -> Tolerance {
        TOLERANCE
    }

    fn run(&self, variant: Variant, input: usize) -> Result<()> {
        let [gate_up, down] = &self.weights[input];
        let args = SharedExpertArgs { x: &self.x, gate_up, down, y: &self.y };
        Ok(self.experts[variant as usize].run(&self.stream, args)?)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let [x, gate_up, down] = &self.host_operands;
        let [first, second] = self.shape.products();
        let gates = exact_product(&self.stream, first, x, gate_up)?;
        let h = gate(&gates, self.shape.intermediate as usize);
        let h: Vec<bf16> = h.into_iter().map(bf16::from_f64).collect();
        exact_product(&self.stream, second, &h, down)
    }
}
