//! What a permutation must be like, and what it does.

use std::format;

use super::{
    BASELINE_THREADS, MANY_PAIRS, MAX_BLOCKS, MAX_LOCAL_EXPERTS, MAX_PAIRS, MAX_ROW_ALIGNMENT,
    NUM_THREADS, PermuteParams, SCAN_THREADS, grid_shared_bytes,
};
use crate::contract::{ContractError, LaunchDims, Work, require, require_up_to};

/// Sizes of a permutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermuteShape {
    /// Tokens; may be 0.
    pub num_tokens: u32,
    /// Slots of a token.
    pub top_k: u32,
    /// First expert whose pairs are sorted: 0, or this rank's first.
    pub first_expert: u32,
    /// One past the last.
    pub end_expert: u32,
    /// What the rows of each expert are rounded up to a multiple of: the tile of a grouped GEMM,
    /// or 1.
    pub row_alignment: u32,
}

impl PermuteShape {
    /// All of `num_experts` experts, rows as they come.
    pub fn new(num_tokens: u32, top_k: u32, num_experts: u32) -> Self {
        Self { num_tokens, top_k, first_expert: 0, end_expert: num_experts, row_alignment: 1 }
    }

    /// Refuses what the kernels do not take.
    ///
    /// With tensors of the shapes that the room states, no thread of a launch with these dims then
    /// reaches out of bounds, whatever the ids are.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_tokens, top_k, first_expert, end_expert, row_alignment } = *self;
        require(top_k > 0, "top_k", "at least 1", top_k)?;
        let num_pairs = u64::from(num_tokens) * u64::from(top_k);
        require(
            num_pairs <= u64::from(MAX_PAIRS),
            "num_tokens",
            format!("such that there are at most {MAX_PAIRS} pairs"),
            format!("{num_tokens} tokens of {top_k}"),
        )?;
        let num_local_experts = end_expert.saturating_sub(first_expert);
        require(
            (1..=MAX_LOCAL_EXPERTS).contains(&num_local_experts) && end_expert <= i32::MAX as u32,
            "first_expert..end_expert",
            format!("a range of 1 to {MAX_LOCAL_EXPERTS} experts"),
            format!("{first_expert}..{end_expert}"),
        )?;
        require_up_to("row_alignment", MAX_ROW_ALIGNMENT, row_alignment)
    }

    /// Elements of `topk_ids`, and of `pair_rows`.
    pub fn num_pairs(&self) -> usize {
        (self.num_tokens * self.top_k) as usize
    }

    /// Elements of `expert_counts`; `expert_offsets` has one more.
    pub fn num_local_experts(&self) -> usize {
        (self.end_expert - self.first_expert) as usize
    }

    /// Elements of `row_pairs`: rows that the worst routing takes.
    pub fn num_max_rows(&self) -> usize {
        let num_used_experts = self.num_pairs().min(self.num_local_experts());
        let alignment = self.row_alignment as usize;
        let rows = self.num_pairs() + num_used_experts * (alignment - 1);
        rows / alignment * alignment
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> PermuteParams {
        PermuteParams {
            num_pairs: self.num_pairs() as u32,
            first_expert: self.first_expert,
            num_local_experts: self.num_local_experts() as u32,
            row_alignment: self.row_alignment,
        }
    }

    /// Launch of the baseline's count: a thread for each pair. There must be some.
    pub fn count_dims(&self) -> LaunchDims {
        let num_blocks = (self.num_pairs() as u32).div_ceil(BASELINE_THREADS);
        LaunchDims { grid: [num_blocks, 1, 1], block: [BASELINE_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the baseline's scan: one block.
    pub fn scan_dims(&self) -> LaunchDims {
        let shared_bytes = 4 * SCAN_THREADS;
        LaunchDims { grid: [1, 1, 1], block: [SCAN_THREADS, 1, 1], shared_bytes }
    }

    /// Launch of the baseline's scatter: a block for each expert.
    pub fn scatter_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_local_experts() as u32, 1, 1],
            block: [BASELINE_THREADS, 1, 1],
            shared_bytes: 4 * BASELINE_THREADS / 32,
        }
    }

    /// Launch of the grid variant where `num_resident_blocks` blocks of 1024 threads run at once:
    /// at least as many as there are multiprocessors. Says how many pairs a thread has, 1 or
    /// [`MANY_PAIRS`].
    ///
    /// # Errors
    /// More pairs than those blocks take: they wait for each other.
    pub fn grid_dims(&self, num_resident_blocks: u32) -> Result<(LaunchDims, u32), ContractError> {
        let num_blocks = |pairs_of_thread: u32| {
            (self.num_pairs() as u32).div_ceil(NUM_THREADS * pairs_of_thread).max(1)
        };
        let limit = num_resident_blocks.min(MAX_BLOCKS);
        // Up to half of the multiprocessors one pair a thread is the shorter way.
        let pairs_of_thread = if num_blocks(1) <= limit / 2 { 1 } else { MANY_PAIRS };
        let num_blocks = num_blocks(pairs_of_thread);
        require(
            num_blocks <= limit,
            "num_tokens",
            format!("such that {limit} blocks hold all pairs"),
            format!("{} pairs, {num_blocks} blocks", self.num_pairs()),
        )?;
        let dims = LaunchDims {
            grid: [num_blocks, 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: grid_shared_bytes(self.params().num_columns()),
        };
        Ok((dims, pairs_of_thread))
    }

    /// Elements of the grid variant's `block_counts`, for a launch of these dims.
    pub fn block_counts_elements(&self, dims: &LaunchDims) -> usize {
        dims.grid[0] as usize * self.num_local_experts()
    }

    /// What a permutation moves, each input and output once.
    pub fn work(&self) -> Work {
        let (pairs, experts) = (self.num_pairs() as u64, self.num_local_experts() as u64);
        Work { read_bytes: 4 * pairs, written_bytes: 4 * (2 * pairs + 2 * experts + 1), flops: 0 }
    }
}
