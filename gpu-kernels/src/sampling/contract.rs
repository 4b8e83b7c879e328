//! What sampling must be like, and what it does.

use std::format;

use super::{PIECE, ROW_THREADS, SamplingRule};
use crate::contract::{ContractError, LaunchDims, Work, require};

/// Largest vocabulary.
const MAX_VOCAB_SIZE: u32 = 1 << 20;

/// Sizes of a batch of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingShape {
    /// Requests; may be 0.
    pub batch: u32,
    /// Logits of each.
    pub vocab_size: u32,
}

impl SamplingShape {
    /// Refuses what the kernels do not take. With arguments of the lengths told here, no thread of
    /// a launch with [these](Self::row_dims) dims then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require(
            (1..=MAX_VOCAB_SIZE).contains(&self.vocab_size)
                && self.vocab_size.is_multiple_of(PIECE),
            "vocab_size",
            format!("a multiple of {PIECE} up to {MAX_VOCAB_SIZE}"),
            self.vocab_size,
        )?;
        require(self.batch <= 1 << 16, "batch", "at most 65536", self.batch)
    }

    /// Elements of `logits`.
    pub fn logits_elements(&self) -> usize {
        self.batch as usize * self.vocab_size as usize
    }

    /// Launch of a kernel with a block for each row.
    pub fn row_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.batch, 1, 1],
            block: [ROW_THREADS, 1, 1],
            shared_bytes: 8 * (ROW_THREADS / 32),
        }
    }

    /// What choosing tokens by logits of `logit_bytes` each must do.
    pub fn work(&self, logit_bytes: usize) -> Work {
        let num_logits = self.logits_elements() as u64;
        Work {
            read_bytes: num_logits * logit_bytes as u64,
            written_bytes: 8 * u64::from(self.batch),
            flops: 3 * num_logits,
        }
    }
}

impl SamplingRule {
    /// Refuses values that choose no token. Kernels stay in bounds whatever a rule says.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { temperature, top_p, .. } = *self;
        let is_temperature = temperature.is_finite() && temperature >= 0.0;
        require(is_temperature, "temperature", "0 or a positive number", temperature)?;
        require(top_p > 0.0 && top_p <= 1.0, "top_p", "above 0 and at most 1", top_p)
    }
}
