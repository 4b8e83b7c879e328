//! What a merge must be like, and what it does.

use cuda_std::cpu::LaunchDims;

use super::{DIMS_PER_THREAD, MergeParams, NUM_THREADS};
use crate::contract::{ContractError, Work, require};

/// Sizes of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeStatesShape {
    /// States of each row.
    pub num_states: u32,
    /// Rows: query heads of all requests.
    pub num_rows: u32,
    /// Elements of a row.
    pub head_dim: u32,
}

impl MergeStatesShape {
    /// Refuses what the kernels do not take. With arguments of the lengths told here, no thread of
    /// a launch with [these](Self::dims) dims then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require(self.num_states > 0, "num_states", "at least 1", self.num_states)?;
        require(self.num_rows > 0, "num_rows", "at least 1", self.num_rows)?;
        require(
            self.head_dim > 0 && self.head_dim.is_multiple_of(DIMS_PER_THREAD),
            "head_dim",
            std::format!("a multiple of {DIMS_PER_THREAD}"),
            self.head_dim,
        )?;
        // Places in `out` are counted in 32 bits.
        require(
            u32::try_from(u64::from(self.num_rows) * u64::from(self.head_dim)).is_ok(),
            "num_rows",
            std::format!("such that num_rows * head_dim is at most {}", u32::MAX),
            self.num_rows,
        )
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> MergeParams {
        let Self { num_states, num_rows, head_dim } = *self;
        MergeParams { num_states, num_rows, head_dim }
    }

    /// Elements of `out`.
    pub fn out_elements(&self) -> usize {
        self.num_rows as usize * self.head_dim as usize
    }

    /// Elements of `lse`.
    pub fn lse_elements(&self) -> usize {
        self.num_rows as usize
    }

    /// Elements of `states_out`.
    pub fn states_out_elements(&self) -> usize {
        self.num_states as usize * self.out_elements()
    }

    /// Elements of `states_lse`.
    pub fn states_lse_elements(&self) -> usize {
        self.num_states as usize * self.lse_elements()
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        let num_threads = self.num_rows * (self.head_dim / DIMS_PER_THREAD);
        LaunchDims {
            grid: [num_threads.div_ceil(NUM_THREADS), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What it does.
    pub fn work(&self) -> Work {
        let state_elements = (self.states_out_elements() + self.states_lse_elements()) as u64;
        Work {
            read_bytes: 4 * state_elements,
            written_bytes: (2 * self.out_elements() + 4 * self.lse_elements()) as u64,
            flops: 2 * self.states_out_elements() as u64,
        }
    }
}
