//! Rows of a table, gathered by index: tokens become hidden states.
//!
//! ```text
//! out[i] = table[row_ids[i]]
//! ```
//!
//! An index that is not a row of the table (-1, say, for a slot of the batch that holds no token)
//! gives a row of zeros. Indices stand on the device, where sampling leaves them. The same kernel
//! picks the rows of a batch's last tokens, whose logits are wanted.
//!
//! # Shapes
//! `table` `[num_rows, row_len]` and `out` `[num_ids, row_len]` in bf16, `row_ids` `[num_ids]` in i32;
//! `row_len` is a multiple of 8.
//!
//! # Who does what
//! A thread per 16 bytes of `out`.
//!
//! # What bounds it
//! Memory; in decode, its launch.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of a block.
pub const NUM_THREADS: u32 = 128;
/// Elements that a thread moves.
pub const WORD: u32 = 8;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EmbeddingParams {
    /// Rows of the table.
    pub num_rows: u32,
    /// Elements of a row.
    pub row_len: u32,
    /// Rows to gather.
    pub num_ids: u32,
}
