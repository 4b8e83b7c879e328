//! Brings each token to the ranks that own its experts.
//!
//! Experts are dealt to ranks in equal ranges: rank `r` owns ids `r * n .. (r + 1) * n`. On rank `s`,
//! for each token `t` and each rank `r` that owns at least one of its experts:
//!
//! ```text
//! recv_x[s, t] on rank r           = x[t]
//! recv_topk_ids[s, t, k] on rank r = topk_ids[t, k] - r * n   if r owns it, else -1
//! recv_topk_weights[s, t, k]       = topk_weights[t, k]       where the id is not -1
//! ```
//!
//! A row travels once to a rank, however many of its experts live there. A token lands in the slot
//! of its own index, so nothing has to be counted before anything is sent, nobody needs atomics, and
//! the result is the same bits every time. All `num_max_tokens_per_rank` slots of every source get
//! their ids, -1 where no token came: `recv_topk_ids`, read as `[ep_size * num_max_tokens, topk]`,
//! is routing like any other, and counts and offsets follow from it on the device. Rows and weights
//! of slots without ids are left as they were.
//!
//! # Shapes
//! `x` `[num_tokens, hidden]` bf16, `hidden` a multiple of 8; `topk_ids` `[num_tokens, topk]` i32 of
//! `0..num_experts`; others, such as -1, are none. Ids may repeat: the row still travels once, and
//! every repetition keeps its weight. Received: `[ep_size, num_max_tokens, …]`.
//!
//! # Who does what
//! *pack, baseline*: a block for each (token, rank) copies the row and its routing into a buffer per
//! destination, which NCCL then sends, all of its slots.
//!
//! *push, bulk* (sm_90): the sender writes into the peers' `recv_x` directly. One thread of each
//! block passes the rows of consecutive tokens through a ring of pieces in shared memory: bulk load,
//! `mbarrier`, one bulk store for each destination. Its first loads are under way before routing
//! is read; 256 helpers turn routing into a word of ranks per token, and write ids and weights. At the
//! end of a block: all stores done, one fence, one flag to the same block of each peer, and a wait for
//! theirs. Some blocks send to peers only and the others copy what stays; 8 of each leave the other
//! SMs to compute. At its start, a block tells the same block of each peer that this rank's area
//! is free (whatever read it was in the stream before), and stores nothing before it is told so: one
//! area is enough, at an address that does not change.
//!
//! *push, packets*: for few tokens. Rows go through registers to a staging area of the receiver, in
//! 16-byte packets that say themselves whether they have arrived: the area is filled with a word that
//! no packet contains. No fence, no flag, no handshake; the receiver copies to `recv_x` what it
//! took from the staging area, and poisons it again. Two staging areas, used in turn.
//!
//! # Waiting
//! A block waits for the same block (bulk) or the same tokens (packets) of its peers only, so
//! blocks need not all be resident. After `timeout_us` it gives up, counts what it missed in
//! `late` (`[2, ep_size]`, dispatch and combine by rank, and behind them the first call that missed any),
//! and ends. Calls after that are not valid: they end at once.
//!
//! # What bounds it
//! The wire: remote rows at about 368 GB/s with both ways busy. Few tokens: the chain launch, load,
//! 0.7 µs to the peer, look, store.
//!
//! # Whose idea
//! Deduplication by rank: DeepEP. One-sided stores: DeepEP's low-latency mode and TensorRT-LLM's
//! one-sided all-to-all. Packets without flags: TensorRT-LLM's Lamport-style all-reduce.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

pub use device::packets::POISON;

/// Threads of a block of the baseline.
pub const PACK_THREADS: u32 = 128;
/// Threads of a block, packets variant.
pub const PACKETS_THREADS: u32 = 512;
/// Threads of a block that deal with routing, bulk variant; also tokens whose ranks lie ready.
pub const BULK_HELPERS: u32 = 256;
/// Threads of a block, bulk variant: the warp of the issuing thread, and the helpers.
pub const BULK_THREADS: u32 = 32 + BULK_HELPERS;
/// Bytes of a piece at most, bulk variant: a row of 7168 bf16.
pub const MAX_PIECE_BYTES: u32 = 14 * 1024;
/// Pieces in a block's ring.
pub const NUM_STAGES: u32 = 14;
/// Stores that may still read their stage while loads run ahead.
pub const NUM_STORES_IN_FLIGHT: u32 = 6;
/// Loads of a block before it looks at routing: what more there were would stand before the ids.
pub const NUM_FIRST_LOADS: u32 = 2;
/// Most ranks of an exchange, and most ids of a token: the lanes of a warp.
pub const MAX_LANES: u32 = 32;

/// Byte of shared memory at which the barriers of the stages lie, bulk variant.
pub(crate) const BARRIERS_AT: u32 = NUM_STAGES * MAX_PIECE_BYTES;
/// Where the addresses of the peers' rows lie.
pub(crate) const BASES_AT: u32 = BARRIERS_AT + 8 * NUM_STAGES;
/// Where the ranks of two batches of tokens lie.
pub(crate) const RANKS_AT: u32 = BASES_AT + 8 * MAX_LANES;
/// Where a word says that a wait was in vain.
pub(crate) const GAVE_UP_AT: u32 = RANKS_AT + 2 * 4 * BULK_HELPERS;
/// Bytes of shared memory of the bulk variant.
pub const BULK_SHARED_BYTES: u32 = GAVE_UP_AT + 16;

/// Which half of an exchange a call is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Tokens to their experts.
    Dispatch,
    /// Results to their tokens.
    Combine,
}

/// The sizes that kernels of dispatch and combine take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ExchangeParams {
    /// This rank.
    pub ep_rank: u32,
    /// Ranks.
    pub ep_size: u32,
    /// Experts that each rank owns.
    pub experts_per_rank: u32,
    /// Ids of a token.
    pub topk: u32,
    /// Tokens of this rank.
    pub num_tokens: u32,
    /// Slots for the tokens of a rank.
    pub num_max_tokens: u32,
    /// Units of 16 bytes of a row.
    pub row_units: u32,
    /// Bytes of each piece of a row but the last, which may be shorter.
    pub piece_bytes: u32,
    /// Pieces of a row.
    pub pieces_per_row: u32,
    /// Blocks that send to peers: in dispatch the first ones of the grid, in combine every so many.
    pub num_senders: u32,
    /// Microseconds after which waiting ends.
    pub timeout_us: u32,
}

impl ExchangeParams {
    /// The rank `step` after this one, round in a circle.
    #[inline(always)]
    pub(crate) fn rank_after(&self, step: u32) -> u32 {
        let rank = self.ep_rank + step;
        if rank >= self.ep_size { rank - self.ep_size } else { rank }
    }

    /// How many ranks after this one `rank` comes.
    #[inline(always)]
    pub(crate) fn step_to(&self, rank: u32) -> u32 {
        if rank >= self.ep_rank { rank - self.ep_rank } else { rank + self.ep_size - self.ep_rank }
    }
}
