//! Pair `moe_topk`: the experts of each token, chosen by a block against by a warp.

use anyhow::{Context, Result, anyhow};
use gpu_kernels::contract::Work;
use gpu_kernels::moe_topk::contract::TopkShape;
use gpu_kernels::moe_topk::reference::{Case, Logits, TOLERANCE, check};
use half::bf16;
use rayon::prelude::*;

use super::num_cold_inputs;
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::HBM_READ;
use crate::harness::{
    Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant, stream_sampler,
};
use crate::kernels::moe_topk::{GatingElement, Topk, TopkArgs, TopkVariant};

/// Most sets of inputs: those of few tokens stay in a cache.
const MAX_INPUTS: usize = 1024;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "moe_topk",
    about: "scores, group-limited and plain selection of experts, weights: a block per token with a \
        reduction for each expert, against a warp per token with sorted lanes",
    sides: ["block per token", "warp per token"],
    rooms: &["moe_topk"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // The published chapter picks experts by a formula.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<f32>("DeepSeek-V3, 128 tokens", TopkShape::deepseek_v3(128)),
            shape::<f32>("DeepSeek-V3, 4096 tokens", TopkShape::deepseek_v3(4096)),
            shape::<f32>("softmax 4096 x 256, top-8", TopkShape::softmax(4096, 256, 8)),
            shape::<f32>("softmax 4096 x 60, top-4", TopkShape::softmax(4096, 60, 4)),
            shape::<bf16>("softmax 4096 x 512, top-10, bf16", TopkShape::softmax(4096, 512, 10)),
        ],
        ShapeSet::Tiny => vec![
            shape::<f32>("DeepSeek-V3, 9 tokens", TopkShape::deepseek_v3(9)),
            shape::<bf16>("softmax 10 x 60, top-4, bf16", TopkShape::softmax(10, 60, 4)),
        ],
    }
}

fn shape<T: Gating>(name: &str, shape: TopkShape) -> Shape {
    Shape::new(name, 1, move |devices, seed| TopkBench::<T>::new(&devices[0], shape, seed))
}

/// Logits as the pair draws them.
pub trait Gating: GatingElement + Send + Sync {
    /// Rounded to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Gating for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Gating for bf16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// A router's logits in device memory, as often as calls must find them cold.
pub struct TopkBench<T> {
    topk: Topk,
    stream: Stream,
    bias: Vec<f32>,
    inputs: Vec<Input<T>>,
    bias_buffer: Buffer<f32>,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
}

struct Input<T> {
    logits: Vec<f32>,
    gating_output: Buffer<T>,
}

impl<T: Gating> TopkBench<T> {
    /// Draws logits for a shape.
    ///
    /// # Errors
    /// Too little memory, a shape that the kernels do not take.
    pub fn new(device: &Device, shape: TopkShape, seed: u64) -> Result<Self> {
        let (topk, stream) = (Topk::new(shape)?, device.new_stream()?);
        let case = Case { name: "pair", shape };
        let num_inputs = num_cold_inputs(device, shape.work(size_of::<T>()))?.min(MAX_INPUTS);
        let input = |input: usize| {
            let seed = seed.wrapping_mul(MAX_INPUTS as u64).wrapping_add(input as u64);
            let (logits, _) = case.inputs(Logits::Spread, seed);
            let elements: Vec<T> = logits.into_iter().map(T::from_f32).collect();
            Ok(Input {
                gating_output: Buffer::from_slice(&stream, &elements)?,
                logits: elements.into_iter().map(T::to_f32).collect(),
            })
        };
        let (_, bias) = case.inputs(Logits::Spread, seed);
        Ok(Self {
            inputs: (0..num_inputs).map(input).collect::<Result<_>>()?,
            bias_buffer: Buffer::from_slice(&stream, &bias)?,
            topk_ids: device.alloc(shape.topk_elements())?,
            topk_weights: device.alloc(shape.topk_elements())?,
            topk,
            stream,
            bias,
        })
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Chooses for one set of logits.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: TopkVariant, input: usize) -> Result<()> {
        let args = TopkArgs {
            gating_output: &self.inputs[input].gating_output,
            bias: self.topk.shape().has_bias.then_some(&self.bias_buffer),
            topk_ids: &self.topk_ids,
            topk_weights: &self.topk_weights,
        };
        Ok(self.topk.run(&self.stream, variant, &args)?)
    }

    fn work(&self) -> Work {
        self.topk.shape().work(size_of::<T>())
    }
}

fn kernel(variant: Variant) -> TopkVariant {
    match variant {
        Variant::Baseline => TopkVariant::Baseline,
        Variant::Optimized => TopkVariant::Warp,
    }
}

impl<T: Gating> Prepared for TopkBench<T> {
    fn work(&self, _variant: Variant) -> Work {
        self.work()
    }

    fn demands(&self) -> Vec<Demand> {
        vec![Demand { ceiling: HBM_READ, amount: self.work().read_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(kernel(variant), input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let mut outputs = Vec::new();
        for input in 0..self.inputs.len() {
            self.stream.fill(&self.topk_ids, -1)?;
            self.stream.fill(&self.topk_weights, f32::NAN)?;
            self.run(kernel(variant), input)?;
            outputs.push((
                self.stream.download(&self.topk_ids)?,
                self.stream.download(&self.topk_weights)?,
            ));
        }
        outputs.par_iter().zip(&self.inputs).enumerate().try_for_each(
            |(i, ((ids, weights), input))| {
                check(self.topk.shape(), &input.logits, &self.bias, ids, weights)
                    .map_err(|off| anyhow!("inputs {i}, {variant}: {off}"))
            },
        )?;
        let num_ids = self.topk.shape().topk_elements();
        Ok(format!(
            "{num_ids} ids, which may swap within {TOLERANCE}, and weights within {TOLERANCE} of \
             f64, {} times",
            self.inputs.len()
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let input = self.inputs.last().context("no inputs")?;
        // The last token chooses among the last half of the experts, all alike. That they were not
        // chosen any more would show only if one of them was before.
        let num_experts = self.topk.shape().num_experts as usize;
        let values = vec![T::from_f32(50.0); num_experts.div_ceil(2)];
        let first = input.gating_output.len() - values.len();
        Ok(self.stream.upload(&values, input.gating_output.slice(first..))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrupted_input_is_noticed_whatever_the_seed() {
        let device = [Device::cpu()];
        for shape in shapes(ShapeSet::Tiny) {
            for seed in (0..32).chain([6_753_405_851_887_546_975]) {
                let mut prepared = shape.prepare(&device, seed).unwrap();
                prepared.corrupt().unwrap();
                for variant in Variant::BOTH {
                    assert!(prepared.verify(variant).is_err(), "{}, seed {seed}", shape.name);
                }
            }
        }
    }
}
