//! An engine that is no model: for tests of whatever schedules one, and for machines without a GPU.
//!
//! Its tokens are hashes of all that a request's pages hold, layer by layer: each layer writes a
//! word for each token, which depends on the layer below, and reads back the words of all tokens
//! before. A page lost, swapped or read too early, or a wrong number of cached tokens, gives other
//! tokens from there on, as it would with a model; the order of a batch does not.
//!
//! Its time follows from [`SimulatedCosts`], which are stated, not measured: it passes on the
//! [`Clock`] that the engine is given. On a virtual clock a run repeats to the last digit.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::clock::Clock;
use crate::kv::{Location, Rates};
use crate::model::engine::{
    Engine, EngineError, EngineLimits, KvPages, PageCopy, RequestId, Sampled, Step, StepSequence,
};

/// What every printed result of this engine says.
pub const SIMULATED: &str = "simulated engine";

/// What memory holds before anything is written.
const UNWRITTEN: u64 = 0x6e6f_7448_6572_6521;

/// What a simulated engine takes for what, in a model's and a machine's own units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SimulatedCosts {
    /// Bytes of weights that a step reads once.
    pub weight_bytes: f64,
    /// Floating-point operations of a token without attention.
    pub flops_per_token: f64,
    /// Floating-point operations of attention for a token and one before it.
    pub flops_per_pair: f64,
    /// Floating-point operations a second, in 10^12.
    pub tflops: f64,
    /// The machine's memories and links.
    pub rates: Rates,
}

impl SimulatedCosts {
    /// About what a dense model of 8 billion parameters in 16 bits, with 32 layers of 8 KV heads
    /// of 128, takes on an H200: 600 of its TFLOP/s are reached, and its memory as [`Rates`] has it.
    pub fn dense_8b() -> Self {
        Self {
            weight_bytes: 16e9,
            flops_per_token: 16e9,
            flops_per_pair: 4.0 * 4096.0 * 32.0,
            tflops: 600.0,
            rates: Rates::default(),
        }
    }
}

/// A simulated engine's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SimulatedModel {
    /// Layers, each with words of its own in a page.
    pub num_layers: usize,
    /// Tokens are below it.
    pub vocab_size: u32,
    /// Tokens of a page.
    pub page_size: usize,
    /// Bytes that one token's KV of one layer counts for, a multiple of 8: when it is read, and when
    /// it goes to another engine.
    pub layer_token_bytes: usize,
    /// Tokens of a sequence.
    pub num_max_context: usize,
    /// Sequences of a step.
    pub num_max_sequences: usize,
    /// Tokens of a step.
    pub num_max_tokens_per_step: usize,
    /// What it takes.
    pub costs: SimulatedCosts,
}

impl SimulatedModel {
    /// A model like that of [`SimulatedCosts::dense_8b`], in 4 layers for 32.
    pub fn dense_8b() -> Self {
        Self {
            num_layers: 4,
            vocab_size: 32_000,
            page_size: 16,
            layer_token_bytes: 32 * 1024,
            num_max_context: 8192,
            num_max_sequences: 256,
            num_max_tokens_per_step: 8192,
            costs: SimulatedCosts::dense_8b(),
        }
    }

    fn limits(&self) -> EngineLimits {
        EngineLimits {
            num_max_sequences: self.num_max_sequences,
            num_max_tokens_per_step: self.num_max_tokens_per_step,
            num_max_context: self.num_max_context,
            page_size: self.page_size,
            num_layers: self.num_layers,
            layer_page_bytes: self.page_size * self.layer_token_bytes,
        }
    }

    /// Microseconds of a step, by the costs.
    pub fn step_us(&self, step: &Step) -> f64 {
        let SimulatedCosts { weight_bytes, flops_per_token, flops_per_pair, tflops, rates } =
            self.costs;
        let (mut flops, mut kv_us) = (0.0, 0.0);
        for sequence in &step.sequences {
            let (new, after) = (sequence.tokens.len() as f64, sequence.num_tokens_after() as f64);
            flops += new * flops_per_token + new * after * flops_per_pair;
            kv_us += after * self.token_bytes() / (rates.hbm_gb_s * 1e3);
        }
        let weights_us = weight_bytes / (rates.hbm_gb_s * 1e3);
        rates.launch_us + weights_us.max(flops / (tflops * 1e6)) + kv_us
    }

    fn token_bytes(&self) -> f64 {
        (self.num_layers * self.layer_token_bytes) as f64
    }
}

/// An engine that is no model. See the [module](self).
pub struct SimulatedEngine {
    model: SimulatedModel,
    clock: Clock,
    store: Store,
    faults: Faults,
}

/// What a test wants to go wrong.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// Requests that are refused once they have so many tokens.
    requests: HashMap<RequestId, usize>,
    /// Steps that are left before it fails.
    steps_left: Option<usize>,
}

impl SimulatedEngine {
    /// An engine with so many pages in each location, the last of which is the host's memory, and
    /// whose time passes on this clock.
    ///
    /// # Panics
    /// If a token's bytes are no multiple of 8.
    pub fn new(model: SimulatedModel, num_pages: &[usize], clock: Clock) -> Self {
        assert!(
            model.layer_token_bytes > 0 && model.layer_token_bytes.is_multiple_of(WORD_BYTES),
            "a token's KV is whole words"
        );
        let words = |&pages: &usize| vec![UNWRITTEN; pages * model.num_layers * model.page_size];
        let store = Store {
            num_layers: model.num_layers,
            page_size: model.page_size,
            copies_of_word: model.layer_token_bytes / WORD_BYTES,
            num_pages: num_pages.to_vec(),
            words: num_pages.iter().map(words).collect(),
            clock: clock.clone(),
            copy_gb_s: model.costs.rates.pcie_gb_s,
        };
        Self { model, clock, store, faults: Faults::default() }
    }

    /// From now on a step is refused for this request's sake once it has so many tokens.
    pub fn break_request(&mut self, request: RequestId, num_tokens: usize) {
        self.faults.requests.insert(request, num_tokens);
    }

    /// It fails after so many more steps.
    pub fn break_after(&mut self, num_steps: usize) {
        self.faults.steps_left = Some(num_steps);
    }

    fn check(&self, step: &Step) -> Result<(), EngineError> {
        let limits = self.model.limits();
        let num_tokens: usize = step.sequences.iter().map(|s| s.tokens.len()).sum();
        for (argument, limit, got) in [
            ("sequences", limits.num_max_sequences, step.sequences.len()),
            ("tokens", limits.num_max_tokens_per_step, num_tokens),
        ] {
            if step.sequences.is_empty() || got > limit {
                let (needed, got) = (format!("1 to {limit}"), got.to_string());
                return Err(EngineError::Step { argument, needed, got });
            }
        }
        let mut requests = HashSet::new();
        let (mut written, mut read) = (HashSet::new(), HashSet::new());
        for sequence in &step.sequences {
            self.check_sequence(sequence)?;
            let (before, new) =
                sequence.pages.split_at(sequence.num_cached_tokens / limits.page_size);
            let is_alone = new.iter().all(|&page| written.insert(page));
            read.extend(before.iter().copied());
            if !is_alone || !requests.insert(sequence.request) {
                let needed = "requests once, and pages that one writes".to_owned();
                let got = format!("{} twice, or a page of it", sequence.request);
                return Err(EngineError::Step { argument: "sequences", needed, got });
            }
        }
        if let Some(page) = written.intersection(&read).next() {
            let needed = "pages that one writes and nobody else reads".to_owned();
            return Err(EngineError::Step { argument: "pages", needed, got: format!("{page}") });
        }
        Ok(())
    }

    fn check_sequence(&self, sequence: &StepSequence) -> Result<(), EngineError> {
        let refuse = |argument, needed: String, got: String| {
            Err(EngineError::Request { request: sequence.request, argument, needed, got })
        };
        let (limits, after) = (self.model.limits(), sequence.num_tokens_after());
        if sequence.tokens.is_empty() {
            return refuse("tokens", "at least 1".to_owned(), "0".to_owned());
        }
        if let Some(token) = sequence.tokens.iter().find(|&&token| token >= self.model.vocab_size) {
            let needed = format!("below {}", self.model.vocab_size);
            return refuse("tokens", needed, token.to_string());
        }
        if after > limits.num_max_context {
            return refuse(
                "context",
                format!("at most {}", limits.num_max_context),
                after.to_string(),
            );
        }
        let num_pages = after.div_ceil(limits.page_size);
        if sequence.pages.len() != num_pages {
            return refuse("pages", num_pages.to_string(), sequence.pages.len().to_string());
        }
        if let Some(page) = sequence.pages.iter().find(|&&page| !self.store.has(page)) {
            return refuse("pages", "slots that there are".to_owned(), page.to_string());
        }
        match self.faults.requests.get(&sequence.request) {
            Some(&most) if after >= most => {
                refuse("fault", format!("fewer than {most} tokens"), after.to_string())
            }
            _ => Ok(()),
        }
    }
}

impl Engine for SimulatedEngine {
    fn limits(&self) -> EngineLimits {
        self.model.limits()
    }

    fn pages(&mut self) -> &mut dyn KvPages {
        &mut self.store
    }

    fn step_by_layer(
        &mut self,
        step: &Step,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<Vec<Sampled>, EngineError> {
        self.check(step)?;
        if let Some(left) = &mut self.faults.steps_left {
            if *left == 0 {
                return Err(EngineError::failed("it was to fail at this step"));
            }
            *left -= 1;
        }
        let layer_us = self.model.step_us(step) / self.model.num_layers as f64;
        let embed = |sequence: &StepSequence| -> Vec<u64> {
            let positions = sequence.num_cached_tokens..;
            let tokens = sequence.tokens.iter().zip(positions);
            tokens.map(|(&token, position)| mix(u64::from(token), position as u64)).collect()
        };
        let mut hidden: Vec<Vec<u64>> = step.sequences.iter().map(embed).collect();
        let mut now_us = self.clock.now_us();
        for layer in 0..self.model.num_layers {
            for (sequence, hidden) in step.sequences.iter().zip(&mut hidden) {
                self.store.attend(layer, sequence, hidden);
            }
            // The callback's own time passes while the engine computes.
            now_us += layer_us;
            self.clock.wait_until(now_us);
            after_layer(layer, &mut self.store)?;
        }
        let answers = step.sequences.iter().zip(&hidden);
        let sampled = answers.filter(|(sequence, _)| sequence.sampling.is_some());
        let sampled = sampled.map(|(sequence, hidden)| Sampled {
            request: sequence.request,
            token: (hidden.last().expect("a sequence has tokens")
                % u64::from(self.model.vocab_size)) as u32,
            logprob: 0.0,
        });
        Ok(sampled.collect())
    }
}

const WORD_BYTES: usize = size_of::<u64>();

/// The pages: a word for each layer and token.
struct Store {
    num_layers: usize,
    page_size: usize,
    /// How often a word is repeated where pages are exported.
    copies_of_word: usize,
    num_pages: Vec<usize>,
    /// Per location: `[pages][layers][page_size]`.
    words: Vec<Vec<u64>>,
    clock: Clock,
    copy_gb_s: f64,
}

impl Store {
    fn has(&self, page: Location) -> bool {
        self.num_pages.get(page.rank as usize).is_some_and(|&pages| (page.slot as usize) < pages)
    }

    fn check(&self, pages: &[Location]) -> Result<(), EngineError> {
        match pages.iter().find(|&&page| !self.has(page)) {
            None => Ok(()),
            Some(page) => Err(EngineError::failed(format!("there is no {page}"))),
        }
    }

    fn layer(&mut self, page: Location, layer: usize) -> &mut [u64] {
        let start = (page.slot as usize * self.num_layers + layer) * self.page_size;
        &mut self.words[page.rank as usize][start..start + self.page_size]
    }

    /// A layer: writes the words of the new tokens, and mixes in those of all tokens so far.
    fn attend(&mut self, layer: usize, sequence: &StepSequence, hidden: &mut [u64]) {
        let (num_cached, page_size) = (sequence.num_cached_tokens, self.page_size);
        let (mut sum, mut left) = (layer as u64, num_cached);
        for &page in &sequence.pages {
            let in_page = left.min(page_size);
            sum = self.layer(page, layer)[..in_page].iter().fold(sum, |sum, &word| mix(sum, word));
            left -= in_page;
        }
        for (position, x) in (num_cached..).zip(hidden) {
            let page = sequence.pages[position / page_size];
            let word = mix(*x, layer as u64);
            self.layer(page, layer)[position % page_size] = word;
            sum = mix(sum, word);
            *x = mix(*x, sum);
        }
    }

    fn layer_page_bytes(&self) -> usize {
        self.page_size * self.copies_of_word * WORD_BYTES
    }
}

impl KvPages for Store {
    fn num_pages(&self) -> &[usize] {
        &self.num_pages
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<(), EngineError> {
        for &PageCopy { source, destination } in copies {
            self.check(&[source, destination])?;
            for layer in 0..self.num_layers {
                let words = self.layer(source, layer).to_vec();
                self.layer(destination, layer).copy_from_slice(&words);
            }
        }
        let bytes = copies.len() * self.num_layers * self.layer_page_bytes();
        self.clock.pass(bytes as f64 / (self.copy_gb_s * 1e3));
        Ok(())
    }

    fn export(&mut self, layer: usize, pages: &[Location]) -> Result<Vec<u8>, EngineError> {
        self.check(pages)?;
        let mut bytes = Vec::with_capacity(pages.len() * self.layer_page_bytes());
        for &page in pages {
            for word in self.layer(page, layer).to_vec() {
                for _ in 0..self.copies_of_word {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
        Ok(bytes)
    }

    fn import(
        &mut self,
        layer: usize,
        pages: &[Location],
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        self.check(pages)?;
        let (needed, got) = (pages.len() * self.layer_page_bytes(), bytes.len());
        if needed != got {
            return Err(EngineError::failed(format!("pages need {needed} bytes, got {got}")));
        }
        let token_bytes = self.copies_of_word * WORD_BYTES;
        let mut tokens = bytes.chunks_exact(token_bytes);
        for &page in pages {
            for word in self.layer(page, layer) {
                let token = tokens.next().expect("as many as the pages hold");
                let (first, _) = token.split_first_chunk().expect("at least a word");
                *word = u64::from_le_bytes(*first);
            }
        }
        Ok(())
    }
}

/// The finalizer of SplitMix64 over both: every bit of either changes half of the result's.
fn mix(a: u64, b: u64) -> u64 {
    let mut z =
        a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x2545_f491_4f6c_dd1d);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
