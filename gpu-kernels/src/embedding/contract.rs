//! What a gather must be like, and what it does.

use std::format;

use super::{EmbeddingParams, NUM_THREADS, WORD};
use crate::contract::{ContractError, LaunchDims, Work, require, require_up_to};

/// Sizes of a gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingShape {
    /// Rows of the table.
    pub num_rows: u32,
    /// Elements of a row.
    pub row_len: u32,
    /// Rows to gather; may be 0.
    pub num_ids: u32,
}

impl EmbeddingShape {
    /// Refuses what the kernel does not take. With arguments of the lengths told here, no thread of
    /// a launch with [these](Self::dims) dims then reaches out of bounds, whatever the indices.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_rows, row_len, num_ids } = *self;
        require(
            row_len > 0 && row_len.is_multiple_of(WORD),
            "row_len",
            format!("a multiple of {WORD}"),
            row_len,
        )?;
        require_up_to("num_rows", i32::MAX as u32, num_rows)?;
        require(
            u64::from(num_ids) * u64::from(row_len / WORD) <= i32::MAX as u64,
            "num_ids",
            format!("such that num_ids * row_len / {WORD} is at most {}", i32::MAX),
            num_ids,
        )
    }

    /// The sizes that the kernel takes.
    pub fn params(&self) -> EmbeddingParams {
        let Self { num_rows, row_len, num_ids } = *self;
        EmbeddingParams { num_rows, row_len, num_ids }
    }

    /// Elements of `table`.
    pub fn table_elements(&self) -> usize {
        self.num_rows as usize * self.row_len as usize
    }

    /// Elements of `out`.
    pub fn out_elements(&self) -> usize {
        self.num_ids as usize * self.row_len as usize
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        let num_words = self.num_ids * (self.row_len / WORD);
        LaunchDims {
            grid: [num_words.div_ceil(NUM_THREADS), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What it does.
    pub fn work(&self) -> Work {
        let out_bytes = 2 * self.out_elements() as u64;
        Work {
            read_bytes: out_bytes + 4 * u64::from(self.num_ids),
            written_bytes: out_bytes,
            flops: 0,
        }
    }
}
