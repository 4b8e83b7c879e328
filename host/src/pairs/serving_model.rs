//! The engines of serving pairs: a model of a named shape with weights from the seed, made once and
//! lent from call to call. They are batch-invariant, so that both sides of a pair must give the same
//! tokens, to the last one.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use gpu_kernels::contract::Work;
use serde::{Serialize, Serializer};

use crate::device::Device;
use crate::model::bound::decode_bytes;
use crate::model::config::{FeedForward, NamedShape};
use crate::model::engine::{Engine, EngineError, EngineLimits, KvPages, Sampled, Step};
use crate::model::weights::Seeded;
use crate::model::{DeviceEngine, EngineOptions, Transformer};
use crate::serve::{Clock, Policy, Request, Served, Server, alone};

/// A model, and how much its engine takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServingModel {
    /// What it is made of.
    #[serde(serialize_with = "name_of")]
    pub shape: NamedShape,
    /// Tokens of a sequence.
    pub num_max_context: usize,
    /// Sequences of a step.
    pub num_max_sequences: usize,
    /// Tokens of a step.
    pub num_max_tokens_per_step: usize,
    /// Pages in local memory, and in the host's.
    pub num_pages: [usize; 2],
}

fn name_of<S: Serializer>(shape: &NamedShape, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(shape.name())
}

/// Tokens of a page.
pub(super) const PAGE_SIZE: usize = 16;

/// Requests that are held against what they get alone; one after the other takes long.
const NUM_ALONE: usize = 2;

/// About what a prompt's token takes, where it decides whose goes first.
pub(super) const PROMPT_TOKEN_US: f64 = 30.0;

impl ServingModel {
    /// An engine on this device.
    ///
    /// # Errors
    /// What the device says: also that there is no memory.
    pub fn engine(&self, device: &Device, seed: u64) -> Result<DeviceEngine> {
        let stream = Arc::new(device.new_stream()?);
        let config = self.shape.config();
        let weights = Seeded::new(seed, config.num_layers());
        let num_max_positions = self.num_max_context as u32;
        let model = Transformer::load(&stream, config, &weights, num_max_positions, &mut |_| {})?;
        let [device_pages, host_pages] = self.num_pages;
        let options = EngineOptions {
            num_max_sequences: self.num_max_sequences,
            num_max_tokens_per_step: self.num_max_tokens_per_step,
            page_size: PAGE_SIZE as u32,
            device_pages,
            host_pages,
            uses_graphs: true,
        };
        Ok(DeviceEngine::new(stream, model, options)?.batch_invariant())
    }

    /// Tokens are below it.
    pub fn vocab_size(&self) -> u32 {
        self.shape.config().vocab_size
    }

    /// What serving must do at least, counted from tokens: the weights read once, two operations for
    /// each weight that a token needs, KV written once.
    pub fn work(&self, requests: &[Request]) -> Work {
        let config = self.shape.config();
        let top_k = config.feed_forward.iter().map(|layer| match layer {
            FeedForward::Dense { .. } => 0,
            FeedForward::Experts(experts) => u64::from(experts.top_k),
        });
        let weight_bytes = decode_bytes(&config, 0, top_k.max().unwrap_or(0));
        let num_tokens: u64 = requests.iter().map(|request| request.num_max_context() as u64).sum();
        let token_bytes = config.num_layers() as u64 * 2 * u64::from(config.kv_len()) * 2;
        Work {
            read_bytes: weight_bytes,
            written_bytes: num_tokens * token_bytes,
            flops: num_tokens * weight_bytes,
        }
    }
}

/// What each of these requests gets: the first ones alone, all of them in one static batch after the
/// other.
///
/// # Errors
/// A load that cannot be served so; first ones that get something else alone.
pub(super) fn oracle(engine: &mut DeviceEngine, requests: &[Request]) -> Result<Vec<Vec<u32>>> {
    let first = requests.iter().take(NUM_ALONE).map(|request| alone(engine, request));
    let first = first.collect::<Result<Vec<_>, _>>().context("serving a request alone")?;
    let policy = Policy::static_batches(engine.limits().num_max_sequences);
    let at_once = requests.iter().map(|request| Request { arrival_us: 0.0, ..request.clone() });
    let at_once = at_once.collect();
    let served = Server::new(engine, policy, Clock::wall())?.serve(at_once)?;
    let tokens: Vec<Vec<u32>> =
        served.requests.into_iter().map(|(answer, _)| answer.tokens).collect();
    for (id, (alone, batched)) in first.iter().zip(&tokens).enumerate() {
        ensure!(alone == batched, "request {id} gets {alone:?} alone, and in a batch {batched:?}");
    }
    Ok(tokens)
}

/// Whether each request was served, and got what the oracle says.
pub(super) fn check_tokens(served: &Served, oracle: &[Vec<u32>]) -> Result<String> {
    ensure!(served.requests.len() == oracle.len(), "requests without an answer");
    for ((answer, _), want) in served.requests.iter().zip(oracle) {
        let id = answer.id;
        ensure!(answer.ending.is_served(), "request {id} ended otherwise: {:?}", answer.ending);
        ensure!(answer.tokens == *want, "request {id} got {:?}, and not {want:?}", answer.tokens);
    }
    let num_tokens: usize = oracle.iter().map(Vec::len).sum();
    Ok(format!(
        "{num_tokens} tokens of {} requests are those of one static batch after the other, and the \
         first {} requests' those that each gets alone",
        oracle.len(),
        oracle.len().min(NUM_ALONE)
    ))
}

/// Changes every token of every prompt: of a few tokens that a model goes on with, one changed token may
/// change none.
pub(super) fn change_prompts(requests: &mut [Request], vocab_size: u32) -> Result<()> {
    for request in requests {
        ensure!(!request.prompt.is_empty(), "a prompt must have a token at least");
        for token in &mut request.prompt {
            *token = (*token + 1) % vocab_size;
        }
    }
    Ok(())
}

/// Where an engine is between calls.
pub(super) type Home = Arc<Mutex<Option<DeviceEngine>>>;

/// An engine for a while, which goes home in the end, whatever happens to its rank.
pub(super) struct Lent {
    engine: Option<DeviceEngine>,
    home: Home,
}

impl Lent {
    pub fn from(home: &Home) -> Result<Self, String> {
        let engine = home.lock().unwrap_or_else(PoisonError::into_inner).take();
        let engine = engine.ok_or("its engine is elsewhere")?;
        Ok(Self { engine: Some(engine), home: home.clone() })
    }

    fn engine(&mut self) -> &mut DeviceEngine {
        self.engine.as_mut().expect("it goes home only at the end")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.engine.take();
    }
}

impl Engine for Lent {
    fn limits(&self) -> EngineLimits {
        self.engine.as_ref().expect("it goes home only at the end").limits()
    }

    fn pages(&mut self) -> &mut dyn KvPages {
        self.engine().pages()
    }

    fn step_by_layer(
        &mut self,
        step: &Step,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<Vec<Sampled>, EngineError> {
        self.engine().step_by_layer(step, after_layer)
    }
}
