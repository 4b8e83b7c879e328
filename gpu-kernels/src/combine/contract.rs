//! What a combine launches, and what it does. Its sizes are the exchange's.

use std::collections::BTreeSet;
use std::format;

use super::{
    BULK_SHARED_BYTES, BULK_THREADS, NUM_GROUPS, PACKETS_THREADS, SUM_THREADS, push_chunk_shift,
};
use crate::contract::{ContractError, LaunchDims, Work, require};
use crate::dispatch::contract::{ExchangeLaunch, ExchangeShape};

impl ExchangeLaunch {
    /// Refuses what the kernel that pushes does not take.
    pub fn check_push(&self) -> Result<(), ContractError> {
        self.check_blocks()?;
        require(self.num_senders > 0, "num_senders", "at least 1", self.num_senders)?;
        require(
            self.num_blocks > self.num_senders,
            "num_blocks",
            format!("more than num_senders ({}), to add", self.num_senders),
            self.num_blocks,
        )
    }

    /// Refuses what the kernel that pulls does not take.
    pub fn check_pull(&self) -> Result<(), ContractError> {
        self.check_blocks()?;
        require(
            self.num_senders == self.num_blocks,
            "num_senders",
            format!("num_blocks ({}), as all blocks pull", self.num_blocks),
            self.num_senders,
        )
    }
}

impl ExchangeShape {
    /// Words of each rank's staging area, packets variant: rows, and behind them a word for each
    /// peer.
    pub fn combine_words(&self) -> usize {
        self.num_records() * 4 * self.row_units() as usize + self.ep_size as usize - 1
    }

    /// Words of each rank's staging area, bulk variant that pushes.
    pub fn combine_staging_words(&self) -> usize {
        self.num_records() / 2 * 4 * self.row_units() as usize
    }

    /// Words of each rank's signals, bulk variant that pulls. // [3, ep_size - 1, num_blocks]
    pub fn num_pull_signals(&self, num_blocks: u32) -> usize {
        3 * (self.ep_size as usize - 1) * num_blocks as usize
    }

    /// Messages that a packets kernel expects from a peer that owns experts of `num_rows` of the
    /// tokens: one for each warp that takes in a part of a row, and one that the call has begun.
    pub fn packet_messages(&self, num_rows: u32) -> u32 {
        let warps_per_row = self.row_units().div_ceil(32).min(PACKETS_THREADS / 32);
        num_rows * warps_per_row + 1
    }

    /// Messages that a kernel that pushes expects from a peer that owns experts of these `tokens`:
    /// that its area is free, for each sender, and for each group that adds that its chunks have come.
    pub fn push_messages(&self, launch: ExchangeLaunch, tokens: impl Iterator<Item = u32>) -> u32 {
        let shift = push_chunk_shift(launch.num_senders);
        let num_adders = launch.num_blocks - launch.num_senders;
        let group_of = |token: u32| {
            let (chunk, i) = (token >> shift, token & ((1 << shift) - 1));
            (chunk % num_adders, (((chunk / num_adders) << shift) + i) % NUM_GROUPS)
        };
        let groups: BTreeSet<_> = tokens.map(group_of).collect();
        launch.num_senders + groups.len() as u32
    }

    /// Launch of the baseline sum: a block per token, of which there is at least one.
    pub fn sum_dims(&self, num_tokens: u32) -> LaunchDims {
        LaunchDims { grid: [num_tokens, 1, 1], block: [SUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the packets kernel.
    pub fn combine_packets_dims(&self, launch: ExchangeLaunch) -> LaunchDims {
        LaunchDims {
            grid: [launch.num_blocks, 1, 1],
            block: [PACKETS_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Launch of the bulk kernels.
    pub fn combine_bulk_dims(&self, launch: ExchangeLaunch) -> LaunchDims {
        LaunchDims {
            grid: [launch.num_blocks, 1, 1],
            block: [BULK_THREADS, 1, 1],
            shared_bytes: BULK_SHARED_BYTES,
        }
    }

    /// Bytes that a combine reads and writes, with `num_rows` partial rows, own included.
    pub fn combine_work(&self, num_tokens: u64, num_rows: u64) -> Work {
        let row_bytes = 16 * u64::from(self.row_units());
        Work {
            read_bytes: num_rows * row_bytes,
            written_bytes: num_tokens * row_bytes,
            flops: num_rows * u64::from(self.hidden),
        }
    }
}
