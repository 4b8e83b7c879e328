//! Adds the rows of each token up again, weighted: what the experts made of it.
//!
//! ```text
//! out[token] = addend[token] + sum over slots of topk_weights[token, slot] * rows[pair_rows[token, slot]]
//! ```
//!
//! in f32, the addend (a residual, or the shared expert) first if there is one, then slot by slot in
//! their order, rounded once at the end. So results repeat bit by bit. A slot whose row is -1, or not
//! below `num_max_rows`, adds nothing, whatever its weight.
//!
//! # Shapes
//! `rows` and their scales as in [`token_rows`](crate::token_rows): in fp8 an element counts times
//! the scale of its 128. `pair_rows` `[num_tokens, top_k]` in i32,
//! `topk_weights` `[num_tokens, top_k]` in f32; `out` and `addend` `[num_tokens, hidden]` in bf16.
//!
//! # Who does what
//! *baseline*: a block per token, a thread per element, one row after the other.
//!
//! *wide*: a thread per 16 bytes of a row. The loads of eight rows are on their way at once, so
//! that a multiprocessor has 128 bytes in flight for each of its threads.
//!
//! # What bounds it
//! Reads of HBM. 4096 tokens of 7168 in bf16 from 8 rows each: 470 MB read, 59 MB written.
//!
//! # Whose idea
//! Finalizing by the inverse map, without atomics: TensorRT-LLM's and vLLM's `moe_unpermute`.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Elements of a row in fp8 that share a scale.
pub const SCALE_BLOCK: u32 = 128;
/// Threads of a block of the baseline.
pub const BASELINE_THREADS: u32 = 256;
/// Threads of a block of the wide variant.
pub const NUM_THREADS: u32 = 128;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UnpackParams {
    /// Slots of a token.
    pub top_k: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Scales of a row.
    pub num_scales: u32,
    /// Rows that there is memory for.
    pub num_max_rows: u32,
    /// Blocks that a row is cut into, wide.
    pub pieces_of_row: u32,
}
