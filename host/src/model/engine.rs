//! What a scheduler asks of a model: one forward pass over a ragged batch, and pages moved.
//!
//! The scheduler owns requests and page slots; an engine owns weights and the bytes of the pages.
//! Everything an engine needs for a step is in the [`Step`], and it keeps nothing of a request from
//! one step to the next but what is in that request's pages. So a request may be dropped, preempted,
//! or moved to another engine between any two steps, and nobody needs to tell the engine.
//!
//! ```text
//! step {                                        pages before       pages after        answers
//!   A: 512 tokens of its prompt, 0 cached       -                  512 tokens         -
//!   B: the last 100 of its prompt, 512 cached   512                612                one token
//!   C: 1 token, the one it was given last       1000               1001               one token
//! }
//! ```

use super::pages::{PageWindow, StagedPages};
use crate::device::DeviceError;
use crate::kernels::KernelError;
use crate::kv::Location;

/// Names a request, from its scheduler's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// One forward pass over a ragged batch: chunks of prompts and single decode steps, mixed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// In the order in which [`Engine::step`] answers; each request once.
    pub sequences: Vec<StepSequence>,
}

/// What one request takes part with.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSequence {
    /// Whose it is.
    pub request: RequestId,
    /// New tokens, in order, at least one: those at positions `num_cached_tokens..`.
    pub tokens: Vec<u32>,
    /// Tokens before them, whose KV is in `pages` already.
    pub num_cached_tokens: usize,
    /// Pages of the sequence from its first token on, exactly as many as cached and new tokens
    /// fill; one slot serves all layers. Slots that new tokens go to are this request's alone, those
    /// before may be shared.
    pub pages: Vec<Location>,
    /// How the token after the new ones is chosen; none for a chunk that is not the last of its
    /// prompt.
    pub sampling: Option<Sampling>,
}

impl StepSequence {
    /// Tokens in the pages after the step.
    pub fn num_tokens_after(&self) -> usize {
        self.num_cached_tokens + self.tokens.len()
    }
}

/// How a token is chosen from its logits.
///
/// The choice depends on these fields, the logits and the token's position in its sequence, and on
/// nothing else: not on the batch, nor on how often the engine sampled before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 for all.
    pub top_k: u32,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Of the counter-based generator.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Refuses values that choose no token.
    ///
    /// # Errors
    /// The field, what it needs, and what it is.
    pub fn check(&self) -> Result<(), String> {
        let Self { temperature, top_p, .. } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(format!("temperature: needs 0 or a positive number, got {temperature}"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!("top_p: needs more than 0 and at most 1, got {top_p}"));
        }
        Ok(())
    }
}

/// The token that a request is given by a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Who is given it.
    pub request: RequestId,
    /// The token; its KV is in no page yet.
    pub token: u32,
    /// Natural logarithm of its probability in the model's distribution, before temperature and
    /// limits.
    pub logprob: f32,
}

/// What an engine can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Sequences of a step.
    pub num_max_sequences: usize,
    /// New tokens of a step, of all sequences together.
    pub num_max_tokens_per_step: usize,
    /// Tokens of a sequence, the last sampled one not counted.
    pub num_max_context: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// Layers that a page slot stands for.
    pub num_layers: usize,
    /// Bytes of a page of one layer.
    pub layer_page_bytes: usize,
}

/// Why an engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The fault of one request; nothing was done. Without it the step is good, as far as was seen.
    #[error("{request}: {argument}: needs {needed}, got {got}")]
    Request {
        /// Whose fault it is.
        request: RequestId,
        /// The offending field.
        argument: &'static str,
        /// What it must be.
        needed: String,
        /// What it was.
        got: String,
    },
    /// The step as a whole exceeds the engine's limits; nothing was done.
    #[error("step: {argument}: needs {needed}, got {got}")]
    Step {
        /// The offending field.
        argument: &'static str,
        /// What it must be.
        needed: String,
        /// What it was.
        got: String,
    },
    /// The engine failed: the new tokens' KV and what was being copied are undefined.
    #[error("the engine failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl EngineError {
    /// The request whose fault it is, if it is one's.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Request { request, .. } => Some(*request),
            Self::Step { .. } | Self::Failed(_) => None,
        }
    }

    /// An engine's own failure.
    pub fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(source.into())
    }
}

/// A page to be copied, in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page.
    pub source: Location,
    /// Where it goes; another slot.
    pub destination: Location,
}

/// The bytes of an engine's pages, layer by layer.
pub trait KvPages {
    /// Pages of each location: one for each rank's memory, the last pinned host memory.
    fn num_pages(&self) -> &[usize];

    /// Copies pages in all layers: eviction and promotion between tiers. Sources and destinations
    /// of one call do not overlap.
    ///
    /// # Errors
    /// A slot that is none; a failure.
    fn copy(&mut self, copies: &[PageCopy]) -> Result<(), EngineError>;

    /// Bytes of pages of one layer, one page after the other, as another engine of the same model
    /// imports them.
    ///
    /// # Errors
    /// A slot or a layer that is none; a failure.
    fn export(&mut self, layer: usize, pages: &[Location]) -> Result<Vec<u8>, EngineError>;

    /// Writes pages of one layer, as another engine exported them.
    ///
    /// # Errors
    /// A slot or a layer that is none; bytes that are not as many as the pages; a failure.
    fn import(&mut self, layer: usize, pages: &[Location], bytes: &[u8])
    -> Result<(), EngineError>;

    /// The pages as other engines of this process reach them; none if they go as bytes only.
    fn window(&self) -> Option<PageWindow> {
        None
    }

    /// Starts copies of pages of one layer to those of another engine, `places` in its window: after
    /// all that was issued so far, and beside what is issued next. Until they have
    /// [settled](Self::settle) nobody may write the pages, or touch the places.
    ///
    /// # Errors
    /// A slot or a layer that is none; pages of another shape; a failure.
    fn push(
        &mut self,
        _layer: usize,
        _pages: &[Location],
        _window: &PageWindow,
        _places: &[Location],
    ) -> Result<(), EngineError> {
        Err(without_window())
    }

    /// Copies pages of all layers to pinned host memory, from where another engine takes them; waits.
    /// None if pages go as bytes only.
    ///
    /// # Errors
    /// A slot that is none; a failure.
    fn stage(&mut self, _pages: &[Location]) -> Result<Option<StagedPages>, EngineError> {
        Ok(None)
    }

    /// Copies pages that another engine staged to its own; waits.
    ///
    /// # Errors
    /// A slot that is none; not as many pages, or of another shape; a failure.
    fn unstage(&mut self, _staged: &StagedPages, _pages: &[Location]) -> Result<(), EngineError> {
        Err(without_window())
    }

    /// Waits until all copies are done.
    ///
    /// # Errors
    /// A failure.
    fn settle(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

fn without_window() -> EngineError {
    EngineError::Step {
        argument: "engine",
        needed: "one whose pages others reach".to_owned(),
        got: "one whose pages go as bytes".to_owned(),
    }
}

/// A model that runs steps.
pub trait Engine {
    /// What it can take.
    fn limits(&self) -> EngineLimits;

    /// Its pages.
    fn pages(&mut self) -> &mut dyn KvPages;

    /// Runs one forward pass and samples: one answer for each sequence that has
    /// [`sampling`](StepSequence::sampling), in the order of the step.
    ///
    /// # Errors
    /// As [`step_by_layer`](Self::step_by_layer).
    fn step(&mut self, step: &Step) -> Result<Vec<Sampled>, EngineError> {
        self.step_by_layer(step, &mut |_, _| Ok(()))
    }

    /// As [`step`](Self::step), and calls `after_layer` with each layer from 0 on as soon as the
    /// new tokens' KV of that layer is in its pages, or is sure to be before whatever the callback
    /// does with them: to hand pages over while later layers still run.
    ///
    /// # Errors
    /// Before anything is done: a [request's fault](EngineError::Request) or the
    /// [step's](EngineError::Step). Later: a [failure](EngineError::Failed), of the engine or of the
    /// callback.
    fn step_by_layer(
        &mut self,
        step: &Step,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<Vec<Sampled>, EngineError>;
}

impl From<KernelError> for EngineError {
    fn from(source: KernelError) -> Self {
        Self::failed(source)
    }
}

impl From<DeviceError> for EngineError {
    fn from(source: DeviceError) -> Self {
        Self::failed(source)
    }
}
