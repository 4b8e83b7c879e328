//! Decode steps of a model, issued in two ways: sequences of one length, greedy, from seeded weights.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use gpu_kernels::contract::Work;

use crate::device::Device;
use crate::harness::ceilings::HBM_READ;
use crate::harness::results::Metric;
use crate::harness::{Batch, Demand, Prepared, Sampler, Shape, Variant};
use crate::kv::Location;
use crate::model::bound::decode_bytes;
use crate::model::config::{Experts, FeedForward};
use crate::model::engine::{Engine, RequestId, Sampling, Step, StepSequence};
use crate::model::reference::Reference;
use crate::model::weights::Seeded;
use crate::model::{DeviceEngine, EngineOptions, Issue, ModelConfig, Transformer};

/// Tokens of a page.
const PAGE_SIZE: usize = 16;
/// Tokens of prompts that a step takes.
const CHUNK_TOKENS: usize = 8192;
/// Tokens of a prompt that lie in the last chunk but are not the last: so that it is no decode step.
const LEAST_CHUNK: usize = 2;
/// Steps of which [`verify`](Prepared::verify) looks at every token.
const NUM_CHECKED: usize = 6;
/// Weights up to which the oracle is in f64.
const MAX_F64_BYTES: u64 = 1 << 20;
/// How far the logit of a chosen token may be below the largest one, over the deviation of its row: an
/// expert chosen otherwise where two are all but equal moves logits by that much. Of 256 tokens it is two or
/// three that are as near to the likeliest one.
const TOLERANCE: f64 = 0.5;

/// What is generated, and how.
#[derive(Clone, Debug)]
struct GenerationCase {
    /// The model, its weights from the run's seed.
    config: ModelConfig,
    /// Sequences.
    batch: usize,
    /// Tokens of each prompt: whole pages.
    prompt_tokens: usize,
    /// Tokens that each gets, until all begin again behind their prompts.
    new_tokens: usize,
    /// How the baseline issues a step, and how the optimized side does.
    issues: [Issue; 2],
}

/// Shapes of one GPU whose sides issue steps so: of a model with this name, so many sequences, tokens
/// of each prompt and behind it.
pub(super) fn shapes_of(
    issues: [Issue; 2],
) -> impl Fn(&str, ModelConfig, usize, [usize; 2]) -> Shape {
    move |model, config, batch, [prompt_tokens, new_tokens]| {
        let name = format!("{model}, {batch} x ({prompt_tokens} + {new_tokens})");
        let case = GenerationCase { config, batch, prompt_tokens, new_tokens, issues };
        Shape::new(name, 1, move |devices, seed| {
            GenerationBench::new(case.clone(), &devices[0], seed)
        })
    }
}

/// A model, prompts whose K and V are in pages, and where each side is. A call is a decode step.
struct GenerationBench {
    case: GenerationCase,
    engine: RefCell<DeviceEngine>,
    /// Prompts, and the token after each.
    sequences: Vec<Vec<u32>>,
    /// The token after the prompt that a side begins with: those of the sequences, unless corrupted.
    first_tokens: Vec<u32>,
    exact: Option<Reference>,
    sides: RefCell<[Side; 2]>,
}

/// Where a side is.
#[derive(Clone, Default)]
struct Side {
    /// Tokens behind the prompts, of each sequence.
    tokens: Vec<Vec<u32>>,
    /// Of the steps that were sampled.
    times: Times,
}

/// Microseconds of steps, and those of them between the first kernel and the end of the last.
#[derive(Clone, Copy, Default)]
struct Times {
    step_us: f64,
    device_us: f64,
    num_steps: usize,
}

impl GenerationBench {
    /// Loads the model and computes the prompts.
    fn new(case: GenerationCase, device: &Device, seed: u64) -> Result<Self> {
        let GenerationCase { config, batch, prompt_tokens, new_tokens, .. } = &case;
        ensure!(prompt_tokens.is_multiple_of(PAGE_SIZE), "prompts are whole pages");
        let stream = Arc::new(device.new_stream()?);
        let weights = Seeded::new(seed, config.num_layers());
        let num_max_tokens = prompt_tokens + new_tokens + 1;
        let exact = match decode_bytes(config, 0, num_experts(config).into()) < MAX_F64_BYTES {
            true => Some(Reference::new(config, &weights)?),
            false => None,
        };
        let quiet = &mut |_| {};
        let model =
            Transformer::load(&stream, config.clone(), &weights, num_max_tokens as u32, quiet)?;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut prompt = || (0..*prompt_tokens).map(|_| rng.u32(..config.vocab_size)).collect();
        let sequences: Vec<Vec<u32>> = (0..*batch).map(|_| prompt()).collect();
        let options = EngineOptions {
            num_max_sequences: *batch,
            num_max_tokens_per_step: CHUNK_TOKENS.max(*batch * LEAST_CHUNK),
            page_size: PAGE_SIZE as u32,
            device_pages: batch * (case.prompt_pages() + Variant::BOTH.len() * case.own_pages()),
            host_pages: 0,
            uses_graphs: true,
        };
        let mut bench = Self {
            case,
            engine: RefCell::new(DeviceEngine::new(stream, model, options)?),
            first_tokens: Vec::new(),
            sequences,
            exact,
            sides: RefCell::default(),
        };
        for sequence in 0..bench.sequences.len() {
            let first = bench.prefill(sequence)?;
            bench.sequences[sequence].push(first);
            bench.first_tokens.push(first);
        }
        Ok(bench)
    }

    /// Computes a prompt; the token after it.
    fn prefill(&self, sequence: usize) -> Result<u32> {
        let prompt = &self.sequences[sequence];
        let mut token = None;
        for start in (0..prompt.len()).step_by(CHUNK_TOKENS) {
            let end = prompt.len().min(start + CHUNK_TOKENS);
            let chunk = self.part(sequence, Variant::Baseline, prompt[..end].to_vec(), start);
            let sampling = (end == prompt.len()).then_some(Sampling::GREEDY);
            token = self.run(vec![StepSequence { sampling, ..chunk }])?.pop();
        }
        token.context("a prompt of at least a token")
    }

    /// A sequence's part in a step: `tokens` are all of it, of which `num_cached` are in pages.
    fn part(
        &self,
        sequence: usize,
        variant: Variant,
        mut tokens: Vec<u32>,
        num_cached: usize,
    ) -> StepSequence {
        let num_pages = tokens.len().div_ceil(PAGE_SIZE);
        StepSequence {
            request: RequestId(sequence as u64),
            tokens: tokens.split_off(num_cached),
            num_cached_tokens: num_cached,
            pages: self.case.pages(sequence, variant).take(num_pages).collect(),
            sampling: Some(Sampling::GREEDY),
        }
    }

    fn run(&self, sequences: Vec<StepSequence>) -> Result<Vec<u32>> {
        let answers = self.engine.borrow_mut().step(&Step { sequences })?;
        Ok(answers.into_iter().map(|answer| answer.token).collect())
    }

    /// The next token of each sequence.
    fn step(&self, variant: Variant) -> Result<()> {
        let mut sides = self.sides.borrow_mut();
        let side = &mut sides[variant as usize];
        if side.tokens.is_empty() || side.tokens[0].len() > self.case.new_tokens {
            side.tokens = self.first_tokens.iter().map(|&first| vec![first]).collect();
        }
        let prompt_tokens = self.case.prompt_tokens;
        let parts = side.tokens.iter().enumerate().map(|(sequence, tokens)| {
            let all = [&self.sequences[sequence][..prompt_tokens], tokens].concat();
            let num_cached = all.len() - 1;
            self.part(sequence, variant, all, num_cached)
        });
        let parts = parts.collect();
        self.engine.borrow_mut().issue_as(self.case.issues[variant as usize]);
        let tokens = self.run(parts)?;
        side.tokens.iter_mut().zip(tokens).for_each(|(all, token)| all.push(token));
        Ok(())
    }

    /// Microseconds of the next step.
    fn timed_step(&self, variant: Variant) -> Result<f64> {
        let started = Instant::now();
        self.step(variant)?;
        let us = 1e6 * started.elapsed().as_secs_f64();
        let times = &mut self.sides.borrow_mut()[variant as usize].times;
        times.step_us += us;
        times.device_us += self.engine.borrow().decode_us()?;
        times.num_steps += 1;
        Ok(us)
    }

    /// Logits after the last of these tokens behind a prompt, by another way than a side's.
    fn logits(&self, sequence: usize, tokens: &[u32]) -> Result<Vec<f64>> {
        let all = [&self.sequences[sequence][..self.case.prompt_tokens], tokens].concat();
        if let Some(exact) = &self.exact {
            return exact.logits(&all).pop().context("a token at least");
        }
        // As the end of a prompt. What it writes is what was there, or rounded otherwise.
        let num_cached = all.len() - LEAST_CHUNK;
        self.engine.borrow_mut().keep_logits();
        self.run(vec![self.part(sequence, Variant::Optimized, all, num_cached)])?;
        let mut engine = self.engine.borrow_mut();
        engine.leave_logits();
        Ok(engine.logits().iter().map(|&logit| f64::from(logit)).collect())
    }

    fn check_token(&self, sequence: usize, before: &[u32], token: u32) -> Result<()> {
        let logits = self.logits(sequence, before)?;
        let (num, largest) = (logits.len() as f64, logits.iter().copied().fold(f64::MIN, f64::max));
        let mean = logits.iter().sum::<f64>() / num;
        let variance = logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / num;
        let off = (largest - logits[token as usize]) / variance.sqrt();
        ensure!(
            off <= TOLERANCE,
            "sequence {sequence}, token {}: {token} is {off:.3} deviations less likely than another",
            before.len()
        );
        Ok(())
    }
}

impl GenerationCase {
    fn prompt_pages(&self) -> usize {
        self.prompt_tokens / PAGE_SIZE
    }

    /// Pages that a side has for itself.
    fn own_pages(&self) -> usize {
        (self.new_tokens + 1).div_ceil(PAGE_SIZE)
    }

    /// Pages of a sequence: those of its prompt serve both sides.
    fn pages(&self, sequence: usize, variant: Variant) -> impl Iterator<Item = Location> {
        let (shared, own) = (self.prompt_pages(), self.own_pages());
        let first_shared = sequence * shared;
        let first_own = self.batch * shared + (2 * sequence + variant as usize) * own;
        let slots = (first_shared..first_shared + shared).chain(first_own..first_own + own);
        slots.map(|slot| Location { rank: 0, slot: slot as u32 })
    }

    fn bytes(&self) -> u64 {
        let num_tokens = self.batch * (self.prompt_tokens + self.new_tokens / 2);
        // Of experts chosen at random.
        let num_read = self.config.feed_forward.iter().find_map(|layer| match *layer {
            FeedForward::Dense { .. } => None,
            FeedForward::Experts(Experts { num_experts, top_k, .. }) => {
                let missed = 1.0 - f64::from(top_k) / f64::from(num_experts);
                Some(f64::from(num_experts) * (1.0 - missed.powi(self.batch as i32)))
            }
        });
        decode_bytes(&self.config, num_tokens as u64, num_read.unwrap_or(0.0).round() as u64)
    }
}

fn num_experts(config: &ModelConfig) -> u32 {
    let of_layer = |layer: &FeedForward| match *layer {
        FeedForward::Dense { .. } => 0,
        FeedForward::Experts(experts) => experts.num_experts,
    };
    config.feed_forward.iter().map(of_layer).max().unwrap_or(0)
}

impl Prepared for GenerationBench {
    fn work(&self, _variant: Variant) -> Work {
        let read_bytes = self.case.bytes();
        // A multiplication and a sum for each weight of two bytes, for each sequence.
        Work { read_bytes, written_bytes: 0, flops: self.case.batch as u64 * read_bytes }
    }

    fn demands(&self) -> Vec<Demand> {
        vec![Demand { ceiling: HBM_READ, amount: self.case.bytes() }]
    }

    fn num_inputs(&self) -> usize {
        1
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        Ok(Box::new(move || {
            let us = (0..batch.num_calls).map(|_| self.timed_step(variant)).sum::<Result<f64>>()?;
            Ok(us / batch.num_calls as f64)
        }))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        self.sides.borrow_mut()[variant as usize].tokens.clear();
        let num_steps = NUM_CHECKED.min(self.case.new_tokens);
        (0..num_steps).try_for_each(|_| self.step(variant))?;
        let tokens = std::mem::take(&mut self.sides.borrow_mut()[variant as usize].tokens);
        for (sequence, tokens) in tokens.iter().enumerate() {
            // The oracle goes on from its own first token.
            let mut before = Vec::new();
            for (at, &token) in tokens.iter().enumerate() {
                self.check_token(sequence, &before, token)
                    .map_err(|off| anyhow!("{variant}: {off}"))?;
                let first = self.sequences[sequence].last().copied();
                before.push(first.filter(|_| at == 0).unwrap_or(token));
            }
        }
        let oracle = if self.exact.is_some() { "f64" } else { "the kernels for prompts" };
        Ok(format!(
            "{num_steps} tokens of {} sequences are as likely as any, by {oracle}, within {TOLERANCE} \
             deviations",
            tokens.len()
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let first = self.first_tokens.last_mut().context("a sequence")?;
        *first = (*first + 1) % self.case.config.vocab_size;
        Ok(())
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let Times { step_us, device_us, num_steps } = self.sides.borrow()[variant as usize].times;
        let num_steps = num_steps.max(1) as f64;
        let tokens_per_s = 1e6 * self.case.batch as f64 * num_steps / step_us;
        vec![
            Metric::new("tokens/s", tokens_per_s, ""),
            Metric::new("first to last kernel", device_us / num_steps / 1e3, "ms"),
            Metric::new("between steps", (step_us - device_us) / num_steps / 1e3, "ms"),
        ]
    }
}
