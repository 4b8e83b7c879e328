//! What is asked for, and how it ends.

use serde::Serialize;

pub use crate::model::engine::RequestId;
use crate::model::engine::Sampling;

/// A prompt, and how far to go on from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names it; unique among the requests that are in a server at the same time.
    pub id: RequestId,
    /// Tokens, at least one.
    pub prompt: Vec<u32>,
    /// It ends after so many, at least one.
    pub num_max_new_tokens: usize,
    /// It ends with this token, which is part of the answer.
    pub stop_token: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When it arrives, on the server's clock.
    pub arrival_us: f64,
    /// Greater goes first, and is never preempted for a smaller one.
    pub priority: u8,
}

impl Request {
    /// A request of the usual priority that is there from the start, and decodes greedily to its
    /// last token.
    pub fn new(id: u64, prompt: Vec<u32>, num_max_new_tokens: usize) -> Self {
        Self {
            id: RequestId(id),
            prompt,
            num_max_new_tokens,
            stop_token: None,
            sampling: Sampling::GREEDY,
            arrival_us: 0.0,
            priority: 0,
        }
    }

    /// Tokens that its pages hold at the end; the last token that it is given needs none.
    pub fn num_max_context(&self) -> usize {
        self.prompt.len() + self.num_max_new_tokens.saturating_sub(1)
    }

    /// When it arrives, as far as a server waits for it: now, if that is never, to be refused.
    pub(super) fn due_us(&self, now_us: f64) -> f64 {
        if self.arrival_us.is_finite() { self.arrival_us } else { now_us }
    }
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing to go on from.
    #[error("prompt: needs at least 1 token, got 0")]
    EmptyPrompt,
    /// Nothing to do.
    #[error("num_max_new_tokens: needs at least 1, got 0")]
    NothingToGenerate,
    /// A way to choose tokens that chooses none.
    #[error("sampling: {0}")]
    Sampling(String),
    /// It never arrives.
    #[error("arrival_us: needs a finite number, got {0}")]
    Arrival(String),
    /// Its name is taken.
    #[error("id: needs one that no request under way has, got {0}")]
    IdTaken(RequestId),
    /// The model cannot see that far.
    #[error(
        "context: {prompt} prompt tokens and {new} new ones need {needed}, the model has {limit}"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most new tokens.
        new: usize,
        /// Tokens of context that both need.
        needed: usize,
        /// Tokens of context that the model has.
        limit: usize,
    },
    /// Even alone it would not fit.
    #[error("KV: {tokens} tokens need {needed} pages, the pool has {limit} in all")]
    PoolTooSmall {
        /// Tokens of the whole sequence.
        tokens: usize,
        /// Pages that these need.
        needed: usize,
        /// Pages that there are for running requests.
        limit: usize,
    },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "ending", content = "reason", rename_all = "snake_case")]
pub enum Ending {
    /// It has all the tokens that it asked for.
    Length,
    /// Its stop token came.
    StopToken,
    /// It was not taken, for this reason.
    Refused(String),
    /// It failed, for this reason, and the others went on.
    Failed(String),
}

impl Ending {
    /// Whether it was served to its end.
    pub fn is_served(&self) -> bool {
        matches!(self, Self::Length | Self::StopToken)
    }
}

/// What a request was given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Which request.
    pub id: u64,
    /// Its new tokens: all, or those before it failed.
    pub tokens: Vec<u32>,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
}
