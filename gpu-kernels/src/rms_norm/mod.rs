//! Rows divided by their root mean square, with what is added to the residual stream before it.
//!
//! ```text
//! x = x + delta                                             (add_rows, and add alone)
//! out = bf16(x / sqrt(mean(x^2) + eps)) * weight
//! ```
//!
//! as Llama's and Qwen's layers order their roundings: the sum is rounded to bf16 before its mean
//! square is taken, the normalised value before its weight, all arithmetic between in f32.
//!
//! # Shapes
//! `x`, `delta`, `out` `[num_rows, row_len]`, `weight` `[row_len]`, all in bf16; `row_len` is a
//! multiple of 8 up to 16384. A row is a token's hidden state, or a head of it.
//!
//! # Who does what
//! A block per row. A thread keeps 8 elements of each 2048 in registers, so that a row is read
//! once; weights are on their way before the mean is known. The order of the sum depends on
//! `row_len` alone.
//!
//! *add_rows* stores the new `x` and normalises it in one launch; *add*, a launch of its own in
//! front of *rows*, is what it is compared with.
//!
//! # What bounds it
//! Memory: fused, 2 reads and 2 writes of a row against 3 and 2; in decode, launches.
//!
//! # Whose idea
//! RMSNorm: Zhang and Sennrich; with the residual in one kernel: vLLM's `fused_add_rms_norm`.

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
/// Elements that a thread moves at once.
pub const WORD: u32 = 8;
/// Longest row.
pub const MAX_ROW_LEN: u32 = 16_384;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct RmsNormParams {
    /// Elements of a row.
    pub row_len: u32,
    /// Added to the mean square.
    pub eps: f32,
}
