//! What a decode with travelling queries must be like.

use cuda_std::cpu::LaunchDims;

use super::NUM_MAX_OWNERS;
use crate::contract::{ContractError, require, require_up_to};
use crate::merge_states::contract::MergeStatesShape;
use crate::paged_attention::contract::DecodeShape;

/// Sizes of a decode that several sides take part in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FarDecodeShape {
    /// What each side attends to; all sides have the whole batch.
    pub decode: DecodeShape,
    /// Sides with a state, home among them if it has one.
    pub num_states: u32,
    /// Owners that are asked.
    pub num_owners: u32,
}

impl FarDecodeShape {
    /// Refuses what the kernels do not take. As [`DecodeShape::check`] promises, for each side's
    /// table, workspace, and state; and for counts of one element an owner, and one a block.
    pub fn check(&self) -> Result<(), ContractError> {
        self.decode.check()?;
        require_up_to("num_owners", NUM_MAX_OWNERS, self.num_owners)?;
        require(
            (self.num_owners..=self.num_owners + 1).contains(&self.num_states),
            "num_states",
            std::format!("{}, or one more", self.num_owners),
            self.num_states,
        )?;
        self.merge().check()
    }

    /// The merge of all states.
    pub fn merge(&self) -> MergeStatesShape {
        MergeStatesShape {
            num_states: self.num_states,
            num_rows: self.decode.batch * self.decode.num_qo_heads,
            head_dim: self.decode.page.head_dim,
        }
    }

    /// Launch of the kernel that asks.
    pub fn ask_dims(&self) -> LaunchDims {
        LaunchDims { grid: [1, 1, 1], block: [NUM_MAX_OWNERS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the kernel that waits on an owner.
    pub fn gate_dims(&self) -> LaunchDims {
        LaunchDims { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 }
    }
}
