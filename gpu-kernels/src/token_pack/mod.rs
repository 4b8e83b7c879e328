//! Copies the hidden state of each token to its rows, in the order of experts.
//!
//! ```text
//! rows[pair_rows[token, slot]] = x[token]       and its scales, in fp8
//! ```
//!
//! for each slot whose row is not -1 and below `num_max_rows`; other pairs are dropped. Rows that
//! only fill up an expert (`expert_offsets[e] + expert_counts[e] .. expert_offsets[e + 1]`) are set
//! to zero if asked for, and left as they are otherwise. Rows from
//! `expert_offsets[num_local_experts]` on are never touched.
//!
//! # Shapes
//! `x`, `rows` and their scales as in [`token_rows`](crate::token_rows); `pair_rows`, `row_pairs`,
//! `expert_counts`, `expert_offsets` as [`moe_permute`](crate::moe_permute) leaves them.
//!
//! # Who does what
//! *baseline*: a gather. A block per row finds its token by `row_pairs` and copies it: each token is
//! read once for each of its slots.
//!
//! *fanout*: the other way round. A block takes a piece of a token, 16 bytes a thread, and writes
//! it to all of the token's rows, which it finds by `pair_rows`: each token is read once.
//!
//! # What bounds it
//! Writes to HBM. 4096 tokens of 7168 in bf16 to 8 rows each: 59 MB read, 470 MB written.
//!
//! # Whose idea
//! Permutation of tokens as a scatter by the inverse map: DeepEP's and FlashInfer's dispatch.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of a block of the baseline.
pub const BASELINE_THREADS: u32 = 256;
/// Threads of a block of the fanout variant.
pub const NUM_THREADS: u32 = 128;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PackParams {
    /// Tokens.
    pub num_tokens: u32,
    /// Slots of a token.
    pub top_k: u32,
    /// Times 16 bytes of a row.
    pub row_units: u32,
    /// Scales of a row.
    pub num_scales: u32,
    /// Rows that there is memory for.
    pub num_max_rows: u32,
    /// Experts whose rows these are.
    pub num_local_experts: u32,
    /// 1: rows without a token are set to zero.
    pub zero_padding: u32,
    /// Blocks that a row is cut into, fanout.
    pub pieces_of_row: u32,
}
