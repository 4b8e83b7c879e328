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
//! *push, packets*: one kernel moves and adds. In each block 8 warps push rows of partial results
//! to their sources, 4 KiB a warp in flight, and 8 warps take in what the peers push here, as soon as
//! it comes: no flags between them, for [packets](crate::dispatch) say themselves that they have
//! arrived. What this rank computed of its own tokens stays where it is. `num_senders` blocks
//! push and all blocks add, so that few SMs can do it while others compute.
//!
//! # What bounds it
//! The wire, in principle: remote rows at 368 GB/s with both ways busy. Beside it run, for each remote
//! row, local passes over own part, staged part, output and poison; adding is what takes longest today
//! (`design.md`). Few tokens: the chain launch, routing, load, 0.7 µs to the peer, look, store.
//!
//! # Whose idea
//! As in dispatch; the pull side of TensorRT-LLM's and DeepEP's combine, turned into a push.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

/// Threads of a block of the baseline.
pub const SUM_THREADS: u32 = 128;
/// Warps of a block that push.
pub const SEND_WARPS: u32 = 8;
/// Warps of a block that add.
pub const ADD_WARPS: u32 = 8;
/// Threads of a block, packets variant.
pub const PACKETS_THREADS: u32 = 32 * (SEND_WARPS + ADD_WARPS);

/// Times 16 bytes that a lane has in flight, pushing.
pub(crate) const SENT_UNITS: usize = 8;
/// Times 16 bytes of each part that a lane has in flight, adding.
pub(crate) const ADDED_UNITS: usize = 4;
