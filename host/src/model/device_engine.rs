//! Runs steps of a transformer on a device.
//!
//! A step whose sequences all have one token is a decode step: its kernels were captured into a graph
//! when a batch of that size came first, and page tables and lengths change in place. Any other step
//! is issued kernel by kernel, prompts and decode steps mixed, its attention by the kernels of
//! `paged_prefill`.
//!
//! Launchers and memory are made for a number of tokens and sequences, and are soon there for every
//! size: a step is filled up to one of few, with sequences of nobody in pages of nobody.

use std::sync::Arc;
use std::time::Instant;

use gpu_kernels::kv_append::contract::{AppendLists, AppendShape};
use gpu_kernels::paged_attention::contract::PageLists;
use gpu_kernels::paged_prefill::contract::PrefillShape;
use half::bf16;

use super::decode_step::{Chosen, DecodeStep, Issue, StepInputs, rope, sm_scale};
use super::engine::{
    Engine, EngineError, EngineLimits, KvPages, RequestId, Sampled, Sampling, Step, StepSequence,
};
use super::pages::LayeredKv;
use super::pass::{Attention, Pass, PassShape};
use super::transformer::Transformer;
use super::{ModelError, step_check};
use crate::device::{Device, Event, Stream};
use crate::kernels::kv_append::Append;
use crate::kernels::paged_prefill::{Prefill, PrefillVariant};
use crate::kernels::sampling::SamplingRule;
use crate::kv::Location;

/// Passes that are kept for steps of the same size.
const NUM_KEPT_PASSES: usize = 32;
/// The first token of most vocabularies, for sequences of nobody.
const FILLER: u32 = 0;

/// How much an engine takes at once, and how it decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences of a step.
    pub num_max_sequences: usize,
    /// New tokens of a step.
    pub num_max_tokens_per_step: usize,
    /// Tokens of a page.
    pub page_size: u32,
    /// Pages in the device's memory.
    pub device_pages: usize,
    /// Pages in pinned host memory.
    pub host_pages: usize,
    /// Whether decode steps are replayed as graphs, or issued kernel by kernel.
    pub uses_graphs: bool,
}

/// What steps took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Steps.
    pub num_steps: u64,
    /// From when they were asked for to when they were answered, µs.
    pub us: f64,
    /// Of this, from the first kernel of each to the end of its last.
    pub device_us: f64,
}

impl StepTimes {
    fn count(&mut self, us: f64, device_us: f64) {
        self.num_steps += 1;
        self.us += us;
        self.device_us += device_us;
    }
}

/// What an engine's steps took, by their kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineTimes {
    /// In which all sequences decode.
    pub decode: StepTimes,
    /// With prompts, or parts of them.
    pub prompts: StepTimes,
}

/// A model on one device.
pub struct DeviceEngine {
    stream: Arc<Stream>,
    model: Transformer,
    kv: LayeredKv,
    options: EngineOptions,
    /// By the batch's size.
    decode_steps: Vec<DecodeStep>,
    /// The last ones used, the latest at the end.
    passes: Vec<Pass>,
    /// Of the last step, for those who ask.
    logits: Vec<bf16>,
    keeps_logits: bool,
    is_batch_invariant: bool,
    issue: Issue,
    /// Which of the decode steps ran last.
    last_decode: Option<usize>,
    /// Before the first kernel of a step with prompts, and after the last.
    ends: [Event; 2],
    times: EngineTimes,
}

impl DeviceEngine {
    /// An engine for a model on the device of `stream`.
    ///
    /// # Errors
    /// No memory for the pages.
    pub fn new(
        stream: Arc<Stream>,
        model: Transformer,
        options: EngineOptions,
    ) -> Result<Self, ModelError> {
        Self::with_peers(stream, model, options, &[])
    }

    /// The same, which also has pages in the memory of other devices, so many each: locations 1 and up,
    /// before the host's.
    ///
    /// # Errors
    /// No memory for the pages; devices that do not reach each other.
    pub fn with_peers(
        stream: Arc<Stream>,
        model: Transformer,
        options: EngineOptions,
        peers: &[(Device, usize)],
    ) -> Result<Self, ModelError> {
        let EngineOptions { page_size, device_pages, host_pages, .. } = options;
        let ends = [stream.device().new_event()?, stream.device().new_event()?];
        let (of_device, config) = (stream.clone(), model.config());
        let kv =
            LayeredKv::with_peers(of_device, config, page_size, device_pages, peers, host_pages)?;
        Ok(Self {
            stream,
            model,
            kv,
            options,
            decode_steps: Vec::new(),
            passes: Vec::new(),
            logits: Vec::new(),
            keeps_logits: false,
            is_batch_invariant: false,
            issue: if options.uses_graphs { Issue::Graph } else { Issue::Kernels },
            last_decode: None,
            ends,
            times: EngineTimes::default(),
        })
    }

    /// The same engine, whose answers to a request are the same to the last bit whatever else is in
    /// its steps, however its prompt is cut, and whether its KV was computed at once, again, or token
    /// by token: products are added up in one order, and all attention is the prompts'. It takes
    /// longer.
    #[must_use]
    pub fn batch_invariant(self) -> Self {
        Self { is_batch_invariant: true, decode_steps: Vec::new(), passes: Vec::new(), ..self }
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Keeps the logits of each step on the host from now on: for tests, as it costs a copy.
    pub fn keep_logits(&mut self) {
        self.keeps_logits = true;
    }

    /// Keeps them no longer.
    pub fn leave_logits(&mut self) {
        self.keeps_logits = false;
    }

    /// Issues decode steps so from now on.
    pub fn issue_as(&mut self, issue: Issue) {
        self.issue = issue;
    }

    /// Microseconds from the first kernel of the last decode step to the end of its last.
    ///
    /// # Errors
    /// No decode step yet; a failure.
    pub fn decode_us(&self) -> Result<f64, EngineError> {
        let last = self.last_decode.ok_or_else(|| EngineError::failed("no decode step yet"))?;
        self.decode_steps[last].device_us()
    }

    /// What steps took since this was last asked.
    pub fn take_times(&mut self) -> EngineTimes {
        std::mem::take(&mut self.times)
    }

    /// Logits of the last step, `[sequences that sampled, vocab_size]`, if they are kept.
    pub fn logits(&self) -> &[bf16] {
        &self.logits
    }

    fn decode(&mut self, step: &Step) -> Result<Chosen, EngineError> {
        let batch = padded_sequences(step.sequences.len());
        let made = self
            .decode_steps
            .iter()
            .position(|made| made.batch() == batch && made.issue() == self.issue);
        let index = match made {
            Some(index) => index,
            None => {
                let (stream, kv, num_max_pages) =
                    (&self.stream, &self.kv, self.num_max_pages(batch));
                self.decode_steps.push(DecodeStep::new(
                    stream,
                    &self.model,
                    kv,
                    batch as u32,
                    num_max_pages,
                    self.issue,
                    self.is_batch_invariant,
                )?);
                self.decode_steps.len() - 1
            }
        };
        let fillers: Vec<StepSequence> = (self.kv.scratch())
            .take(batch - step.sequences.len())
            .map(|page| filler(1, vec![page], Some(Sampling::GREEDY)))
            .collect();
        let sequences: Vec<&StepSequence> = step.sequences.iter().chain(&fillers).collect();
        let token_ids = sequences.iter().map(|sequence| sequence.tokens[0] as i32).collect();
        let inputs = StepInputs { token_ids, rules: rules(&sequences) };
        let lists = page_lists(&sequences, self.options.page_size as usize);
        self.last_decode = Some(index);
        let Self { stream, model, kv, .. } = self;
        let decode_step = &mut self.decode_steps[index];
        let table = lists.table();
        let chosen = decode_step.run(stream, model, kv, &inputs, &table)?;
        if self.keeps_logits {
            self.logits = decode_step.logits(stream)?;
            self.logits.truncate(step.sequences.len() * model.config().vocab_size as usize);
        }
        Ok(chosen)
    }

    /// Pages that `batch` sequences may have together.
    fn num_max_pages(&self, batch: usize) -> u32 {
        let of_sequence =
            (self.model.num_max_positions() as usize).div_ceil(self.options.page_size as usize);
        (batch * of_sequence).min(i32::MAX as usize) as u32
    }

    fn prefill(
        &mut self,
        step: &Step,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<Chosen, EngineError> {
        let filler = self.filler_of_tokens(step);
        let sequences: Vec<&StepSequence> = step.sequences.iter().chain(&filler).collect();
        let mut append_indptr = vec![0];
        let (mut token_ids, mut logit_rows) = (Vec::new(), Vec::new());
        for sequence in &sequences {
            token_ids.extend(sequence.tokens.iter().map(|&token| token as i32));
            append_indptr.push(token_ids.len() as i32);
            if sequence.sampling.is_some() {
                logit_rows.push(token_ids.len() as i32 - 1);
            }
        }
        let (num_tokens, num_answers) = (token_ids.len(), logit_rows.len());
        // As many for any number of answers, which cost little more than one: passes are kept by it.
        let num_logit_rows = match num_answers {
            0 => 0,
            _ => padded_sequences(self.options.num_max_sequences).min(num_tokens),
        };
        let shape = PassShape {
            num_tokens: num_tokens as u32,
            num_logit_rows: num_logit_rows as u32,
            is_batch_invariant: self.is_batch_invariant,
            one_by_one: false,
        };
        self.prepare_pass(shape)?;
        let Self { stream, model, kv, passes, ends: [start, end], .. } = self;
        let pass = passes.last().expect("it was prepared");
        stream.upload(&token_ids, pass.token_ids())?;
        // Where answers are among the rows that have logits.
        let mut places: Vec<usize> = (0..num_answers).collect();
        match pass.logit_rows() {
            Some(row_ids) => {
                logit_rows.resize(num_logit_rows, 0);
                stream.upload(&logit_rows, row_ids)?;
            }
            None => places = logit_rows.iter().map(|&row| row as usize).collect(),
        }
        if let Some(choice) = pass.choice() {
            let mut of_rows = vec![rule(0, &Sampling::GREEDY); num_logit_rows];
            for (&place, rule) in places.iter().zip(rules(&sequences)) {
                of_rows[place] = rule;
            }
            stream.upload(&of_rows, choice.rules())?;
        }
        let page = kv.shape();
        let append = AppendShape {
            batch: sequences.len() as u32,
            num_tokens: num_tokens as u32,
            page,
            rope: rope(model),
        };
        let lists = page_lists(&sequences, page.page_size as usize);
        let append_lists = AppendLists { append_indptr: &append_indptr, table: lists.table() };
        let append = Append::upload(stream, append, &append_lists, kv.layer(0))?;
        let num_qo_heads = model.config().num_qo_heads;
        let prefill = PrefillShape { num_qo_heads, page, sm_scale: sm_scale(model) };
        let variant = PrefillVariant::fastest(stream.device(), &prefill)?;
        let kv_lens = append.table().kv_lens();
        let prefill = Prefill::plan(stream, variant, prefill, &append_indptr, kv_lens)?;
        let attention = Attention::Prefill(&prefill);
        stream.record(start)?;
        pass.run(stream, model, kv, &append, &attention, after_layer)?;
        let Some(choice) = pass.choice() else {
            stream.record(end)?;
            stream.synchronize()?;
            return Ok(Chosen::default());
        };
        choice.run(stream)?;
        stream.record(end)?;
        let (ids, logprobs) = choice.chosen();
        let (ids, logprobs) = (ids.to_vec(stream)?, logprobs.to_vec(stream)?);
        if self.keeps_logits {
            let (logits, row_len) =
                (choice.logits().to_vec(stream)?, model.config().vocab_size as usize);
            let rows = places.iter().map(|place| &logits[place * row_len..][..row_len]);
            self.logits = rows.collect::<Vec<_>>().concat();
        }
        Ok(places.iter().map(|&place| (ids[place], logprobs[place])).unzip())
    }

    /// A sequence that fills a step up to a size that a pass is made for, if the pages of nobody and
    /// the model's positions suffice.
    fn filler_of_tokens(&self, step: &Step) -> Option<StepSequence> {
        let num_tokens = step.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let num_missing = padded_tokens(num_tokens) - num_tokens;
        let num_pages = num_missing.div_ceil(self.options.page_size as usize);
        let scratch = self.kv.scratch();
        let fits =
            num_pages <= scratch.len() && num_missing <= self.model.num_max_positions() as usize;
        (num_missing > 0 && fits)
            .then(|| filler(num_missing, scratch.take(num_pages).collect(), None))
    }

    /// Puts a pass of this shape at the end of those kept.
    fn prepare_pass(&mut self, shape: PassShape) -> Result<(), EngineError> {
        if let Some(index) = self.passes.iter().position(|pass| pass.shape() == shape) {
            let pass = self.passes.remove(index);
            self.passes.push(pass);
            return Ok(());
        }
        if self.passes.len() == NUM_KEPT_PASSES {
            self.passes.remove(0);
        }
        self.passes.push(Pass::new(&self.stream, self.model.config(), shape)?);
        Ok(())
    }
}

/// Sequences that launchers of a decode step, and of logits, are made for.
fn padded_sequences(num_sequences: usize) -> usize {
    match num_sequences {
        0 => 0,
        1..=16 => num_sequences.next_power_of_two(),
        _ => num_sequences.next_multiple_of(16),
    }
}

/// Tokens that passes are made for.
fn padded_tokens(num_tokens: usize) -> usize {
    num_tokens.next_multiple_of(match num_tokens {
        0..=128 => 16,
        129..=1024 => 64,
        _ => 128,
    })
}

/// Where the pages of sequences lie, their new tokens included.
fn page_lists(sequences: &[&StepSequence], page_size: usize) -> PageLists {
    let mut lists = PageLists::default();
    for sequence in sequences {
        let places = sequence.pages.iter().map(|&page| page.into());
        let in_last = (sequence.num_tokens_after() - 1) % page_size + 1;
        lists.push(places, in_last as u32);
    }
    lists
}

/// A sequence of nobody.
fn filler(num_tokens: usize, pages: Vec<Location>, sampling: Option<Sampling>) -> StepSequence {
    let (request, tokens) = (RequestId(u64::MAX), vec![FILLER; num_tokens]);
    StepSequence { request, tokens, num_cached_tokens: 0, pages, sampling }
}

/// Who sampled, and how.
fn sampling(step: &Step) -> impl Iterator<Item = (&StepSequence, &Sampling)> {
    step.sequences.iter().filter_map(|sequence| Some((sequence, sequence.sampling.as_ref()?)))
}

fn rule(position: usize, sampling: &Sampling) -> SamplingRule {
    SamplingRule {
        seed: sampling.seed,
        position: position as u32,
        top_k: sampling.top_k,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
    }
}

/// One for each sequence that samples, in order.
fn rules(sequences: &[&StepSequence]) -> Vec<SamplingRule> {
    let of_sequence = |sequence: &&StepSequence| {
        Some(rule(sequence.num_tokens_after(), sequence.sampling.as_ref()?))
    };
    sequences.iter().filter_map(of_sequence).collect()
}

fn answers(step: &Step, (ids, logprobs): &Chosen) -> Result<Vec<Sampled>, EngineError> {
    let answer = |((sequence, _), (&id, &logprob)): ((&StepSequence, _), (&i32, &f32))| {
        let request = sequence.request;
        match u32::try_from(id) {
            Ok(token) => Ok(Sampled { request, token, logprob }),
            Err(_) => Err(EngineError::Request {
                request,
                argument: "logits",
                needed: "a number among them".to_owned(),
                got: "none".to_owned(),
            }),
        }
    };
    sampling(step).zip(ids.iter().zip(logprobs)).map(answer).collect()
}

fn is_decode(sequence: &StepSequence) -> bool {
    sequence.tokens.len() == 1 && sequence.sampling.is_some()
}

impl Engine for DeviceEngine {
    fn limits(&self) -> EngineLimits {
        EngineLimits {
            num_max_sequences: self.options.num_max_sequences,
            num_max_tokens_per_step: self.options.num_max_tokens_per_step,
            num_max_context: self.model.num_max_positions() as usize,
            page_size: self.options.page_size as usize,
            num_layers: self.model.config().num_layers(),
            layer_page_bytes: self.kv.shape().page_bytes(),
        }
    }

    fn pages(&mut self) -> &mut dyn KvPages {
        &mut self.kv
    }

    fn step_by_layer(
        &mut self,
        step: &Step,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<Vec<Sampled>, EngineError> {
        let limits = self.limits();
        step_check::check(step, &limits, self.model.config().vocab_size, self.kv.num_pages())?;
        if step.sequences.is_empty() {
            return Ok(Vec::new());
        }
        let asked = Instant::now();
        let us = || asked.elapsed().as_secs_f64() * 1e6;
        let chosen = if step.sequences.iter().all(is_decode) {
            let chosen = self.decode(step)?;
            (0..limits.num_layers).try_for_each(|layer| after_layer(layer, &mut self.kv))?;
            self.times.decode.count(us(), self.decode_us()?);
            chosen
        } else {
            let chosen = self.prefill(step, after_layer)?;
            let [start, end] = &self.ends;
            self.times.prompts.count(us(), start.elapsed_us(end)?);
            chosen
        };
        answers(step, &chosen)
    }
}
