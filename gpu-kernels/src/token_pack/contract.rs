//! What a pack must be like, and what it does.

use std::format;

use super::{BASELINE_THREADS, NUM_THREADS, PackParams};
use crate::contract::{ContractError, LaunchDims, Work, require, require_up_to};
use crate::moe_permute::MAX_LOCAL_EXPERTS;
use crate::token_rows::TokenRows;

/// Sizes of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackShape {
    /// Tokens and rows.
    pub rows: TokenRows,
    /// Experts whose rows these are.
    pub num_local_experts: u32,
    /// Whether rows that only fill up an expert are set to zero.
    pub zero_padding: bool,
}

impl PackShape {
    /// Refuses what the kernels do not take.
    ///
    /// With tensors of the shapes that the room states, no thread of a launch with
    /// [these](Self::fanout_dims) [dims](Self::baseline_dims) then reaches out of bounds, whatever
    /// the permutation holds; as `moe_permute` leaves it, no two write the same element.
    pub fn check(&self) -> Result<(), ContractError> {
        self.rows.check()?;
        require_up_to("num_local_experts", MAX_LOCAL_EXPERTS, self.num_local_experts)?;
        let num_blocks = u64::from(self.rows.num_tokens) * u64::from(self.pieces_of_row());
        require(
            num_blocks < i32::MAX as u64 - u64::from(MAX_LOCAL_EXPERTS),
            "num_tokens * hidden",
            "such that a launch has at most 2^31 blocks",
            format!("{num_blocks} blocks"),
        )
    }

    fn row_units(&self) -> u32 {
        self.rows.row_bytes() / 16
    }

    fn pieces_of_row(&self) -> u32 {
        self.row_units().div_ceil(NUM_THREADS)
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> PackParams {
        PackParams {
            num_tokens: self.rows.num_tokens,
            top_k: self.rows.top_k,
            row_units: self.row_units(),
            num_scales: self.rows.num_scales(),
            num_max_rows: self.rows.num_max_rows,
            num_local_experts: self.num_local_experts,
            zero_padding: u32::from(self.zero_padding),
            pieces_of_row: self.pieces_of_row(),
        }
    }

    /// Launch of the baseline: a block for each row. There must be some.
    pub fn baseline_dims(&self) -> LaunchDims {
        let grid = [self.rows.num_max_rows, 1, 1];
        LaunchDims { grid, block: [BASELINE_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the fanout variant: a block for each piece of each token, and, for padding, one for
    /// each expert. There must be some.
    pub fn fanout_dims(&self) -> LaunchDims {
        let num_padding = if self.zero_padding { self.num_local_experts } else { 0 };
        let num_blocks = self.rows.num_tokens * self.pieces_of_row() + num_padding;
        LaunchDims { grid: [num_blocks, 1, 1], block: [NUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// What a pack moves if `num_rows` pairs have a row: each token once, each row once.
    pub fn work(&self, num_rows: u64) -> Work {
        let bytes = self.rows.bytes_with_scales();
        let pair_bytes = 4 * self.rows.num_pairs() as u64;
        Work {
            read_bytes: u64::from(self.rows.num_tokens) * bytes + pair_bytes,
            written_bytes: num_rows * bytes,
            flops: 0,
        }
    }
}
