//! Attention over parts of a context, put together.
//!
//! Attention over some of the tokens of a request gives an output and a log-sum-exp (base 2): a
//! *state*. States of disjoint parts merge into the state of all their tokens:
//!
//! ```text
//! lse = log2(sum_i 2^lse[i])
//! out = sum_i 2^(lse[i] - lse) out[i]
//! ```
//!
//! A part without tokens has `out = 0` and `lse = -inf`, and changes nothing; so has the result, if
//! no part has any.
//!
//! # Shapes
//! `states_out` `[num_states, num_rows, head_dim]` and `states_lse` `[num_states, num_rows]` in
//! f32; `out` `[num_rows, head_dim]` in bf16 or f16, `lse` `[num_rows]` in f32. A row is a query
//! head of a request.
//!
//! # Who does what
//! A thread has 4 dimensions of a row, and reads 16 bytes of each state, four states at once.
//!
//! # What bounds it
//! Memory, and for few rows the way there and back: each state is read once.
//!
//! # Whose idea
//! Merging by log-sum-exp: Flash-Decoding; the name is FlashInfer's.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of a block.
pub const NUM_THREADS: u32 = 256;

/// Dimensions of a row that a thread has.
pub const DIMS_PER_THREAD: u32 = 4;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MergeParams {
    /// States of each row.
    pub num_states: u32,
    /// Rows.
    pub num_rows: u32,
    /// Elements of a row.
    pub head_dim: u32,
}
