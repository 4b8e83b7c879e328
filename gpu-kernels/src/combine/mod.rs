//! Brings back what the experts made of each token, and adds it up.
//!
//! After [`dispatch`](crate::dispatch), rank `r` holds in `partial[s, t]` the sum over its experts of
//! token `t` of rank `s`, weighted already. On rank `s`, for each of its tokens:
//!
//! ```text
//! out[t] = bf16( sum over ranks r, ascending, of f32(partial[s, t] of rank r) )
//! ```
//!
//! over the ranks that own at least one of the token's experts; 0 for a token without any. The sum
//! runs in f32 and always in the order of ranks, so the bits do not depend on who came first, nor on
//! what else is in the batch.
//!
//! # Shapes
//! `partial` `[ep_size, num_max_tokens, hidden]` bf16 and `recv_topk_ids` `[ep_size, num_max_tokens,
//! topk]` as dispatch left them; only rows of slots with an id of at least 0 are read. `topk_ids`
//! `[num_tokens, topk]` as given to dispatch; `out` `[num_tokens, hidden]`.
//!
//! # Who does what
//! *sum, baseline*: after a library has moved all slots, a block per token adds the parts up.
//!
//! *push, packets*: for few tokens; one kernel moves and adds. A block per token sends back what came
//! in the token's slots, then takes in what comes for the token: no flags, for
//! [packets](crate::dispatch) say themselves that they have arrived. What this rank computed of its
//! own tokens stays where it is. Rows are loaded before it is known whether they go anywhere: all of
//! `partial` must be memory that something wrote.
//!
//! *push, bulk* (sm_90): some blocks pass rows through a ring of pieces in shared memory to the peers'
//! staging areas, as in dispatch, chunk of tokens by chunk, and tell the peers how many chunks have
//! come. The others add, in three groups: one thread of each loads the parts of its tokens' sums through
//! such a ring, own ones and staged ones, chunk by chunk as they come, and 128 helpers add them up.
//!
//! *pull, bulk* (sm_90): all blocks add, and load the peers' parts from the peers' `partial` itself,
//! whose address each call tells. No staging area, half the traffic of a multiprocessor: for few of
//! them. Both ways at once the wire carries 338 GB/s of what is read, and 368 of what is written.
//!
//! # Waiting
//! As in dispatch. A kernel that pulls ends when its peers have read their parts.
//!
//! # What bounds it
//! The wire: remote rows at 368 GB/s with both ways busy. Few tokens: the chain launch, load, 0.7 µs
//! to the peer, look, store.
//!
//! # Whose idea
//! As in dispatch; the pull is that of TensorRT-LLM's and DeepEP's combine.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::dispatch::{MAX_LANES, MAX_PIECE_BYTES, NUM_STAGES};

/// Threads of a block of the baseline.
pub const SUM_THREADS: u32 = 128;
/// Threads of a block, packets variant.
pub const PACKETS_THREADS: u32 = 512;
/// Threads of a block, bulk variants.
pub const BULK_THREADS: u32 = NUM_GROUPS * GROUP_THREADS;

/// Groups of a block that add, bulk variants: each has tokens, stages and an issuing thread of its own,
/// for a part passes through one group in some 0.4 µs, however few warps wait for it.
pub(crate) const NUM_GROUPS: u32 = 3;
/// Threads of a group that add; the issuing thread has a warp of its own.
pub(crate) const NUM_HELPERS: u32 = 128;
pub(crate) const GROUP_THREADS: u32 = 32 + NUM_HELPERS;
/// Stages of a group's ring.
pub(crate) const GROUP_STAGES: u32 = NUM_STAGES / NUM_GROUPS;
/// Stores of a sending block that may still read their stage while loads run ahead.
pub(crate) const NUM_STORES_IN_FLIGHT: u32 = 4;
/// Loads of a sending block that are under way before a store has to be done with its stage.
pub(crate) const NUM_LOADS_AHEAD: u32 = NUM_STAGES - NUM_STORES_IN_FLIGHT;
/// Stores that follow the last one of a chunk before its arrival is waited for.
pub(crate) const NUM_UNTOLD_STORES: u32 = 4;
/// Times 16 bytes of a piece that a helper adds.
pub(crate) const ADDED_UNITS: usize = (MAX_PIECE_BYTES / 16).div_ceil(NUM_HELPERS) as usize;
/// Tokens of a chunk as a power of two, pulling.
pub(crate) const PULL_CHUNK_SHIFT: u32 = 2;
/// Senders up to which the wire needs all that each can push.
const FEW_SENDERS: u32 = 8;

/// Tokens of a chunk as a power of two, pushing: a fence for each chunk costs a sender 0.9 µs, and
/// what comes in the last chunk is added when nothing else is under way.
pub(crate) const fn push_chunk_shift(num_senders: u32) -> u32 {
    if num_senders > FEW_SENDERS { 2 } else { 4 }
}

/// Tokens of a round of a block, whose marks lie ready.
pub(crate) const NUM_MARKS: u32 = 1024;
/// Byte of shared memory at which the barriers of filled stages lie, bulk variants.
pub(crate) const FULL_AT: u32 = NUM_STAGES * MAX_PIECE_BYTES;
/// Where those of emptied stages lie.
pub(crate) const EMPTY_AT: u32 = FULL_AT + 8 * NUM_STAGES;
/// Where the addresses of rows lie, by rank.
pub(crate) const FIRST_ROWS_AT: u32 = EMPTY_AT + 8 * NUM_STAGES;
/// Where the marks of a round's tokens lie.
pub(crate) const MARKS_AT: u32 = FIRST_ROWS_AT + 8 * MAX_LANES;
/// Where words say that a group's wait was in vain.
pub(crate) const GAVE_UP_AT: u32 = MARKS_AT + 4 * NUM_MARKS;
/// Bytes of shared memory of the bulk variants.
pub const BULK_SHARED_BYTES: u32 = GAVE_UP_AT + 16;
