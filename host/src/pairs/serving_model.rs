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
use crate::serve::{Request, Served, alone};

/// A model, and how much its engine takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ServingModel {
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

/// The tokens that requests must get: of the first ones, those that each gets alone, token by token; of
/// all, those of the first call of the baseline, which serves them one way, against all calls after it.
pub(super) struct Oracle {
    alone: Vec<Vec<u32>>,
    all: Vec<Vec<u32>>,
}

impl Oracle {
    /// What the first of these requests get alone.
    ///
    /// # Errors
    /// A load that cannot be served so.
    pub fn new(engine: &mut DeviceEngine, requests: &[Request]) -> Result<Self> {
        let first = requests.iter().take(NUM_ALONE).map(|request| alone(engine, request));
        let alone = first.collect::<Result<_, _>>().context("serving a request alone")?;
        Ok(Self { alone, all: Vec::new() })
    }

    /// Takes what was served first for what all requests get.
    ///
    /// # Errors
    /// First ones that get something else alone.
    pub fn learn(&mut self, served: &Served) -> Result<()> {
        self.all = served.requests.iter().map(|(answer, _)| answer.tokens.clone()).collect();
        for (id, (alone, batched)) in self.alone.iter().zip(&self.all).enumerate() {
            ensure!(alone == batched, "request {id} gets {alone:?} alone, and not {batched:?}");
        }
        self.check(served).map(drop)
    }

    /// Whether each request was served, and got these tokens.
    ///
    /// # Errors
    /// The first that did not.
    pub fn check(&self, served: &Served) -> Result<String> {
        ensure!(served.requests.len() == self.all.len(), "requests without an answer");
        for ((answer, _), want) in served.requests.iter().zip(&self.all) {
            let id = answer.id;
            ensure!(answer.ending.is_served(), "request {id} ended otherwise: {:?}", answer.ending);
            ensure!(answer.tokens == *want, "request {id} got {:?}, not {want:?}", answer.tokens);
        }
        let num_tokens: usize = self.all.iter().map(Vec::len).sum();
        Ok(format!(
            "{num_tokens} tokens of {} requests are the same by both sides, and of the first {} those \
             that each gets alone",
            self.all.len(),
            self.alone.len()
        ))
    }
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
