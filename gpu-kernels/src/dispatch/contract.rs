//! What an exchange between ranks must be like, and what dispatch does.

use std::format;

use super::{
    BULK_SHARED_BYTES, BULK_THREADS, ExchangeParams, MAX_LANES, MAX_PIECE_BYTES, PACK_THREADS,
    PACKETS_THREADS,
};
use crate::contract::{ContractError, LaunchDims, Work, require, require_multiple, require_up_to};

/// Blocks that fill the wire, and as many that copy what stays, when nothing else runs.
pub const ALONE_SENDERS: u32 = 66;
/// Blocks that fill the wire, and as many that copy what stays, beside a computation.
pub const OVERLAP_SENDERS: u32 = 8;
/// Most tokens a rank for which packets are the faster way.
pub const MAX_PACKET_TOKENS: u32 = 256;

/// Bytes of a bf16.
const ELEMENT_BYTES: u32 = 2;
/// Largest row.
const MAX_HIDDEN: u32 = 1 << 20;
/// Most blocks: which of them send is computed in 32 bits.
const MAX_BLOCKS: u32 = u16::MAX as u32;

/// Sizes of an exchange, the same on all ranks: dispatch, and combine back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeShape {
    /// Ranks.
    pub ep_size: u32,
    /// Experts of all ranks together.
    pub num_experts: u32,
    /// Ids of a token.
    pub topk: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Tokens that a rank has at most.
    pub num_max_tokens_per_rank: u32,
}

impl ExchangeShape {
    /// Refuses what the kernels do not take.
    ///
    /// With buffers of the shapes stated in the rooms, of all ranks, no thread of a launch with
    /// dims from here or from [`combine`](crate::combine::contract) then reaches out of bounds,
    /// whatever the ids.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { ep_size, num_experts, topk, hidden, num_max_tokens_per_rank } = *self;
        require_up_to("ep_size", MAX_LANES, ep_size)?;
        require(
            num_experts > 0 && num_experts.is_multiple_of(ep_size) && num_experts <= 1 << 20,
            "num_experts",
            format!("a positive multiple of ep_size ({ep_size}), at most 2^20"),
            num_experts,
        )?;
        require_up_to("topk", MAX_LANES, topk)?;
        require_multiple("hidden", 16 / ELEMENT_BYTES, MAX_HIDDEN, hidden)?;
        let num_slots = u64::from(ep_size) * u64::from(num_max_tokens_per_rank);
        require(
            num_max_tokens_per_rank > 0 && num_slots * u64::from(topk) <= 1 << 30,
            "num_max_tokens_per_rank",
            "at least 1, and such that ep_size times it times topk is at most 2^30",
            num_max_tokens_per_rank,
        )
    }

    /// Refuses more tokens than stated.
    pub fn check_tokens(&self, num_tokens: usize) -> Result<(), ContractError> {
        require(
            num_tokens <= self.num_max_tokens_per_rank as usize,
            "num_tokens",
            format!("at most num_max_tokens_per_rank ({})", self.num_max_tokens_per_rank),
            num_tokens,
        )
    }

    /// Slots for received rows, of each rank.
    pub fn num_slots(&self) -> usize {
        self.ep_size as usize * self.num_max_tokens_per_rank as usize
    }

    /// Elements of `recv_x` and `partial`. // [ep_size, num_max_tokens, hidden]
    pub fn slot_elements(&self) -> usize {
        self.num_slots() * self.hidden as usize
    }

    /// Elements of `recv_topk_ids` and `recv_topk_weights`. // [ep_size, num_max_tokens, topk]
    pub fn slot_entries(&self) -> usize {
        self.num_slots() * self.topk as usize
    }

    /// Words of each rank's flags, bulk variant. // [2, ep_size - 1, num_senders]
    pub fn num_signals(&self, num_senders: u32) -> usize {
        2 * (self.ep_size as usize - 1) * num_senders as usize
    }

    /// Words of `late`: of dispatch and combine by rank, and the first call that missed any message.
    /// // [2 * ep_size + 1]
    pub fn late_words(&self) -> usize {
        2 * self.ep_size as usize + 1
    }

    /// Words of each rank's staging area, packets variant.
    pub fn packet_words(&self) -> usize {
        self.num_records() * 4 * (self.row_units() + (2 * self.topk).div_ceil(4)) as usize
    }

    /// Rows of a staging area, for calls in turn. // [2, ep_size - 1, num_max_tokens]
    pub fn num_records(&self) -> usize {
        2 * (self.ep_size as usize - 1) * self.num_max_tokens_per_rank as usize
    }

    /// Units of 16 bytes of a row.
    pub fn row_units(&self) -> u32 {
        self.hidden * ELEMENT_BYTES / 16
    }

    /// The sizes that the kernels take.
    pub fn params(&self, ep_rank: u32, num_tokens: u32, launch: ExchangeLaunch) -> ExchangeParams {
        let row_units = self.row_units();
        let piece_units = row_units.div_ceil((16 * row_units).div_ceil(MAX_PIECE_BYTES));
        ExchangeParams {
            ep_rank,
            ep_size: self.ep_size,
            experts_per_rank: self.num_experts / self.ep_size,
            topk: self.topk,
            num_tokens,
            num_max_tokens: self.num_max_tokens_per_rank,
            row_units,
            piece_bytes: 16 * piece_units,
            pieces_per_row: row_units.div_ceil(piece_units),
            num_senders: launch.num_senders,
            timeout_us: launch.timeout_us,
        }
    }

    /// Launch of the baseline kernel: a block for each (slot, rank).
    pub fn pack_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_max_tokens_per_rank, self.ep_size, 1],
            block: [PACK_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Launch of the packets kernel.
    pub fn packets_dims(&self, launch: ExchangeLaunch) -> LaunchDims {
        LaunchDims {
            grid: [launch.num_blocks, 1, 1],
            block: [PACKETS_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Launch of the bulk kernel.
    pub fn bulk_dims(&self, launch: ExchangeLaunch) -> LaunchDims {
        LaunchDims {
            grid: [launch.num_blocks, 1, 1],
            block: [BULK_THREADS, 1, 1],
            shared_bytes: BULK_SHARED_BYTES,
        }
    }

    /// Bytes that a dispatch reads and writes, of which `num_rows` rows go to ranks, own included.
    pub fn dispatch_work(&self, num_tokens: u64, num_rows: u64) -> Work {
        let row_bytes = 16 * u64::from(self.row_units());
        let routing_bytes = 8 * u64::from(self.topk);
        Work {
            read_bytes: num_tokens * (row_bytes + routing_bytes),
            written_bytes: num_rows * row_bytes + self.num_slots() as u64 * routing_bytes,
            flops: 0,
        }
    }
}

/// How a kernel of an exchange is launched, the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeLaunch {
    /// Blocks of the grid.
    pub num_blocks: u32,
    /// Those of them that send to peers.
    pub num_senders: u32,
    /// Microseconds after which waiting ends.
    pub timeout_us: u32,
}

impl ExchangeLaunch {
    /// Refuses what the bulk kernel does not take.
    ///
    /// 9 to 16 senders push slower over NVLink than [`OVERLAP_SENDERS`] do.
    pub fn check_bulk(&self) -> Result<(), ContractError> {
        self.check_blocks()?;
        require(
            matches!(self.num_senders, 1..=OVERLAP_SENDERS | 17..),
            "num_senders",
            format!("1 to {OVERLAP_SENDERS} (overlap) or from 17 on ({ALONE_SENDERS} when alone)"),
            self.num_senders,
        )?;
        require(
            self.num_blocks > self.num_senders,
            "num_blocks",
            format!("more than num_senders ({}), for what stays", self.num_senders),
            self.num_blocks,
        )
    }

    /// Refuses more blocks than any kernel of an exchange takes, and none.
    pub(crate) fn check_blocks(&self) -> Result<(), ContractError> {
        require_up_to("num_blocks", MAX_BLOCKS, self.num_blocks)
    }

    /// Refuses what the packets kernels do not take.
    pub fn check_packets(&self) -> Result<(), ContractError> {
        self.check_blocks()?;
        require(
            (1..=self.num_blocks).contains(&self.num_senders),
            "num_senders",
            format!("1 to num_blocks ({})", self.num_blocks),
            self.num_senders,
        )
    }
}
