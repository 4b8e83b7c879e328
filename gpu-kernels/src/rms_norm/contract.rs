//! What a normalisation must be like, and what it does.

use std::format;

use super::{MAX_ROW_LEN, NUM_THREADS, RmsNormParams, WORD};
use crate::contract::{ContractError, LaunchDims, Work, require, require_multiple};

/// Sizes of a normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormShape {
    /// Rows; may be 0.
    pub num_rows: u32,
    /// Elements of a row.
    pub row_len: u32,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNormShape {
    /// Refuses what the kernels do not take. With arguments of the lengths told here, no thread of
    /// a launch with [these](Self::dims) [dims](Self::add_dims) then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require_multiple("row_len", WORD, MAX_ROW_LEN, self.row_len)?;
        require(
            u64::from(self.num_rows) * u64::from(self.row_len / WORD) <= i32::MAX as u64,
            "num_rows",
            format!("such that num_rows * row_len / {WORD} is at most {}", i32::MAX),
            self.num_rows,
        )?;
        require(self.eps.is_finite() && self.eps >= 0.0, "eps", "0 or a positive number", self.eps)
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> RmsNormParams {
        RmsNormParams { row_len: self.row_len, eps: self.eps }
    }

    /// Elements of `x`, `delta` and `out`.
    pub fn elements(&self) -> usize {
        self.num_rows as usize * self.row_len as usize
    }

    /// Words of a row that a thread keeps: 1, 2, 4 or 8.
    pub fn thread_words(&self) -> u32 {
        self.row_len.div_ceil(NUM_THREADS * WORD).next_power_of_two()
    }

    /// Launch of a kernel that normalises.
    pub fn dims(&self) -> LaunchDims {
        LaunchDims { grid: [self.num_rows, 1, 1], block: [NUM_THREADS, 1, 1], shared_bytes: 32 }
    }

    /// Words that the kernel which only adds goes through.
    pub fn num_words(&self) -> u32 {
        self.num_rows * (self.row_len / WORD)
    }

    /// Launch of the kernel that only adds.
    pub fn add_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_words().div_ceil(NUM_THREADS), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What normalising without adding must do.
    pub fn work(&self) -> Work {
        let row_bytes = 2 * self.elements() as u64;
        Work {
            read_bytes: row_bytes + 2 * u64::from(self.row_len),
            written_bytes: row_bytes,
            flops: 4 * self.elements() as u64,
        }
    }

    /// What adding and normalising must do.
    pub fn add_work(&self) -> Work {
        let Work { read_bytes, written_bytes, flops } = self.work();
        let row_bytes = 2 * self.elements() as u64;
        Work {
            read_bytes: read_bytes + row_bytes,
            written_bytes: written_bytes + row_bytes,
            flops: flops + self.elements() as u64,
        }
    }
}
