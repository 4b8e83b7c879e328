//! What a combine launches, and what it does. Its sizes are the exchange's.

use super::{ADDED_UNITS, PACKETS_THREADS, SUM_THREADS};
use crate::contract::{LaunchDims, Work};
use crate::dispatch::contract::{ExchangeLaunch, ExchangeShape};

impl ExchangeShape {
    /// Words of each rank's staging area for combine: rows, and behind them a word for each peer.
    pub fn combine_words(&self) -> usize {
        self.num_records() * 4 * self.row_units() as usize + self.ep_size as usize - 1
    }

    /// Segments in which an adding warp takes a row in.
    pub fn added_segments(&self) -> u32 {
        self.row_units().div_ceil(ADDED_UNITS as u32 * 32)
    }

    /// Launch of the baseline sum: a block per token, of which there is at least one.
    pub fn sum_dims(&self, num_tokens: u32) -> LaunchDims {
        LaunchDims { grid: [num_tokens, 1, 1], block: [SUM_THREADS, 1, 1], shared_bytes: 0 }
    }

    /// Launch of the combine kernel.
    pub fn combine_dims(&self, launch: ExchangeLaunch) -> LaunchDims {
        LaunchDims {
            grid: [launch.num_blocks, 1, 1],
            block: [PACKETS_THREADS, 1, 1],
            shared_bytes: 0,
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
