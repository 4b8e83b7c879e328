//! Request traces in the Mooncake format, read or generated.
//!
//! One JSON object per line:
//! ```text
//! {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …]}
//! ```
//! `timestamp` is the arrival in ms, lengths are in tokens. `hash_ids` names the prompt's prefix
//! blocks of 512 tokens, the last of them possibly partial. Ids are *chained*: an id stands for
//! its block and everything before it, so that equal ids mean equal whole prefixes. That holds for
//! the published conversation trace (12,031 requests, 182,790 ids, each always after the same id
//! at the same place), and the reader refuses a trace in which it does not: sharing pages by such
//! ids would give wrong answers.

mod generate;
mod read;

pub use generate::{GeneratorOptions, generate};
pub use read::{TraceError, TraceField, TraceProblem, TraceReader};

use serde::Serialize;

/// Tokens of a prefix block.
pub const PREFIX_BLOCK_TOKENS: u32 = 512;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TraceRequest {
    /// Arrival, ms from the start of the trace.
    #[serde(rename = "timestamp")]
    pub timestamp_ms: u64,
    /// Prompt tokens, at least 1.
    pub input_length: u32,
    /// Tokens to decode, at least 1.
    pub output_length: u32,
    /// Chained ids of the prompt's prefix blocks, the last possibly partial.
    pub hash_ids: Vec<u64>,
}

impl TraceRequest {
    /// Prompt and decoded tokens together.
    pub fn total_tokens(&self) -> u32 {
        self.input_length + self.output_length
    }
}
