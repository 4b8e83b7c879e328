//! Pair `sampling`: tokens drawn from logits, by a block per request against several.

use anyhow::{Context, Result, anyhow};
use gpu_kernels::contract::Work;
use gpu_kernels::sampling::contract::SamplingShape;
use gpu_kernels::sampling::reference::{Logits, TOLERANCE, check, logits};
use half::bf16;
use rayon::prelude::*;

use super::moe_topk::Gating;
use super::num_cold_inputs;
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::HBM_READ;
use crate::harness::{
    Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant, stream_sampler,
};
use crate::kernels::sampling::{
    ChooseArgs, LogitElement, Sampler as TokenSampler, SamplingRule, SamplingVariant,
};

/// Most sets of inputs: the logits of few requests stay in a cache, as a product leaves them.
const MAX_INPUTS: usize = 8;
/// Tokens of Qwen's vocabulary.
const VOCAB_SIZE: u32 = 151_936;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "sampling",
    about: "tokens by temperature, top-k and top-p: a block per request that bisects for its limits, \
        against several blocks with slices in shared memory and two histograms for a limit",
    sides: ["block per request", "slices"],
    rooms: &["sampling"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let greedy = SamplingRule::GREEDY;
    let drawn = SamplingRule { temperature: 0.8, ..greedy };
    let (top_k, top_p) =
        (SamplingRule { top_k: 50, ..drawn }, SamplingRule { top_p: 0.9, ..drawn });
    let both = SamplingRule { top_p: 0.9, ..top_k };
    match set {
        // The published chapter takes no token.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<bf16>("1 x 151936, bf16, greedy", 1, VOCAB_SIZE, greedy),
            shape::<bf16>("1 x 151936, bf16, top-p", 1, VOCAB_SIZE, top_p),
            shape::<bf16>("32 x 151936, bf16, greedy", 32, VOCAB_SIZE, greedy),
            shape::<bf16>("32 x 151936, bf16, temperature", 32, VOCAB_SIZE, drawn),
            shape::<bf16>("32 x 151936, bf16, top-p", 32, VOCAB_SIZE, top_p),
            shape::<bf16>("32 x 151936, bf16, top-k, top-p", 32, VOCAB_SIZE, both),
            shape::<f32>("32 x 151936, f32, top-p", 32, VOCAB_SIZE, top_p),
            shape::<bf16>("128 x 151936, bf16, top-p", 128, VOCAB_SIZE, top_p),
        ],
        ShapeSet::Tiny => vec![
            shape::<bf16>("2 x 9000, bf16, top-k, top-p", 2, 9000, both),
            shape::<f32>("3 x 1000, f32, temperature", 3, 1000, drawn),
        ],
    }
}

fn shape<T: Gating + LogitElement>(
    name: &str,
    batch: u32,
    vocab_size: u32,
    rule: SamplingRule,
) -> Shape {
    let shape = SamplingShape { batch, vocab_size };
    Shape::new(name, 1, move |devices, seed| {
        SamplingBench::<T>::new(&devices[0], shape, rule, seed)
    })
}

/// Logits in device memory, as often as calls must find them cold.
struct SamplingBench<T> {
    shape: SamplingShape,
    rules: Vec<SamplingRule>,
    stream: Stream,
    samplers: [TokenSampler<T>; 2],
    inputs: Vec<Input<T>>,
    rule_buffer: Buffer<SamplingRule>,
    token_ids: Buffer<i32>,
    logprobs: Buffer<f32>,
}

struct Input<T> {
    values: Vec<f32>,
    logits: Buffer<T>,
}

impl<T: Gating + LogitElement> SamplingBench<T> {
    fn new(device: &Device, shape: SamplingShape, rule: SamplingRule, seed: u64) -> Result<Self> {
        let stream = device.new_stream()?;
        let num_inputs = num_cold_inputs(device, shape.work(size_of::<T>()))?.min(MAX_INPUTS);
        let input = |input: usize| -> Result<Input<T>> {
            let values = logits(&shape, Logits::Spread, seed + input as u64);
            let elements: Vec<T> = values.into_iter().map(T::from_f32).collect();
            Ok(Input {
                logits: Buffer::from_slice(&stream, &elements)?,
                values: elements.into_iter().map(T::to_f32).collect(),
            })
        };
        let rules: Vec<SamplingRule> =
            (0..shape.batch).map(|position| SamplingRule { seed, position, ..rule }).collect();
        let sampler = |variant| TokenSampler::with_variant(device, shape, variant);
        Ok(Self {
            samplers: [sampler(SamplingVariant::Row)?, sampler(SamplingVariant::Split)?],
            inputs: (0..num_inputs).map(input).collect::<Result<_>>()?,
            rule_buffer: Buffer::from_slice(&stream, &rules)?,
            token_ids: device.alloc(shape.batch as usize)?,
            logprobs: device.alloc(shape.batch as usize)?,
            shape,
            rules,
            stream,
        })
    }

    fn run(&self, variant: Variant, input: usize) -> Result<()> {
        let [row, split] = &self.samplers;
        let sampler = match variant {
            Variant::Baseline => row,
            Variant::Optimized => split,
        };
        let args = ChooseArgs {
            logits: &self.inputs[input].logits,
            rules: &self.rule_buffer,
            token_ids: &self.token_ids,
            logprobs: &self.logprobs,
        };
        Ok(sampler.choose(&self.stream, args)?)
    }
}

impl<T: Gating + LogitElement> Prepared for SamplingBench<T> {
    fn work(&self, _variant: Variant) -> Work {
        self.shape.work(size_of::<T>())
    }

    fn demands(&self) -> Vec<Demand> {
        let amount = self.shape.work(size_of::<T>()).read_bytes;
        vec![Demand { ceiling: HBM_READ, amount }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(variant, input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let one = SamplingShape { batch: 1, ..self.shape };
        for (i, Input { values, .. }) in self.inputs.iter().enumerate() {
            self.stream.fill(&self.token_ids, -7)?;
            self.stream.fill(&self.logprobs, f32::NAN)?;
            self.run(variant, i)?;
            let token_ids = self.stream.download(&self.token_ids)?;
            let logprobs = self.stream.download(&self.logprobs)?;
            let rows = values.par_chunks(self.shape.vocab_size as usize).enumerate();
            rows.try_for_each(|(b, row)| {
                let of = b..b + 1;
                let (rule, id) = (&self.rules[of.clone()], &token_ids[of.clone()]);
                check(&one, row, rule, id, &logprobs[of])
                    .map_err(|off| anyhow!("inputs {i}, {variant}, row {b}: {off}"))
            })?;
        }
        Ok(format!(
            "{} tokens are those that f64 draws, and logprobs within {TOLERANCE}, {} times",
            self.shape.batch,
            self.inputs.len()
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let Input { logits, .. } = self.inputs.last().context("no inputs")?;
        let last = logits.slice(logits.len() - 1..);
        Ok(self.stream.fill(last, T::from_f32(1e3))?)
    }
}
