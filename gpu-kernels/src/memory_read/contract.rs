//! What a read must be like, and what it does.

use cuda_std::cpu::LaunchDims;

use super::NUM_THREADS;
use crate::contract::{ContractError, Work, require, require_up_to};

/// Sizes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReadShape {
    /// Bytes of `source`.
    pub num_bytes: usize,
    /// Blocks of the launch: 8 for each SM fill a GPU; fewer show what few SMs can pull.
    pub num_blocks: u32,
}

impl MemoryReadShape {
    /// Refuses sizes that are not whole 16-byte pieces. With `source` of `num_bytes` and `out` of
    /// [`out_elements`](Self::out_elements), no thread then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require(
            self.num_bytes.is_multiple_of(16),
            "num_bytes",
            "a multiple of 16",
            self.num_bytes,
        )?;
        require_up_to("num_blocks", u32::MAX / NUM_THREADS, self.num_blocks)
    }

    /// Elements of `source`, in 32-bit words.
    pub fn source_elements(&self) -> usize {
        self.num_bytes / 4
    }

    /// Elements of `out`: one a thread.
    pub fn out_elements(&self) -> usize {
        (self.num_blocks * NUM_THREADS) as usize
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        LaunchDims { grid: [self.num_blocks, 1, 1], block: [NUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// What it does.
    pub fn work(&self) -> Work {
        Work {
            read_bytes: self.num_bytes as u64,
            written_bytes: 4 * self.out_elements() as u64,
            flops: 0,
        }
    }
}
