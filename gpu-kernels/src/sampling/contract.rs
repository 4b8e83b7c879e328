//! What sampling must be like, and what it does.

use std::format;

use super::{MAX_SLICES, NUM_BINS, PIECE, ROW_THREADS, SPLIT_THREADS, SamplingRule, SplitParams};
use crate::contract::{
    ContractError, LaunchDims, MAX_SHARED_BYTES, Work, require, require_multiple,
};

/// Most requests: places of their histograms are counted in 32 bits.
const MAX_BATCH: u32 = 1 << 16;
/// Largest vocabulary.
const MAX_VOCAB_SIZE: u32 = 1 << 20;
/// Shared memory of a block that is not its slice: a number for each warp, a bin, a histogram.
const FIXED_SHARED_BYTES: u32 = 8 * (SPLIT_THREADS / 32) + 16 + 4 * NUM_BINS;
/// Logits below which a slice is not cut further.
const MIN_SLICE_LEN: u32 = 8 * SPLIT_THREADS;

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
        require_multiple("vocab_size", PIECE, MAX_VOCAB_SIZE, self.vocab_size)?;
        require(self.batch <= MAX_BATCH, "batch", format!("at most {MAX_BATCH}"), self.batch)
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

    /// How rows of logits of `logit_bytes` each are cut where `num_blocks` blocks run at once; none if
    /// they are too long for that.
    pub fn split(&self, num_blocks: u32, logit_bytes: usize) -> Option<SplitPlan> {
        let Self { batch, vocab_size } = *self;
        let max_len =
            (MAX_SHARED_BYTES as u32 - FIXED_SHARED_BYTES) / logit_bytes as u32 / PIECE * PIECE;
        let least = vocab_size.div_ceil(max_len);
        let most = MAX_SLICES.min(num_blocks).min(vocab_size.div_ceil(MIN_SLICE_LEN));
        if least > most {
            return None;
        }
        let num_slices = (num_blocks / batch.max(1)).clamp(least, most);
        let slice_len = vocab_size.div_ceil(num_slices * PIECE) * PIECE;
        let num_groups = (num_blocks / num_slices).min(batch);
        Some(SplitPlan {
            params: SplitParams { batch, vocab_size, num_slices, slice_len },
            num_groups,
            shared_bytes: FIXED_SHARED_BYTES + slice_len * logit_bytes as u32,
        })
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

/// How a batch is cut: each group of blocks takes a row, then the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    /// What kernels read.
    pub params: SplitParams,
    /// Groups of blocks; a block of each for each slice.
    pub num_groups: u32,
    shared_bytes: u32,
}

impl SplitPlan {
    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_groups * self.params.num_slices, 1, 1],
            block: [SPLIT_THREADS, 1, 1],
            shared_bytes: self.shared_bytes,
        }
    }

    /// Elements of `arrived`.
    pub fn arrived_elements(&self) -> usize {
        2 * self.num_groups as usize
    }

    /// Elements of `candidates`.
    pub fn candidates_elements(&self) -> usize {
        (2 * self.num_groups * MAX_SLICES) as usize
    }

    /// Elements of `sums`.
    pub fn sums_elements(&self) -> usize {
        (self.num_groups * MAX_SLICES) as usize
    }

    /// Elements of `histograms`.
    pub fn histograms_elements(&self) -> usize {
        (2 * self.num_groups * MAX_SLICES * NUM_BINS) as usize
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
