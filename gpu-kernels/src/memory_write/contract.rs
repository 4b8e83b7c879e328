//! What a write must be like, and what it does.

use cuda_std::cpu::LaunchDims;

use super::NUM_THREADS;
use crate::contract::{ContractError, Work, require, require_up_to};

/// Sizes of a write, and of its check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryWriteShape {
    /// Bytes of `target`.
    pub num_bytes: usize,
    /// Blocks of the launch: one for each SM fills memory or a link; fewer show what few SMs can
    /// push.
    pub num_blocks: u32,
}

impl MemoryWriteShape {
    /// Refuses sizes that are not whole 16-byte pieces. With `target` of `num_bytes` and
    /// `num_wrong` of [`num_threads`](Self::num_threads) elements, no thread then reaches out of
    /// bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require(
            self.num_bytes.is_multiple_of(16),
            "num_bytes",
            "a multiple of 16",
            self.num_bytes,
        )?;
        require_up_to("num_blocks", u32::MAX / NUM_THREADS, self.num_blocks)
    }

    /// Elements of `target`, in 32-bit words.
    pub fn target_elements(&self) -> usize {
        self.num_bytes / 4
    }

    /// 16-byte pieces of `target`.
    pub fn num_pieces(&self) -> u64 {
        (self.num_bytes / 16) as u64
    }

    /// Threads of the grid.
    pub fn num_threads(&self) -> usize {
        (self.num_blocks * NUM_THREADS) as usize
    }

    /// The launch, of the write and of the check.
    pub fn dims(&self) -> LaunchDims {
        LaunchDims { grid: [self.num_blocks, 1, 1], block: [NUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// What the write does.
    pub fn work(&self) -> Work {
        Work { read_bytes: 0, written_bytes: self.num_bytes as u64, flops: 0 }
    }
}
