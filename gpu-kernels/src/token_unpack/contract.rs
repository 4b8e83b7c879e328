//! What an unpack must be like, and what it does.

use std::format;

use super::{BASELINE_THREADS, NUM_THREADS, UnpackParams};
use crate::contract::{ContractError, LaunchDims, Work, require};
use crate::token_rows::TokenRows;

/// Sizes of an unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackShape {
    /// Tokens and rows.
    pub rows: TokenRows,
    /// Whether something is added to each token.
    pub has_addend: bool,
}

impl UnpackShape {
    /// Refuses what the kernels do not take.
    ///
    /// With tensors of the shapes that the room states, no thread of a launch with
    /// [these](Self::wide_dims) [dims](Self::baseline_dims) then reaches out of bounds, whatever
    /// `pair_rows` holds, and no two write the same element.
    pub fn check(&self) -> Result<(), ContractError> {
        self.rows.check()?;
        let num_blocks = u64::from(self.rows.num_tokens) * u64::from(self.pieces_of_row());
        require(
            i32::try_from(num_blocks).is_ok(),
            "num_tokens * hidden",
            "such that a launch has at most 2^31 blocks",
            format!("{num_blocks} blocks"),
        )
    }

    fn pieces_of_row(&self) -> u32 {
        (self.rows.row_bytes() / 16).div_ceil(NUM_THREADS)
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> UnpackParams {
        UnpackParams {
            top_k: self.rows.top_k,
            hidden: self.rows.hidden,
            num_scales: self.rows.num_scales(),
            num_max_rows: self.rows.num_max_rows,
            pieces_of_row: self.pieces_of_row(),
        }
    }

    /// Elements of `addend`: none without one.
    pub fn addend_elements(&self) -> usize {
        if self.has_addend { self.rows.x_elements() } else { 0 }
    }

    /// Launch of the baseline: a block for each token. There must be some.
    pub fn baseline_dims(&self) -> LaunchDims {
        let grid = [self.rows.num_tokens, 1, 1];
        LaunchDims { grid, block: [BASELINE_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the wide variant: a block for each piece of each token. There must be some.
    pub fn wide_dims(&self) -> LaunchDims {
        let grid = [self.rows.num_tokens * self.pieces_of_row(), 1, 1];
        LaunchDims { grid, block: [NUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// What an unpack does if `num_rows` pairs have a row: each row once, each token once.
    pub fn work(&self, num_rows: u64) -> Work {
        let out_bytes = 2 * self.rows.x_elements() as u64;
        let pair_bytes = 8 * self.rows.num_pairs() as u64;
        let addend_bytes = 2 * self.addend_elements() as u64;
        Work {
            read_bytes: num_rows * self.rows.bytes_with_scales() + pair_bytes + addend_bytes,
            written_bytes: out_bytes,
            flops: 2 * num_rows * u64::from(self.rows.hidden),
        }
    }
}
